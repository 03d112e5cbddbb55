"""What becomes of the optimizer's moments when the weights jump: keep, reset or rescale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from koopcore.training.settings import Moments

#: State that grows with the first, and with the second power of the gradient.
_FIRST = ("exp_avg", "momentum_buffer")
_SECOND = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta")


@torch.no_grad()
def carry_over(
    rule: Moments, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], slowdown: float
) -> None:
    """Adapt the state of ``parameters`` in ``optimizer`` after an accepted jump, in place.

    Args:
        rule: ``"keep"``: nothing, except that LBFGS forms no curvature pair across the jump, which
            would mix gradients of two places; ``"reset"``: as before the first step;
            ``"rescale"``: first moments times ``slowdown``, second moments times its square.
        slowdown: ratio of the trajectory's speed after the jump to that before, at least 0.

    Why ``keep`` is the default: resetting or shrinking Adam's moments acts as a hidden increase of
    the learning rate and loses at a tuned rate, and Adagrad's sum *is* its rate. Use
    ``rescale`` where the learning rate is well below the best one; at the best rate ``keep`` was
    better for every optimizer measured.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        for state in optimizer.state.values():
            if rule == "reset":
                state.clear()
            elif "t" in state:
                state["t"] = 0.0  # a step of length 0 gives y.s = 0, and LBFGS skips the pair
    elif rule == "reset":
        for parameter in parameters:
            _reset(optimizer.state.get(parameter, {}), parameter, _group(optimizer, parameter))
    elif rule == "rescale":
        factor = min(max(slowdown, 0.0), 1.0)
        for parameter in parameters:
            state = optimizer.state.get(parameter, {})
            _scale(state, _FIRST, factor)
            _scale(state, _SECOND, factor * factor)


def _group(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Mapping[str, Any]:
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def _reset(state: dict[str, Any], parameter: Tensor, group: Mapping[str, Any]) -> None:
    for name, value in state.items():
        if not isinstance(value, Tensor):
            continue
        if name == "momentum_buffer" and "nesterov" in group:
            # SGD starts its buffer from the next gradient; a zero buffer would damp it.
            state[name] = None
        elif name == "sum":
            value.fill_(float(group.get("initial_accumulator_value", 0.0)))
        elif value.shape == parameter.shape or name == "step":
            value.zero_()


def _scale(state: Mapping[str, Any], names: Sequence[str], factor: float) -> None:
    for name in names:
        value = state.get(name)
        if isinstance(value, Tensor):
            value.mul_(factor)
