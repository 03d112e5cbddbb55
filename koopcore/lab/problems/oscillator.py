"""A differential equation solved by small networks: the nonlinear oscillator, many at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import koopcore as kc
from koopcore.lab.options import PartitionName

SHAPES: tuple[tuple[int, int, bool], ...] = ((10, 1, True), (10, 10, True), (2, 10, True))
"""(fan_out, fan_in, bias) of the 1:10:10:2 network, as `Layout.from_shapes` takes them."""

PARAMETERS = sum(fan_out * (fan_in + bias) for fan_out, fan_in, bias in SHAPES)
"""152 weights and biases of one network."""

PAPER: dict[str, Any] = {
    "speedup": {"adam": 98, "adagrad": 132, "adadelta": 141},
    "error_ratio": 0.0044,
}
"""Table 1 of Dogra & Redman 2020: window speed-ups; and their median error ratio."""

_VIEWS = [(fan_out, width) for fan_out, fan_in, _ in SHAPES for width in (fan_in, 1)]
_WIDTHS = [fan_out * width for fan_out, width in _VIEWS]


@dataclass(frozen=True)
class OscillatorBatch:
    """Networks that solve Hamilton's equations of a nonlinear oscillator, trained side by side.

    ``H = (x² + p²)/2 + λx⁴/4``; a 1:10:10:2 sigmoid network ``N(t)`` gives the trial solution

        x(t) = x0 + (1 - e⁻ᵗ) N₁(t),     p(t) = p0 + (1 - e⁻ᵗ) N₂(t),

    which meets the initial condition exactly, and the loss of one network is

        L = mean (ẋ - p)² + mean (ṗ + x + λx³)²      over ``points`` fixed times in [0, duration].

    One network is one row of 152 parameters: for each layer its weights (row-major), then its
    biases, the order of `Layout.from_shapes(SHAPES)`. Rows never mix, so an element-wise optimizer
    (Adam, Adagrad, Adadelta) on the whole batch trains every network as if it were alone.

    The time derivative is carried forward through the sigmoids in closed form and the gradient is
    written out by hand: one forward and one backward sweep of batched products over values and
    tangents laid side by side, where automatic differentiation needs two backward sweeps.

    networks : rows of `initial`; the other methods take any number of rows.
    seed     : network ``i`` depends on ``(seed, i)`` alone, not on how many there are.
    duration : end of the time interval, dimensionless (the oscillator's small-amplitude
               period is 2π).
    dtype    : float32 or float64 of parameters, loss and gradient.

    Source: Dogra & Redman, NeurIPS 2020, section 4; the trial solution is Mattheakis et al. 2020.
    Not for long intervals: the loss weighs all times equally, and one network of this size does
    not resolve many periods.
    """

    networks: int = 12
    seed: int = 0
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    points: int = 200
    duration: float = 2 * math.pi
    stiffness: float = 1.0
    x0: float = 1.3
    p0: float = 1.0
    times: Tensor = field(init=False, repr=False, compare=False)
    _rise: Tensor = field(init=False, repr=False, compare=False)
    _decay: Tensor = field(init=False, repr=False, compare=False)
    _start: Tensor = field(init=False, repr=False, compare=False)
    _sign: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.networks < 1:
            raise ValueError(f"networks is {self.networks}; at least 1 is needed")
        if self.points < 2:
            raise ValueError(f"points is {self.points}; at least 2 times are needed")
        times = torch.linspace(0.0, self.duration, self.points, dtype=torch.float64)
        # Computed in float64 and rounded once: 1 - e⁻ᵗ cancels near t = 0.
        for name, value in (
            ("times", times),
            ("_rise", -torch.expm1(-times)),
            ("_decay", torch.exp(-times)),
            ("_start", torch.tensor([[self.x0], [self.p0]], dtype=torch.float64)),
            ("_sign", torch.tensor([[-1.0], [1.0]], dtype=torch.float64)),
        ):
            object.__setattr__(self, name, value.to(self.device, self.dtype))

    def initial(self) -> Tensor:
        """Random parameters ``(networks, 152)``, uniform in ±1/√fan_in as in `torch.nn.Linear`."""
        rows = np.empty((self.networks, PARAMETERS))
        for network, row in enumerate(rows):
            random = np.random.default_rng([self.seed, network])
            parts = []
            for fan_out, fan_in, bias in SHAPES:
                bound = fan_in**-0.5
                parts.append(random.uniform(-bound, bound, fan_out * (fan_in + bias)))
            row[:] = np.concatenate(parts)
        return torch.from_numpy(rows).to(self.device, self.dtype)

    def loss(self, params: Tensor) -> Tensor:
        """Loss of every network, ``(rows, 152) -> (rows,)``; differentiable once.

        Raises ValueError for another shape. Cost: about 60 kflop per row forward, three times
        that where a gradient is wanted.
        """
        if not torch.is_grad_enabled():
            return self._forward(params).loss  # needs_input_grad does not see no_grad
        return _Loss.apply(params, self)

    def residuals(self, params: Tensor) -> Tensor:
        """Defects of both equations, ``(rows, 2 points)``, whose squares sum to the losses.

        Under ``torch.func.vmap`` more rows are computed at once.
        """
        return _Residuals.apply(params, self)

    def loss_and_gradient(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Loss ``(rows,)`` and its gradient ``(rows, 152)``, outside the autograd graph."""
        with torch.no_grad():
            sweep = self._forward(params)
            return sweep.loss, self._backward(params, sweep)

    def solution(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Trial solution ``x(t), p(t)`` at `times`, each ``(rows, points)``."""
        with torch.no_grad():
            sweep = self._forward(params)
        return sweep.state[:, 0], sweep.state[:, 1]

    def _forward(self, params: Tensor) -> _Sweep:
        w1, b1, w2, b2, w3, b3 = _unpack(params)
        rows, n = params.shape[0], self.points
        # Values in [:, :, 0], time derivatives in [:, :, 1]: one batched product serves both.
        hidden1 = params.new_empty(rows, 10, 2, n)
        hidden2 = torch.empty_like(hidden1)
        value, tangent = hidden1.unbind(2)
        torch.sigmoid(torch.addcmul(b1, w1, self.times), out=value)
        slope1 = torch.addcmul(value, value, value, value=-1.0)
        torch.mul(slope1, w1, out=tangent)
        drive, drive_rate = torch.bmm(w2, hidden1.view(rows, 10, -1)).view(rows, 10, 2, n).unbind(2)
        value, tangent = hidden2.unbind(2)
        torch.sigmoid(drive + b2, out=value)
        slope2 = torch.addcmul(value, value, value, value=-1.0)
        torch.mul(slope2, drive_rate, out=tangent)
        net, net_rate = torch.bmm(w3, hidden2.view(rows, 10, -1)).view(rows, 2, 2, n).unbind(2)
        net = net + b3
        state = torch.addcmul(self._start, self._rise, net)
        rate = torch.addcmul(self._decay * net, self._rise, net_rate)
        x = state[:, 0]
        cubic = self.stiffness * x * x
        residual = torch.addcmul(rate, state.flip(1), self._sign)  # (ẋ - p, ṗ + x)
        residual[:, 1].addcmul_(cubic, x)
        loss = residual.square().sum((1, 2)) / n
        return _Sweep(loss, state, residual, cubic, hidden1, slope1, hidden2, slope2)

    def _backward(self, params: Tensor, sweep: _Sweep) -> Tensor:
        _, _, w2, _, w3, _ = _unpack(params)
        rows, n = params.shape[0], self.points
        gradient = params.new_empty(params.shape)  # contiguous, so that _unpack gives views
        g1, gb1, g2, gb2, g3, gb3 = _unpack(gradient)

        toward_rate = sweep.residual * (2.0 / n)  # ∂L/∂(ẋ, ṗ)
        toward_x, toward_p = (toward_rate.flip(1) * self._sign.flip(0)).unbind(1)  # ∂L/∂(x, p)
        toward_x.addcmul_(sweep.cubic, toward_rate[:, 1], value=3.0)
        toward_state = torch.stack((toward_x, toward_p), 1)
        back = params.new_empty(rows, 2, 2, n)
        value, tangent = back.unbind(2)
        torch.addcmul(self._decay * toward_rate, self._rise, toward_state, out=value)
        torch.mul(self._rise, toward_rate, out=tangent)
        torch.sum(value, -1, keepdim=True, out=gb3)
        back = back.view(rows, 2, -1)
        torch.bmm(back, sweep.hidden2.view(rows, 10, -1).mT, out=g3)

        back = torch.bmm(w3.mT, back).view(rows, 10, 2, n)
        back = _through_sigmoid(back, sweep.hidden2, sweep.slope2)
        torch.sum(back[:, :, 0], -1, keepdim=True, out=gb2)
        back = back.view(rows, 10, -1)
        torch.bmm(back, sweep.hidden1.view(rows, 10, -1).mT, out=g2)

        back = torch.bmm(w2.mT, back).view(rows, 10, 2, n)
        value, tangent = _through_sigmoid(back, sweep.hidden1, sweep.slope1).unbind(2)
        torch.sum(value, -1, keepdim=True, out=gb1)
        # The input of layer 1 is t, its time derivative is 1.
        torch.sum(torch.addcmul(tangent, value, self.times), -1, keepdim=True, out=g1)
        return gradient


@dataclass(frozen=True)
class _Sweep:
    """What the backward sweep needs; hidden layers are ``(rows, 10, 2, points)``."""

    loss: Tensor
    state: Tensor
    residual: Tensor
    cubic: Tensor
    hidden1: Tensor
    slope1: Tensor
    hidden2: Tensor
    slope2: Tensor


def _through_sigmoid(back: Tensor, hidden: Tensor, slope: Tensor) -> Tensor:
    """Adjoint of a sigmoid ``S`` and its tangent, ``(z, ż) -> (a, ȧ) = (S(z), S'(z) ż)``.

    The gradients ``(g, ġ)`` of ``(a, ȧ)`` become ``S' g + (1 - 2a) ȧ ġ`` of z, because
    ``S'' ż = (1 - 2S) S' ż``, and ``S' ġ`` of ż. Shapes ``(rows, width, 2, points)``.
    """
    value, tangent = hidden.unbind(2)
    curvature = torch.addcmul(tangent, value, tangent, value=-2.0)
    result = slope.unsqueeze(2) * back
    result[:, :, 0].addcmul_(curvature, back[:, :, 1])
    return result


def _unpack(params: Tensor) -> tuple[Tensor, ...]:
    """Views ``(rows, fan_out, fan_in)`` and ``(rows, fan_out, 1)`` of every layer in turn."""
    if params.ndim != 2 or params.shape[1] != PARAMETERS:
        raise ValueError(
            f"params has shape {tuple(params.shape)}; expected (rows, {PARAMETERS}), one network "
            "a row"
        )
    pieces = params.split(_WIDTHS, 1)
    return tuple(
        piece.reshape(-1, fan_out, width)
        for piece, (fan_out, width) in zip(pieces, _VIEWS, strict=True)
    )


class _Residuals(torch.autograd.Function):
    """The residuals, without a gradient."""

    @staticmethod
    def forward(params: Tensor, problem: OscillatorBatch) -> Tensor:
        residual = problem._forward(params).residual
        return residual.flatten(1) / math.sqrt(problem.points)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info, in_dims, params: Tensor, problem: OscillatorBatch):  # type: ignore[no-untyped-def]
        rows = params.movedim(in_dims[0], 0)
        residuals = _Residuals.apply(rows.flatten(0, 1), problem)
        return residuals.view(*rows.shape[:2], -1), 0


class _Loss(torch.autograd.Function):
    """The loss with its hand-written gradient; a second derivative is not defined."""

    @staticmethod
    def forward(ctx, params: Tensor, problem: OscillatorBatch) -> Tensor:  # type: ignore[no-untyped-def]
        sweep = problem._forward(params)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(problem._backward(params, sweep))
        return sweep.loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return upstream[:, None] * gradient, None


def batched_partition(partition: PartitionName, networks: int) -> kc.Partition:
    """The partition of ``networks`` networks lying side by side in one flat vector.

    "layers", "nodes" and "weights" are those of one long chain of layers; "network" gives every
    network its own group. No operator ever sees two networks.
    """
    if partition == "network":
        size = networks * PARAMETERS
        groups = [slice(k, k + PARAMETERS) for k in range(0, size, PARAMETERS)]
        return kc.Partition.groups(size, groups)
    layout = kc.Layout.from_shapes(SHAPES * networks)
    chain: kc.Partition = getattr(kc.Partition, partition)(layout)
    return chain
