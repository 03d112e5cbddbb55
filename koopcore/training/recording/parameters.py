"""Which tensors an attachment records and moves: the model's parameters, or their masters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from koopcore.partition.layout import Layout
from koopcore.training.optimizers import Stepper
from koopcore.training.parallel.processes import ALONE, Processes
from koopcore.training.parallel.shards import Shards, reshard, sharded_modules
from koopcore.training.recording.ring import ALIGNMENT, place
from koopcore.training.settings import Patterns

Masters: TypeAlias = Mapping[str, Tensor] | Sequence[Tensor]


@dataclass(frozen=True)
class Recorded:
    """What an attachment records: parameter names, and why the others are left out."""

    names: tuple[str, ...]
    left_out: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"recorded: {', '.join(self.names) or 'nothing'}"]
        lines += [f"left out: {name} ({reason})" for name, reason in self.left_out.items()]
        return "\n".join(lines)


class NothingToRecordError(ValueError):
    """No parameter is left to record. lost: the optimizer holds none of the model's at all."""

    def __init__(self, message: str, left_out: Mapping[str, str], lost: bool) -> None:
        super().__init__(message)
        self.left_out = left_out
        self.lost = lost


class TrainableParameters:
    """Parameters of ``model`` that ``optimizer`` trains now, in the order of a :class:`Layout`.

    Left out are parameters that are frozen, not initialized yet (lazy), of integers, held by
    another optimizer, at a learning rate of 0 while others move, or not selected by
    ``include``/``exclude``; tied ones count once. Complex
    ones are pairs of real numbers, a last axis of 2. With masters (float32 copies of a bfloat16 or
    float16 model, the tensors that the optimizer really steps), the masters are recorded and a
    jump writes both.

    Args:
        model: an ``nn.Module`` without wrappers. optimizer: holds the parameters, or the masters.
        include, exclude: fnmatch patterns on parameter names.
        masters: name -> master, of :func:`matched`.
        processes: those that hold the other shards of DTensors.

    Raises:
        NothingToRecordError: and why, for each parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Stepper,
        include: Patterns = None,
        exclude: Patterns = None,
        masters: Mapping[str, Tensor] | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.model = model
        self._sharded = sharded_modules(model)
        self.optimizer = optimizer
        self._masters = dict(masters or {})
        self._marks = self._scan()
        named = dict(model.named_parameters())
        reasons = {}
        for name, _, trains, kind, held, moving in self._marks:
            if not trains:
                reasons[name] = "frozen: requires_grad is False"
            elif not held:
                reasons[name] = "the optimizer does not hold it"
            elif not moving:
                reasons[name] = "its learning rate is 0"
            elif kind is None:
                reasons[name] = "not initialized yet: no forward pass has given it a shape"
        lost = not any(held for *_, held, _ in self._marks)
        if named and lost:
            raise NothingToRecordError(
                f"the optimizer holds none of the {len(named)} parameters of "
                f"{type(model).__name__}; attach the optimizer to the model it steps, or give the "
                "float32 copies that it steps as masters=",
                reasons,
                lost,
            )
        try:
            self.layout = Layout.from_module(
                model, include=include, exclude=_and_these(exclude, list(reasons)), align=ALIGNMENT
            )
        except ValueError as error:
            words = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:6])
            message = f"{error}. Left out already: {words}" if reasons else str(error)
            raise NothingToRecordError(message, reasons, lost) from error
        self.names = [t.name for t in self.layout.tensors]
        self.recorded = Recorded(tuple(self.names), {**dict(self.layout.left_out), **reasons})
        #: What the optimizer steps, as it is: the keys of its state.
        self.stepped = [self._masters.get(n, named[n]) for n in self.names]
        #: What is recorded and written, as real numbers; beside it the model's own, where it is
        #: another tensor.
        self.sources = [real(t) for t in self.stepped]
        self.parameters = [
            source if named[n] is stepped else real(named[n])
            for n, stepped, source in zip(self.names, self.stepped, self.sources, strict=True)
        ]
        self.offsets = [t.offset for t in self.layout.tensors]
        self.width = self.layout.size
        #: Where the pieces here lie in the whole tensors; None where those are here.
        self.shards: Shards | None = None
        if any(map(is_sharded, self.stepped)):
            self.shards = Shards(self.layout, self.stepped, processes)
            self.offsets, self.width = place(self.sources, None, None)

    def changed(self) -> bool:
        """Return whether other tensors, or tensors of another kind, would be recorded now.

        That is: parameters were frozen, unfrozen, added, replaced, or moved to another shape,
        device or dtype. Cost: one walk over the model, a microsecond a parameter.
        """
        return self._scan() != self._marks

    def _scan(self) -> list[tuple[Any, ...]]:
        reshard(self._sharded)
        groups = self.optimizer.param_groups
        held = {id(p) for group in groups for p in group["params"]}
        moving = {id(p) for group in groups if not stopped(group) for p in group["params"]}
        marks = []
        for name, p in self.model.named_parameters():
            own = id(self._masters.get(name, p))
            # A schedule may begin at 0 with all of them.
            moves = own in moving or not moving
            marks.append((name, id(p), p.requires_grad, _kind(p), own in held, moves))
        return marks

    @torch.no_grad()
    def write(self, values: Sequence[Tensor]) -> None:
        """Copy ``values``, shaped like the sources, into masters and parameters."""
        torch._foreach_copy_(self.sources, list(values))
        self.follow_masters()

    @torch.no_grad()
    def follow_masters(self) -> None:
        """Round the masters into the parameters that they stand for."""
        pairs = [(p, s) for p, s in zip(self.parameters, self.sources, strict=True) if p is not s]
        if pairs:
            torch._foreach_copy_([p for p, _ in pairs], [s for _, s in pairs])
        reshard(self._sharded)

    @contextmanager
    def exchanged(self, values: Sequence[Tensor]) -> Iterator[None]:
        """Put ``values`` in place of the weights for the block, then the weights, bit by bit."""
        copies = self.copy()
        self.write(values)
        try:
            yield
        finally:
            self.restore(copies)

    @torch.no_grad()
    def copy(self) -> list[Tensor]:
        """Return copies of parameters and masters, bit by bit, for :meth:`restore`."""
        return [t.detach().clone() for t in self.written()]

    @torch.no_grad()
    def restore(self, copies: Sequence[Tensor]) -> None:
        """Put back what :meth:`copy` returned, bit by bit."""
        torch._foreach_copy_(self.written(), list(copies))
        reshard(self._sharded)

    @torch.no_grad()
    def checksums(self) -> dict[str, int]:
        """Return what replicas of the same parameters have in common, by name; none of shards."""
        if self.shards is not None:
            return {}
        named = zip(self.names, self.parameters, self.sources, strict=True)
        masters = [f"master of {name}" for name, p, source in named if p is not source]
        sums = [int(bits(t).sum(dtype=torch.int64).item()) for t in self.written()]
        return dict(zip([*self.names, *masters], sums, strict=True))

    def spread(self, state: Any) -> Any:
        """Return a state with tensors under parameters' names as DTensors, where these are."""
        shards = self.shards
        return state if shards is None else self._mapped(state, shards.whole)

    def pieces(self, state: Any) -> Any:
        """Return the same with the pieces of this process, from DTensors or whole tensors."""
        shards = self.shards
        return state if shards is None else self._mapped(state, shards.piece_of)

    def _mapped(self, state: Any, change: Callable[[int, Tensor], Tensor]) -> Any:
        if not isinstance(state, Mapping):
            return state
        numbers = {name: k for k, name in enumerate(self.names)}
        return {
            key: change(numbers[key], value)
            if isinstance(value, Tensor) and key in numbers
            else self._mapped(value, change)
            for key, value in state.items()
        }

    def written(self) -> list[Tensor]:
        """Return all that a jump writes: parameters and masters."""
        extra = [s for p, s in zip(self.parameters, self.sources, strict=True) if p is not s]
        return [*self.parameters, *extra]


