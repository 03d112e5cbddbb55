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
# By the most columns of a group: whether one pass is for all groups, or the two parts.
_divided: WeakKeyDictionary[Partition, dict[int, bool | tuple[Partition, Partition]]]
_divided = WeakKeyDictionary()

# Bytes that a group may take in one pass: two groups at least then fit every multiprocessor of a
# device with fast fp64 (164 KiB on an A100), so that one is read while the other is solved.
SHARED_BYTES = 80 * 1024


class _Uploaded:
    """A partition and its plan on one device; made once, and then used on any stream."""

    def __init__(self, part: Partition, wide: bool, memory: DeviceMemory) -> None:
        plan: Plan = make_plan(part, wide)
        self.stream = memory.stream
        self.arrays = [memory.upload(array) for array in part.segments]
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
        self.memory = arrays.memory(snapshots.array)
        self._begin(module)
        array, order = snapshots
        self.n, self.part = len(order), part
        slots, size = array.shape
        if part.size != size:
            raise ValueError(
                f"snapshots has {size} parameters a row, but the partition is of {part.size}"
            )
        first = int(order[0])
        turned = self.n <= slots and np.array_equal(order, (first + np.arange(self.n)) % slots)
        rows = 0 if turned else self.address(self.upload(np.ascontiguousarray(order)))
        row, step = self.memory.strides(array)
        double = arrays.dtype_name(array) == "float64"
        self.window = (
            self.memory.address(array),
            row,
            step,
            first,
            slots,
            rows,
            size,
            self.n,
            double,
        )
        noise = float(module.gram_noise(self.number, self.n, double))
        self.noise = 1.0 if exact else noise
        self.wide = self.n > WARP_WINDOW or self.noise < noise
        uploaded = self._groups(part)
        self.groups, self.plan = uploaded.groups, uploaded.plan

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

    def _groups(self, part: Partition) -> _Uploaded:
        key = (type(self.memory), self.number, self.wide)
        uploaded: _Uploaded = self._once(key, lambda: _Uploaded(part, self.wide, self.memory))
        return uploaded

    def shares(self) -> list[tuple[int, int, int, int]]:
        """The launches of `one_pass`, for a partition all of whose groups it is for."""
        key = (type(self.memory), self.number, "shares")
        uploaded = self._once(key, lambda: _UploadedShares(self.part, self.memory))
        found: list[tuple[int, int, int, int]] = uploaded.shares
        return found

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` has uploaded for the partition; the current stream may use it."""
        known = _uploaded.setdefault(self.part, {})
        if key not in known:
            known[key] = make()
        self._held.append(known[key])  # the dictionary lets go of it with an equal partition
        if known[key].stream != self.memory.stream:
            for array in known[key].arrays:
                self.memory.keep(array)
        return known[key]

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
            array = array.array
        if isinstance(array, np.ndarray):
            array = self.memory.upload(np.ascontiguousarray(array))
        elif arrays.memory(array).number != self.number:
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
        place = f"CUDA device {self.number}"
        if arrays.where(out) != place and isinstance(out, np.ndarray):
            raise ValueError(
                f"out is on the CPU, the snapshots are on {place}; give an array there"
            )
        if arrays.memory(out).number != self.number:
            raise ValueError(
                f"out is on {arrays.where(out)}, the snapshots are on {place}; give an array there"
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


def one_pass_columns(module: Any, snapshots: Snapshots, horizons: Sequence[int]) -> int:
    """Most columns of shared memory of a group in one pass; 0 where only the stages will do."""
    number, n = arrays.memory(snapshots.array).number, len(snapshots.order)
    module.check_device(number)
    if (
        n > WARP_WINDOW
        or len(horizons) > module.most_horizons
        or max(horizons, default=1) > module.direct_steps
        or not module.fast_double(number)
    ):
        return 0
    return _most_columns(module, n, len(horizons), arrays.dtype_name(snapshots.array) == "float64")


@cache
def _most_columns(module: Any, n: int, horizons: int, double: bool) -> int:
    widths = range(CHUNK, SHARED_BYTES // ((8 if double else 4) * n), CHUNK)
    bytes_of = {w: module.one_pass_bytes(n, w, warps_for(w), horizons, double) for w in widths}
    return max((w for w in widths if bytes_of[w] <= SHARED_BYTES), default=0)


def divided(
    module: Any, snapshots: Snapshots, part: Partition, horizons: Sequence[int]
) -> tuple[Partition | None, Partition | None]:
    """The groups of ``part`` for one pass, and those for which the stages run one by one.

    None stands for no groups. It depends on the sizes of the groups, on the window and on whether
    the device has fast fp64, not on its size.
    """
    most = one_pass_columns(module, snapshots, horizons)
    known = _divided.setdefault(part, {})
    if most not in known:
        small = for_one_pass(part, most)
        known[most] = bool(small.any())
        if small.any() and not small.all():
            known[most] = part.subset(np.flatnonzero(small)), part.subset(np.flatnonzero(~small))
    found = known[most]
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
