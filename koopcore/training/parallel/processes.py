"""What processes that train one model together have to agree on, and how they do.

:class:`Processes` is one process, which agrees with itself; :class:`Group` are the ranks of a
process group of torch.distributed. Nothing else of koopcore knows how many there are.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from koopcore.types import FloatArray

ProcessGroup: TypeAlias = "dist.ProcessGroup | Literal['auto'] | None"

#: Attempts whose winners are compared by value; what goes wrong between ranks goes wrong early.
COMPARED = 8
#: Characters of another rank's error that are shown.
SHOWN = 300
#: What a header says of a rank is folded into so many values: their squares add up exactly.
CODES = 1 << 20


class PeerError(RuntimeError):
    """Another rank has failed, so what all were about to do together is given up."""


class Processes:
    """One process: its loss is the loss, its sums are the sums.

    Every method is called by all processes in the same order, between the beginning and the end of
    a block of :meth:`together`.
    """

    rank = 0
    size = 1

    @contextmanager
    def together(self, step: int, what: str) -> Iterator[None]:
        """Do the block on all ranks; if one fails in it, all leave it.

        The rank that fails has its own exception, the others :class:`PeerError`, which names it.
        step: of the optimizer, what: in words, for messages. A block within a block is one block.
        """
        yield

    def mean(self, value: Callable[[], float]) -> float:
        """Return the mean of ``value()`` over the ranks, in float64; not finite if one is not."""
        return value()

    def all(self, value: bool) -> bool:
        """Return whether ``value`` is true on every rank."""
        return value

    def total(self, sums: FloatArray) -> FloatArray:
        """Return the sum of arrays of one shape over the ranks, in float64."""
        return sums

    def gather(self, what: str, value: Callable[[], Any]) -> list[Any]:
        """Return what ``value`` (pickled) is on each rank, in the order of ranks."""
        return [value()]

    def same(self, what: str, values: Callable[[], Mapping[str, str]]) -> None:
        """Raise RuntimeError, on all ranks, unless all have the same values of the same names."""


class Group(Processes):
    """The ranks of a process group of torch.distributed.

    Every exchange begins with a header of 32 bytes: a number to be averaged, how many ranks have
    failed, and what the rank is about to do, as a code and its square, whose variance over the
    ranks is zero exactly if all are about to do the same. So a rank that fails takes part in the
    one exchange that the others wait in, and ranks out of step are noticed, not mixed up. A rank
    that does not come at all ends the wait with the group's timeout.

    Args:
        group: contains this process. Its backend and its timeout are the user's.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self._device = _device(group)
        self._depth = 0
        self._step = 0
        self._what = ""
        self._told: BaseException | None = None
        self._lost = False
        self._blocks = 0
        self.sent = 0  # bytes that this rank has given into reductions, and how many there were
        self.exchanges = 0

    @contextmanager
    def together(self, step: int, what: str) -> Iterator[None]:
        if self._depth:  # the block around it tells the others
            yield
            return
        self._step, self._what, self._depth = step, what, 1
        self._told = None
        self._announce()
        try:
            yield
            self._header("end", 0.0)
        except BaseException as error:
            if not (self._lost or _stems_from(error, self._told)):
                self._header("end", 0.0, error)
            raise
        finally:
            self._depth = 0

    def mean(self, value: Callable[[], float]) -> float:
        error: BaseException | None = None
        number = 0.0
        try:
            number = float(value())
        except BaseException as raised:
            error = raised
        mean = self._header("mean", number, error) / self.size
        if error is not None:
            raise error
        return mean

    def all(self, value: bool) -> bool:
        return self.mean(lambda: float(value)) == 1.0

    def total(self, sums: FloatArray) -> FloatArray:
        self._header(f"total of {sums.shape}", 0.0)
        summed = torch.tensor(sums, dtype=torch.float64, device=self._device)
        self._reduce(summed)
        result: FloatArray = summed.cpu().numpy()
        return result

    def gather(self, what: str, value: Callable[[], Any]) -> list[Any]:
        error: BaseException | None = None
        mine: Any = None
        try:
            mine = value()
        except BaseException as raised:
            error = raised
        self._header(f"exchange of {what}", 0.0, error)
        if error is not None:
            raise error
        return self._gather(mine)

    def same(self, what: str, values: Callable[[], Mapping[str, str]]) -> None:
        ranks = self.gather(what, lambda: dict(values()))
        for name in ranks[0]:
            others = [entry.get(name, "nothing") for entry in ranks]
            if len(set(others)) > 1:
                shown = by_value(others)
                raise self._noted(
                    RuntimeError(f"{what} differs between ranks: {name} is {shown}; it must not")
                )

    def _header(self, kind: str, number: float, error: BaseException | None = None) -> float:
        """Reduce the header; the sum of ``number``. An ``error`` is told, the caller raises it."""
        code = zlib.crc32(f"{self._step} {kind}".encode()) % CODES
        header = torch.tensor(
            [number, float(error is not None), float(code), float(code * code)],
            dtype=torch.float64,
            device=self._device,
        )
        self._reduce(header)
        total, failed, codes, squares = map(float, header.tolist())
        if failed:
            self._told = error
            self._tell(error)
            return total
        if self.size * squares != codes * codes:
            ranks = self._gather(f"{kind} of step {self._step}")
            raise self._noted(
                RuntimeError(
                    f"the ranks are not in step: {by_value(ranks)}. Attach, step, averaged() and "
                    "state_dict() have to be called on all ranks alike; process_group=None lets a "
                    "rank decide alone"
                )
            )
        return total

    def _tell(self, error: BaseException | None) -> None:
        """After a failure: exchange what it was; PeerError where it was another rank's."""
        mine = None if error is None else f"{type(error).__name__}: {str(error)[:SHOWN]}"
        errors = {rank: text for rank, text in enumerate(self._gather(mine)) if text}
        if error is None:
            words = "; ".join(f"rank {rank}: {text}" for rank, text in errors.items())
            raise self._noted(PeerError(f"{self._what} failed on {words}"))

    def _noted(self, error: BaseException) -> BaseException:
        """An error that all ranks raise by themselves needs no telling."""
        self._told = error
        return error

    def _reduce(self, tensor: Tensor) -> None:
        begun = time.monotonic()
        try:
            dist.all_reduce(tensor, group=self._group)
        except RuntimeError as error:
            raise self._gone(begun, error) from error
        self.sent += tensor.numel() * tensor.element_size()
        self.exchanges += 1

    def _gather(self, value: Any) -> list[Any]:
        begun = time.monotonic()
        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value, group=self._group)
        except RuntimeError as error:
            raise self._gone(begun, error) from error
        return values

    def _gone(self, begun: float, error: RuntimeError) -> RuntimeError:
        self._lost = True
        waited = time.monotonic() - begun
        behind = self._behind()
        who = f"rank {', '.join(map(str, behind))} did not come" if behind else "a rank is gone"
        return RuntimeError(
            f"rank {self.rank} waited {waited:.1f} s for the others in {self._what} at step "
            f"{self._step}, and {who} ({str(error).splitlines()[0][:SHOWN]}). Every rank must call "
            "the optimizer's step equally often"
        )

    def _announce(self) -> None:
        """Leave in the group's store how far this rank is: what names a rank that stays away."""
        self._blocks += 1
        with suppress(Exception):  # the store may be gone, and is needed for messages only
            _store().set(self._key(self.rank), str(self._blocks))

    def _behind(self) -> list[int]:
        behind = []
        with suppress(Exception):
            store = _store()
            for rank in range(self.size):
                there = store.check([self._key(rank)])
                if not there or int(store.get(self._key(rank))) < self._blocks:
                    behind.append(rank)
        return behind

    def _key(self, rank: int) -> str:
        group = self._group or dist.group.WORLD
        return f"koopcore/{getattr(group, 'group_name', '')}/{rank}"