def stopped(group: Mapping[str, Any]) -> bool:
    """Return whether an optimizer's group has a rate of zero; one on a device is not waited for."""
    rate = group.get("lr")
    if type(rate) is float:  # nearly always; asked at every step
        return rate == 0.0
    on_device = isinstance(rate, Tensor) and rate.device.type != "cpu"
    return not on_device and bool(rate == 0)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile`` and data-parallel wrappers."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the second argument is {type(model).__name__}; attach(optimizer, model) takes "
            "the torch.nn.Module whose parameters the optimizer holds"
        )
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def has_lazy(model: nn.Module) -> bool:
    """Return whether a parameter or a buffer of ``model`` waits for its first forward pass."""
    return any(is_lazy(t) for t in chain(model.parameters(), model.buffers()))


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this is a DTensor, without the seconds that importing its module takes."""
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """Return ``tensor``, or of a DTensor the shard that this process holds, always the same one."""
    return getattr(tensor, "_local_tensor") if is_sharded(tensor) else tensor  # noqa: B009


def real(tensor: Tensor) -> Tensor:
    """Return :func:`local`, or a view of a complex one as pairs of real numbers."""
    tensor = local(tensor)
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal bit by bit, NaN and signed zeros included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(bits(one), bits(other))


def bits(tensor: Tensor) -> Tensor:
    """Return the bits of a tensor as whole numbers."""
    tensor = real(tensor.detach())
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(kinds[tensor.element_size()])


def matched(model: nn.Module, masters: Masters | None) -> dict[str, Tensor]:
    """Return name -> master; ValueError for masters that do not fit the trainable parameters."""
    if masters is None:
        return {}
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if isinstance(masters, Mapping):
        pairs = dict(masters)
        if unknown := sorted(pairs.keys() - named.keys()):
            raise ValueError(f"masters names {unknown[0]!r}, which is no trainable parameter")
    else:
        given = list(masters)
        if len(given) != len(named):
            raise ValueError(
                f"masters has {len(given)} tensors, the model {len(named)} trainable "
                "parameters; give one each in module order, or a mapping by name"
            )
        pairs = dict(zip(named, given, strict=True))
    for name, master in pairs.items():
        if master.shape != named[name].shape or not master.dtype.is_floating_point:
            raise ValueError(
                f"the master of {name!r} is {_words(master)}, its parameter "
                f"{_words(named[name])}; shapes must agree"
            )
    return pairs


def _and_these(exclude: Patterns, names: Sequence[str]) -> list[str] | None:
    given = [exclude] if isinstance(exclude, str) else list(exclude or ())
    # fnmatch reads [ ] * ? as wildcards; a parameter's own name must match only itself.
    literal = ["".join(f"[{c}]" if c in "[*?" else c for c in name) for name in names]
    return given + literal or None


def _kind(tensor: Tensor) -> tuple[Any, ...] | None:
    """Shape, dtype, device; for complex tensors, which are seen through a view, the address too."""
    if is_lazy(tensor):
        return None
    address = local(tensor).data_ptr() if tensor.is_complex() else None
    return tensor.shape, tensor.dtype, tensor.device, address


def _words(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{tuple(tensor.shape)} {dtype} on {tensor.device}"
