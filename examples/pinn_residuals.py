"""A physics-informed network with residual jumps: a stiff boundary layer, Adam as it is.

python examples/pinn_residuals.py pinn.png
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import koopcore

WIDTH = 0.1  # of the layer: WIDTH u'' + u' = 0 on [0, 1], u(0) = 0, u(1) = 1


def exact(x: Tensor) -> Tensor:
    """The solution: a jump near 0, flat behind."""
    return (1 - torch.exp(-x / WIDTH)) / (1 - torch.exp(torch.tensor(-1 / WIDTH)))


class Solver:
    """u(x) = x + x (1 - x) network(x), which meets both ends by itself, and its residuals."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        layers = [nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)]
        self.network = nn.Sequential(*layers).double()
        self.points = torch.linspace(0, 1, 80, dtype=torch.float64)[:, None] ** 1.5

    def at(self, x: Tensor) -> Tensor:
        return x + x * (1 - x) * self.network(x)

    def residuals(self) -> Tensor:
        """WIDTH u'' + u' at the points, scaled so that the squares sum to their mean."""
        x = self.points.clone().requires_grad_()
        slope = torch.autograd.grad(self.at(x).sum(), x, create_graph=True)[0]
        bend = torch.autograd.grad(slope.sum(), x, create_graph=True)[0]
        return (WIDTH * bend + slope).flatten() / len(x) ** 0.5


def train(steps: int, jumps: bool) -> tuple[list[float], Solver]:
    """Losses of all steps, and what was learned."""
    solver = Solver()
    optimizer = torch.optim.Adam(solver.network.parameters(), lr=3e-3)
    if jumps:
        koopcore.attach(optimizer, solver.network, residuals=solver.residuals)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = solver.residuals().square().sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, solver


def main(picture: str | None = None, steps: int = 1500) -> dict[str, float]:
    """Train both ways, print the losses and the errors of the solution."""
    x = torch.linspace(0, 1, 401, dtype=torch.float64)[:, None]
    runs = {name: train(steps, jumps=name != "Adam") for name in ("Adam", "Adam, residual jumps")}
    errors = {}
    for name, (losses, solver) in runs.items():
        with torch.no_grad():
            errors[name] = float((solver.at(x) - exact(x)).abs().max())
        print(f"{name:>20}: loss {losses[-1]:.1e}, largest error {errors[name]:.1e}")
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
        left, right = figure.subplots(1, 2)
        for (name, (losses, solver)), color in zip(
            runs.items(), ("#2e6f94", "#d4581f"), strict=True
        ):
            left.plot(losses, color=color, lw=1, label=name)
            with torch.no_grad():
                right.plot(x, (solver.at(x) - exact(x)).abs() + 1e-16, color=color, lw=1)
        left.set(yscale="log", xlabel="optimizer step", ylabel="loss")
        right.set(yscale="log", xlabel="x", ylabel="error of the solution")
        left.legend(frameon=False)
        figure.savefig(picture)
    return errors


if __name__ == "__main__":
    main(*sys.argv[1:])