def _stems_from(error: BaseException | None, told: BaseException | None) -> bool:
    """Whether ``error`` is ``told``, or was raised because of it."""
    while error is not None and error is not told:
        error = error.__cause__ or error.__context__
    return error is not None


ALONE = Processes()


def processes_for(group: ProcessGroup) -> Processes:
    """Return the processes that decide together: of a group, of the default one, or this alone.

    group: "auto": the default process group where torch.distributed is initialized. None: alone.
    ValueError for a group without this process, TypeError for what is no group.
    """
    if isinstance(group, str) and group != "auto":
        raise ValueError(f'process_group is {group!r}; give "auto", a process group, or None')
    initialized = dist.is_available() and dist.is_initialized()
    if group is None or (isinstance(group, str) and not initialized):
        return ALONE
    if isinstance(group, str):
        return Group() if dist.get_world_size() > 1 else ALONE
    given: Any = group
    stranger = given is dist.GroupMember.NON_GROUP_MEMBER  # what new_group returns there
    if not stranger and not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f'process_group is a {type(group).__name__}; give "auto", a process group of '
            "torch.distributed, or None"
        )
    if stranger or dist.get_rank(group) < 0:
        raise ValueError(
            f"rank {dist.get_rank()} is not in the process group given as process_group; give each "
            "rank a group that contains it"
        )
    return Group(group) if dist.get_world_size(group) > 1 else ALONE


def _device(group: dist.ProcessGroup | None) -> torch.device:
    """Where the group's backend reduces."""
    if "cpu:" in dist.get_backend_config(group):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def by_value(values: Sequence[str]) -> str:
    """Which ranks have which value, in words."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return "; ".join(
        f"{value[:SHOWN]} on rank {', '.join(map(str, those))}" for value, those in ranks.items()
    )
