"""A network that solves an oscillator: 17 snapshots of its training predict 2,000 steps more.

python examples/oscillator.py oscillator.png
"""

from __future__ import annotations

import sys

import torch

import koopcore as kc
from koopcore.lab.problems.oscillator import OscillatorBatch

WINDOW, STRIDE = 17, 25


def main(picture: str | None = None, steps: int = 8000, horizon: int = 80) -> dict[str, float]:
    """Train, record, predict; then train on and compare. horizon: in snapshots."""
    problem = OscillatorBatch(networks=1, seed=3, dtype=torch.float64)
    weights = problem.initial()[0].clone().requires_grad_()  # 152 numbers, one vector
    optimizer = torch.optim.Adagrad([weights], lr=0.05)
    losses: list[float] = []

    def train(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            loss = problem.loss(weights[None])[0]
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))

    train(steps)
    snapshots = [weights.detach().clone()]
    for _ in range(WINDOW - 1):
        train(STRIDE)
        snapshots.append(weights.detach().clone())
    recorded = len(losses)

    operator = kc.fit(torch.stack(snapshots))  # one operator for all 152
    path = operator.trajectory(horizon)  # (horizon, 152)
    with torch.no_grad():
        predicted = problem.loss(path)

    train(horizon * STRIDE)  # what it would have cost
    true = float(problem.loss(weights.detach()[None])[0])
    error = float((path[-1] - weights.detach()).norm() / (weights.detach() - snapshots[-1]).norm())
    print(
        f"{horizon * STRIDE} steps predicted: loss {float(predicted[-1]):.3e}, trained {true:.3e}; "
        f"weights off by {100 * error:.1f} % of their movement"
    )
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3.4), dpi=110, layout="constrained")
        axes = figure.subplots()
        at = range(recorded - 2000, len(losses)) if steps > 2000 else range(len(losses))
        axes.plot(at, [losses[k] for k in at], color="#2e6f94", lw=3, alpha=0.5, label="trained")
        ahead = [recorded + STRIDE * (k + 1) for k in range(horizon)]
        axes.plot(ahead, predicted, "--", color="#d4581f", label="predicted")
        axes.axvspan(recorded - STRIDE * (WINDOW - 1), recorded, color="#f2e9d8", label="recorded")
        axes.set(xlabel="optimizer step", ylabel="loss", yscale="log")
        axes.legend(frameon=False)
        figure.savefig(picture)
    return {"predicted": float(predicted[-1]), "trained": true, "error": error}


if __name__ == "__main__":
    main(*sys.argv[1:])
