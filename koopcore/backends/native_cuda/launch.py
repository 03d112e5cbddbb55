"""What a launch of the CUDA kernels needs of its arrays: addresses, plans, work space, stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from koopcore import arrays
from koopcore.arrays import DeviceMemory, Resident
from koopcore.backends.native_cuda.plan import (
    CHUNK,
    ONE_PASS_STEPS,
    WARP_WINDOW,
    Plan,
    for_one_pass,
    make_plan,
    shares,
    tile_columns,
    warps_for,
)
from koopcore.backends.protocol import Snapshots
from koopcore.partition.partition import Partition

KINDS = {"float32": 0, "float64": 1, "bfloat16": 2}

_uploaded: WeakKeyDictionary[Partition, dict[Any, Any]] = WeakKeyDictionary()
# By window and steps, and by which groups these lead to: whether one pass is for all, or the parts.
_divided: WeakKeyDictionary[Partition, dict[Any, bool | tuple[Partition, Partition]]]
_divided = WeakKeyDictionary()
MOST_KNOWN = 64  # of a partition; a search asks for each number of steps once

# Bytes that a group may take in one pass: two groups at least then fit every multiprocessor of a
# device with fast fp64 (164 KiB on an A100), so that one is read while the other is solved.
SHARED_BYTES = 80 * 1024


class _Uploaded:
    """A partition and its plan on one device; made once, and then used on any stream."""

    def __init__(self, part: Partition, wide: bool, memory: DeviceMemory) -> None:
        plan: Plan = make_plan(part, wide)
        self.stream = memory.stream
        self.arrays = [memory.upload(array) for array in part.segments]
        self.rooms: dict[Any, Any] = {}  # `Room` of endpoints that were asked for
        segments = tuple(map(memory.address, self.arrays))
        self.groups = (*segments, part.n_groups)

        def address(array: Any) -> int:
            if array is None or array.size == 0:
                return 0
            self.arrays.append(memory.upload(np.ascontiguousarray(array)))
            return memory.address(self.arrays[-1])

        self.plan = (
            address(plan.small),
            part.n_groups if plan.small is None else plan.n_small,
            address(plan.pieces),
            plan.n_middle,
            len(plan.pieces),
            address(plan.large_group),
            address(plan.large_piece),
            len(plan.large_group),
        )


class _UploadedShares:
    """The launches of a partition that one pass is for, on one device."""

    def __init__(self, part: Partition, memory: DeviceMemory) -> None:
        self.stream = memory.stream
        self.arrays: list[Any] = []
        self.shares = []
        for share in shares(tile_columns(part)):
            address = 0
            if share.groups is not None:
                self.arrays.append(memory.upload(share.groups))
                address = memory.address(self.arrays[-1])
            self.shares.append((address, *share[1:]))


class Launch:
    """One call of a stage: the window and groups as the kernels take them, and where they run.

    exact: Gram matrices are summed in fp64 also where that is slow; ``noise`` is 1 then.
    Raises ValueError for arrays on different devices, RuntimeError for a device that the module
    has no code for, MemoryError for work space that does not fit.
    """

    def __init__(
        self, module: Any, snapshots: Snapshots, part: Partition, exact: bool = False
    ) -> None:
        array, order = snapshots
        self.memory = arrays.memory(array)
        self._begin(module)
        self.n, self.part = len(order), part
        slots, size = array.shape
        if part.size != size:
            raise ValueError(
                f"snapshots has {size} parameters a row, but the partition is of {part.size}"
            )
        in_turn = order.tolist()
        first, before_end = in_turn[0], slots - in_turn[0]
        turned = self.n <= slots and in_turn == (
            list(range(first, first + self.n))
            if self.n <= before_end
            else [*range(first, slots), *range(self.n - before_end)]
        )
        rows = 0 if turned else self.address(self.upload(np.ascontiguousarray(order)))
        strides = self.memory.strides(array)
        self.double = arrays.dtype_name(array) == "float64"
        begin = self.memory.address(array)
        self.window = (begin, *strides, first, slots, rows, size, self.n, self.double)
        noise = float(module.gram_noise(self.number, self.n, self.double))
        self.noise = 1.0 if exact else noise
        self.wide = self.n > WARP_WINDOW or self.noise < noise

    def of(self, part: Partition) -> Launch:
        """The same launch for other groups of the same snapshots."""
        if part is self.part:
            return self
        other = Launch.__new__(Launch)
        other.__dict__.update(self.__dict__)
        other.part, other._uploaded = part, None
        return other

    @classmethod
    def anywhere(cls, module: Any, like: Any = None) -> Launch:
        """A launch over small matrices alone: where ``like`` is, else on the current device."""
        self = cls.__new__(cls)
        self.memory = like._memory if isinstance(like, Resident) else arrays.any_memory()
        self._begin(module)
        return self

    def _begin(self, module: Any) -> None:
        self.module = module
        self.number = self.memory.number
        module.check_device(self.number)
        self.target = (self.number, self.memory.stream)
        self._held: list[Any] = []  # until the kernels that use them are queued
        self._uploaded: _Uploaded | None = None

    @property
    def uploaded(self) -> _Uploaded:
        """The partition on the device."""
        if self._uploaded is None:
            key = (type(self.memory), self.number, self.wide)
            self._uploaded = self._once(key, lambda: _Uploaded(self.part, self.wide, self.memory))
        return self._uploaded

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups as the kernels take them."""
        return self.uploaded.groups

    @property
    def plan(self) -> tuple[int, ...]:
        """Which groups a warp, a block or several blocks take, as the kernels take it."""
        return self.uploaded.plan

    def shares(self) -> list[tuple[int, int, int, int]]:
        """The launches of `one_pass`, for a partition all of whose groups it is for."""
        key = (type(self.memory), self.number, "shares")
        uploaded = self._once(key, lambda: _UploadedShares(self.part, self.memory))
        found: list[tuple[int, int, int, int]] = uploaded.shares
        return found

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` has uploaded for the partition; the current stream may use it."""
        known = _uploaded.get(self.part)
        if known is None:
            known = _uploaded.setdefault(self.part, {})
        made = known.get(key)
        if made is None:
            made = known[key] = make()
        self._held.append(made)  # the dictionary lets go of it with an equal partition
        if made.stream != self.target[1]:
            for array in made.arrays:
                self.memory.keep(array)
        return made

    def empty(self, *shape: int) -> Any:
        """A float64 array on the device."""
        return self.memory.empty(shape, "float64")

    def integers(self, *shape: int) -> Any:
        """An int64 array on the device."""
        return self.memory.empty(shape, "int64")

    def space(self, count: int) -> int:
        """The address of ``count`` doubles of work space; 0 for none."""
        if count == 0:
            return 0
        self._held.append(self.empty(count))
        return self.memory.address(self._held[-1])

    def address(self, array: Any) -> int:
        """Where ``array`` begins; 0 for an empty one."""
        return self.memory.address(array) if 0 not in array.shape else 0

    def upload(self, array: Any) -> Any:
        """``array`` on the device: itself, or a copy of what is on the CPU."""
        if isinstance(array, Resident):
            resident, array = array, array.array
            if resident.stream != self.target[1]:
                self.memory.keep(array)
            number = resident.number
        elif isinstance(array, np.ndarray):
            array, number = self.memory.upload(np.ascontiguousarray(array)), self.number
        else:
            number = arrays.memory(array).number
        if number != self.number:
            raise ValueError(
                f"an array is on {arrays.where(array)}, the snapshots are on CUDA device "
                f"{self.number}; move them to one device"
            )
        self._held.append(array)
        return array

    def returned(self, given: Any, array: Any) -> Any:
        """A result: on the CPU where the input was a NumPy array, else on the device."""
        return (
            Resident(array, self.memory)
            if isinstance(given, Resident)
            else (self.memory.download(array))
        )

    def output(self, out: Any, rows: int) -> tuple[int, int, int, int]:
        """``out`` (rows, size) as the kernels take it."""
        host = isinstance(out, np.ndarray) and arrays.where(out) == "the CPU"
        if host or arrays.memory(out).number != self.number:
            raise ValueError(
                f"out is on {arrays.where(out)}, the snapshots are on CUDA device {self.number}; "
                "give an array there"
            )
        kind = arrays.dtype_name(out)
        if kind not in KINDS:
            raise TypeError(f"out has dtype {kind}; accepted are {', '.join(KINDS)}")
        if tuple(out.shape) != (rows, self.part.size):
            raise ValueError(
                f"out has shape {tuple(out.shape)}; ({rows}, {self.part.size}) is needed"
            )
        row, step = self.memory.strides(out)
        return self.memory.address(out), row, step, KINDS[kind]


def one_pass_columns(on: Launch, horizons: Sequence[int]) -> int:
    """Most columns of shared memory of a group in one pass; 0 where only the stages will do."""
    module = on.module
    if (
        on.n > WARP_WINDOW
        or len(horizons) > module.most_horizons
        or max(horizons, default=1) > ONE_PASS_STEPS
        or not module.fast_double(on.number)
    ):
        return 0
    return _most_columns(module, on.n, len(horizons), on.double)


@cache
def _most_columns(module: Any, n: int, horizons: int, double: bool) -> int:
    widths = range(CHUNK, SHARED_BYTES // ((8 if double else 4) * n), CHUNK)
    bytes_of = {w: module.one_pass_bytes(n, w, warps_for(w), horizons, double) for w in widths}
    return max((w for w in widths if bytes_of[w] <= SHARED_BYTES), default=0)


def divided(on: Launch, horizons: Sequence[int]) -> tuple[Partition | None, Partition | None]:
    """The groups of a launch for one pass, and those for which the stages run one by one.

    None stands for no groups. It depends on the sizes of the groups, on the window, on how far
    ahead, and on whether the device's code has fast fp64, not on its size.
    """
    most, part = one_pass_columns(on, horizons), on.part
    if most == 0:
        return None, part
    known = _divided.get(part)
    if known is None:
        known = _divided.setdefault(part, {})
    key = (most, on.n, max(horizons, default=1), on.double)
    found = known.get(key)
    if found is None:
        small = for_one_pass(part, *key[:3], 8 if on.double else 4)
        if len(known) > MOST_KNOWN:
            known.clear()
        mask = small.tobytes()  # the same parts again, which are on the device
        found = known.get(mask, bool(small.any()))
        if found is True and not small.all():
            found = part.subset(np.flatnonzero(small)), part.subset(np.flatnonzero(~small))
        known[key] = known[mask] = found
    if isinstance(found, tuple):
        return found
    return (part, None) if found else (None, part)


def horizon_blocks(
    on: Launch, horizons: Sequence[int], *outputs: Any
) -> Iterator[tuple[list[int], list[int]]]:
    """Horizons of one launch after another, and where their rows of the ``outputs`` begin."""
    most = int(on.module.most_horizons)
    for low in range(0, len(horizons), most):
        yield list(horizons[low : low + most]), [on.address(out[low:]) for out in outputs]
