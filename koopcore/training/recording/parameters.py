"""Which tensors an attachment records and moves: the module's parameters, or their masters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from koopcore.partition.layout import Layout
from koopcore.training.recording.ring import ALIGNMENT

Masters: TypeAlias = Mapping[str, Tensor] | Sequence[Tensor]


class TrainableParameters:
    """Parameters of ``module`` that ``optimizer`` trains, in the order of a :class:`Layout`.

    Left out are frozen and non-floating parameters, those that the optimizer does not hold (another
    optimizer trains them), and names not selected by ``include``/``exclude``; tied parameters
    count once. With ``masters`` (float32 copies of a bfloat16 or float16 model, the tensors that
    the optimizer really steps), the masters are recorded and a jump writes both.

    Args:
        module: an ``nn.Module``; compiled, DDP or other wrappers show their inner parameters.
        optimizer: holds the parameters, or the masters.
        include, exclude: fnmatch patterns on parameter names.
        masters: name -> master, or one master per trainable parameter in module order.

    Raises:
        ValueError: the optimizer holds none of the parameters; a master is missing or misshapen.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        masters: Masters | None = None,
    ) -> None:
        inner = unwrapped(module)
        named = {n: p for n, p in inner.named_parameters() if p.requires_grad}
        master_of = _matched(named, masters)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [n for n in named if id(master_of.get(n, named[n])) not in held]
        if len(missing) == len(named):
            raise ValueError(
                f"the optimizer holds none of the {len(named)} trainable parameters of "
                f"{type(inner).__name__}; attach the optimizer to the model it steps, or give "
                "the float32 copies that it steps as masters="
            )
        self.module = inner
        self.layout = Layout.from_module(
            inner, include=include, exclude=_and_these(exclude, missing), align=ALIGNMENT
        )
        self.names = [t.name for t in self.layout.tensors]
        self.parameters = [named[n] for n in self.names]
        self.sources = [master_of.get(n, named[n]) for n in self.names]
        self.offsets = [t.offset for t in self.layout.tensors]
        self._marks = [_mark(t) for t in (*self.parameters, *self.sources)]

    def check(self) -> None:
        """Raise RuntimeError if the module's parameters are not those that were attached.

        That is: another tensor object, shape, device or dtype.
        """
        named = dict(self.module.named_parameters())
        for k, tensor in enumerate((*self.parameters, *self.sources)):
            name = self.names[k % len(self.names)]
            if (mark := _mark(tensor)) != self._marks[k]:
                raise RuntimeError(
                    f"the parameter {name!r} was {_words(self._marks[k])} when koopcore attached "
                    f"and is {_words(mark)} now; detach() before changing a model, attach after"
                )
            if k < len(self.names) and named.get(name) is not tensor:
                raise RuntimeError(
                    f"the parameter {name!r} of the model was replaced after koopcore attached; "
                    "detach() before changing a model, attach after"
                )

    @torch.no_grad()
    def write(self, values: Sequence[Tensor]) -> None:
        """Copy ``values``, shaped like the parameters, into masters and parameters."""
        torch._foreach_copy_(self.sources, list(values))
        self.follow_masters()

    @torch.no_grad()
    def follow_masters(self) -> None:
        """Round the masters into the parameters that they stand for."""
        pairs = [(p, s) for p, s in zip(self.parameters, self.sources, strict=True) if p is not s]
        if pairs:
            torch._foreach_copy_([p for p, _ in pairs], [s for _, s in pairs])

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
        return [t.detach().clone() for t in self._written()]

    @torch.no_grad()
    def restore(self, copies: Sequence[Tensor]) -> None:
        """Put back what :meth:`copy` kept, bit by bit."""
        torch._foreach_copy_(self._written(), list(copies))

    def unchanged(self, copies: Sequence[Tensor]) -> bool:
        """Return whether parameters and masters still equal ``copies`` bit by bit."""
        return all(same_bits(t, c) for t, c in zip(self._written(), copies, strict=True))

    def _written(self) -> list[Tensor]:
        extra = [s for p, s in zip(self.parameters, self.sources, strict=True) if p is not s]
        return [*self.parameters, *extra]


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile`` and data-parallel wrappers."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"the second argument is {type(module).__name__}; attach(optimizer, module) takes "
            "the torch.nn.Module whose parameters the optimizer holds"
        )
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(
            module, nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal bit by bit, NaN and signed zeros included."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    kind = kinds[one.element_size()]
    return torch.equal(one.detach().contiguous().view(kind), other.contiguous().view(kind))


def _matched(named: Mapping[str, Tensor], masters: Masters | None) -> dict[str, Tensor]:
    if masters is None:
        return {}
    if isinstance(masters, Mapping):
        pairs = dict(masters)
        if unknown := sorted(pairs.keys() - named.keys()):
            raise ValueError(f"masters names {unknown[0]!r}, which is no trainable parameter")
    else:
        if len(masters) != len(named):
            raise ValueError(
                f"masters has {len(masters)} tensors, the model {len(named)} trainable "
                "parameters; give one each in module order, or a mapping by name"
            )
        pairs = dict(zip(named, masters, strict=True))
    for name, master in pairs.items():
        if master.shape != named[name].shape or not master.dtype.is_floating_point:
            raise ValueError(
                f"the master of {name!r} is {_words(_mark(master))}, its parameter "
                f"{_words(_mark(named[name]))}; shapes must agree"
            )
    return pairs


def _and_these(exclude: str | Sequence[str] | None, names: Sequence[str]) -> list[str] | None:
    given = [exclude] if isinstance(exclude, str) else list(exclude or ())
    # fnmatch reads [ ] * ? as wildcards; a parameter's own name must match only itself.
    literal = ["".join(f"[{c}]" if c in "[*?" else c for c in name) for name in names]
    return given + literal or None


def _mark(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _words(mark: tuple[torch.Size, torch.dtype, torch.device]) -> str:
    return f"{tuple(mark[0])} {str(mark[1]).removeprefix('torch.')} on {mark[2]}"
