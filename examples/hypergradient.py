"""Gradients through a prediction: tune a learning rate by the loss predicted 60 steps ahead.

A few steps of gradient descent are unrolled, `koopcore.torch_ops.Endpoint` predicts the weights far
behind them, and the loss there is differentiated by the learning rate: backpropagation through 8
steps instead of 68.

python examples/hypergradient.py
"""

from __future__ import annotations

import torch
from torch import Tensor

import koopcore

STEPS, AHEAD = 8, 60


def problem() -> tuple[Tensor, Tensor]:
    """Least squares with two time scales: inputs (64, 3) and targets (64,)."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    inputs = inputs * torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    return inputs, inputs @ torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)


def loss_at(weights: Tensor) -> Tensor:
    """The mean squared error of a linear model, one that `descend` comes down."""
    inputs, targets = problem()
    return (inputs @ weights - targets).square().mean()


def descend(rate: Tensor, steps: int) -> Tensor:
    """Gradient descent from zero: (steps + 1, 3) weights, differentiable by the rate."""
    inputs, targets = problem()
    rows = [torch.zeros(3, dtype=torch.float64)]
    for _ in range(steps):
        gradient = 2 * inputs.T @ (inputs @ rows[-1] - targets) / len(targets)
        rows.append(rows[-1] - rate * gradient)
    return torch.stack(rows)


def main(rounds: int = 40) -> tuple[float, float]:
    """Tune the rate; return the true losses after all 68 steps, at the first and the last rate."""
    part = koopcore.Partition.groups(3, [range(3)])  # one operator for the three weights
    endpoint = koopcore.torch_ops.Endpoint(part, AHEAD)
    log_rate = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    outer = torch.optim.Adam([log_rate], lr=0.1)
    losses = []
    for k in range(rounds + 1):
        outer.zero_grad()
        snapshots = descend(log_rate.exp(), STEPS)
        predicted = loss_at(endpoint(snapshots)[0])
        with torch.no_grad():
            true = loss_at(descend(log_rate.exp(), STEPS + AHEAD)[-1])
        losses.append(float(true))
        if k % 10 == 0:
            print(
                f"rate {float(log_rate.detach().exp()):.3f}: loss {AHEAD} steps ahead "
                f"{float(predicted.detach()):.3e} predicted, {float(true):.3e} in truth"
            )
        predicted.backward()
        outer.step()
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
