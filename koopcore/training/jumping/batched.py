"""Residuals at many places by one call: ``torch.func.vmap`` over the parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from koopcore.training.recording.recording import Recording

#: Numbers that the residuals of all places may be together; more of them cost what they cost, one
#: place after another, and the memory of one.
MOST = 1 << 18
#: A batched result must be the one of a single call, to this share of what places have changed, and
#: to so many roundings of the residuals.
SHARE, ROUNDINGS = 1e-3, 100


class BatchedResiduals:
    """``residuals()`` at many parameter vectors, evaluated together where that can be done.

    Small networks spend their time on the calls, not on the numbers: 31 places at once cost a few
    single ones. The function is any that reads the model's parameters when it is called;
    ``functional_call`` puts batched tensors in their place, and ``vmap`` carries them through. It
    is given up, for good, where an operation has no batching rule, draws random numbers, changes a
    buffer or warns, where the result is no single tensor, or is not what a single call returns.

    Args:
        residuals: returns one flat tensor at the model's present parameters.
        run: calls a function under the conditions of a loss (:meth:`GuardedLoss.run`).
    """

    def __init__(
        self, residuals: Callable[[], Tensor], run: Callable[[Callable[[], Tensor]], Tensor]
    ) -> None:
        self._residuals = residuals
        self._run = run
        self.usable = True
        self._tried = False

    def __call__(self, recording: Recording, places: Tensor) -> Tensor | None:
        """Return residuals (k, R) at rows of the ring (k, size); None where it cannot be done."""
        if not self.usable:
            return None
        found = None
        if _plain(recording):
            with warnings.catch_warnings():
                if not self._tried:
                    warnings.simplefilter("error")
                try:
                    found = self._run(lambda: self._batched(recording, places))
                except Exception:  # a single call raises what is the user's
                    found = None
        self._tried = True
        self.usable = found is not None
        return found

    def agree(self, batch: Tensor, number: int, single: Tensor) -> bool:
        """Return whether row ``number`` is ``single``; or give up.

        By the largest change of any row from row 0: where a parameter was read from elsewhere, the
        rows that should show it do not change.
        """
        moved = float((batch[1:] - batch[0]).norm(dim=1).max())
        rounding = torch.finfo(single.dtype).eps * float(single.norm())
        error = float((single - batch[number]).norm())
        self.usable = not error > SHARE * moved + ROUNDINGS * rounding
        return self.usable

    def _batched(self, recording: Recording, places: Tensor) -> Tensor:
        parameters = recording.parameters
        closed = _Closed(parameters.model, self._residuals)
        values = {
            f"model.{name}": places[:, start : start + p.numel()].view(-1, *p.shape)
            for name, p, start in zip(
                parameters.names, parameters.sources, parameters.offsets, strict=True
            )
        }
        result: Tensor = vmap(lambda given: functional_call(closed, given, ()))(values)
        if result.numel() > MOST:
            raise ValueError("too many numbers")
        return result


class _Closed(nn.Module):
    """A function without arguments as the forward pass of a module that holds the model."""

    def __init__(self, model: nn.Module, function: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._function = function

    def forward(self) -> Tensor:
        """What the function returns at the parameters that stand in the model now."""
        return self._function()


def _plain(recording: Recording) -> bool:
    """Whether the rows hold the model's own parameters, real, whole and of the rows' dtype."""
    parameters = recording.parameters
    own: Sequence[Tensor] = parameters.parameters
    return (
        parameters.shards is None
        and recording.processes.size == 1
        and all(
            p is s and p.dtype == recording.ring.dtype
            for p, s in zip(own, parameters.sources, strict=True)
        )
        and not any(p.is_complex() for p in parameters.stepped)
    )
