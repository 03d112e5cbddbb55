"""The optimizer's normalized update: what makes weights under momentum an autonomous system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from koopcore.training.optimizers import Stepper, members
from koopcore.training.recording.parameters import real


def normalized_update(optimizer: Stepper, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the direction in which ``optimizer`` is moving each parameter, without the rate.

    From the optimizer's state ``(m, v, ...)`` and, where it keeps no momentum, from ``.grad``:

    * Adam and its kin (``exp_avg``, ``exp_avg_sq``): ``m / (sqrt(v) + eps)``;
    * momentum (``momentum_buffer`` of SGD and RMSprop): the buffer;
    * Adadelta (``square_avg``, ``acc_delta``): ``g sqrt(u + eps) / sqrt(v + eps)``;
    * Adagrad (``sum``) and RMSprop (``square_avg``): ``g / (sqrt(v) + eps)``;
    * SGD without momentum: ``g``.

    A parameter that was never stepped gives zeros. Tensors have the parameters' shapes (complex
    ones a last axis of 2), in float32 (float64 for float64 parameters); nothing of the optimizer is
    changed. Cost: at most four passes over the state. Do not use it with LBFGS, whose history is
    one flat vector per group.

    The state of Adam is ``(w, m, v)``: its weights alone are no autonomous system. Formulas:
    Kingma & Ba 2015, Duchi et al. 2011, Zeiler 2012.
    """
    options = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    states = optimizer.state
    with torch.no_grad():
        return [
            _direction(states.get(p, {}), p, float(options[id(p)].get("eps", 0.0)))
            for p in parameters
        ]


def check_supported(optimizer: Stepper) -> None:
    """Raise ValueError for an optimizer whose update has no per-parameter state."""
    if any(isinstance(member, torch.optim.LBFGS) for member in members(optimizer)):
        raise ValueError(
            'observables="weights+update" needs one state per parameter, and LBFGS keeps one flat '
            'history; use observables="weights"'
        )


def _direction(state: dict[str, Any], parameter: Tensor, eps: float) -> Tensor:
    wide = parameter.dtype in (torch.float64, torch.complex128)
    dtype = torch.float64 if wide else torch.float32
    values = {name: real(t) for name, t in state.items() if isinstance(t, Tensor)}
    momentum: Tensor | None = values.get("exp_avg", values.get("momentum_buffer"))
    second: Tensor | None = values.get("exp_avg_sq")
    if momentum is not None:
        if second is None:
            return momentum.to(dtype, copy=True)
        return momentum.to(dtype) / second.to(dtype).sqrt().add_(eps)
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros_like(real(parameter), dtype=dtype)
    gradient = real(gradient.to_dense() if gradient.is_sparse else gradient)
    second = values.get("sum", values.get("square_avg"))
    if second is None:
        return gradient.to(dtype, copy=True)
    step: Tensor | None = values.get("acc_delta")
    if step is None:
        return gradient.to(dtype) / second.to(dtype).sqrt().add_(eps)
    ratio = step.to(dtype).add(eps).sqrt_() / second.to(dtype).add(eps).sqrt_()
    return ratio.mul_(gradient)
