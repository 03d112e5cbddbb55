"""Buffers that training moves (batch-norm statistics): predicted along, or re-estimated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from koopcore.training.settings import Buffers


class LiveBuffers:
    """Find the floating-point buffers that training changes, and keep them in step with a jump.

    A buffer is live from the first time that it was seen to change since attaching. ``predict``
    records live buffers in the ring, each with its own operator, and clips the prediction to the
    range seen in the window widened by itself on both sides (never below zero where it never was),
    since a loss evaluated in training mode cannot judge them. ``reestimate`` runs the loss once
    more with every normalization layer averaging from scratch. ``keep`` leaves them as they were:
    right only if the loss and later use recompute them. Integer buffers count real batches and
    are never touched.
    """

    def __init__(self, model: nn.Module, mode: Buffers) -> None:
        self.model = model
        self.mode = mode
        self.names: list[str] = []
        self.tensors: list[Tensor] = []
        self._seen = {n: b.detach().clone() for n, b in self._named()}

    def update(self) -> bool:
        """Look for newly live buffers; returns whether the recorded tensors are others now."""
        if self.mode != "predict":
            return False
        named = dict(self._named())
        live = [n for n, b in named.items() if n in self.names or self._changed(n, b)]
        tensors = [named[n] for n in live]
        same = [id(t) for t in tensors] == [id(t) for t in self.tensors]
        self.names, self.tensors = live, tensors
        return not same

    def adopt(self, names: Sequence[str]) -> None:
        """Take the buffers ``names`` as live, as a saved run had them."""
        named = dict(self._named())
        if missing := [n for n in names if n not in named]:
            raise ValueError(
                f"the saved run recorded the buffer {missing[0]!r}, which this model lacks"
            )
        self.names, self.tensors = list(names), [named[n] for n in names]

    def _changed(self, name: str, buffer: Tensor) -> bool:
        # By value: batch norm moves its statistics without counting up their versions, and loading
        # a checkpoint counts up the versions of constants.
        value = self._seen.get(name)
        return value is None or buffer.shape != value.shape or not torch.equal(buffer, value)

    def clip(self, values: Sequence[Tensor], windows: Sequence[Tensor]) -> list[Tensor]:
        """Clip predicted ``values`` by their ``windows``, each ``(n_snapshots, *shape)``."""
        clipped = []
        for value, window in zip(values, windows, strict=True):
            low, high = window.amin(0), window.amax(0)
            span = high - low
            floor = torch.where(low >= 0, torch.zeros_like(low), low - span)
            clipped.append(value.clamp(torch.maximum(low - span, floor), high + span))
        return clipped

    @torch.no_grad()
    def write(self, values: Sequence[Tensor]) -> None:
        """Copy ``values`` into the live buffers."""
        if self.tensors:
            torch._foreach_copy_(self.tensors, list(values))

    @torch.no_grad()
    def put(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy each value into its buffer."""
        for buffer, value in pairs:
            buffer.copy_(value)

    def _named(self) -> list[tuple[str, Tensor]]:
        named = self.model.named_buffers()
        return [(n, b) for n, b in named if not is_lazy(b) and b.is_floating_point() and b.numel()]


def reestimate(model: nn.Module, run: Callable[[], object]) -> list[tuple[Tensor, Tensor]]:
    """Run ``run`` with batch statistics averaged from scratch; return ``(buffer, new value)``.

    Every normalization layer with running statistics is put into training mode for its own
    forward only, whatever mode ``run`` sets, with a cumulative average (``momentum=None``). The
    buffers hold the new values on return. A layer that ``run`` does not reach keeps its own.
    Hooks are needed, so a compiled model must be run through its original.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase)]
    layers = [m for m in norms if m.running_mean is not None]
    momenta = [layer.momentum for layer in layers]
    saved = [[b.clone() for b in layer.buffers()] for layer in layers]
    handles = []
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        modes: list[bool] = []
        handles.append(layer.register_forward_pre_hook(_into_training(modes)))
        handles.append(layer.register_forward_hook(_back(modes)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
        for layer, momentum, buffers in zip(layers, momenta, saved, strict=True):
            layer.momentum = momentum
            count = layer.num_batches_tracked
            reached = count is not None and int(count) > 0
            for buffer, value in zip(layer.buffers(), buffers, strict=True):
                # The count goes on counting batches of training; it is no statistic.
                if not reached or not buffer.is_floating_point():
                    buffer.copy_(value)
    buffers = [b for layer in layers for b in layer.buffers() if b.is_floating_point()]
    return [(b, b.clone()) for b in buffers]


def _into_training(modes: list[bool]) -> Callable[..., None]:
    def before(layer: nn.Module, inputs: object) -> None:
        modes.append(layer.training)
        layer.training = True

    return before


def _back(modes: list[bool]) -> Callable[..., None]:
    def after(layer: nn.Module, inputs: object, output: object) -> None:
        layer.training = modes.pop()

    return after
