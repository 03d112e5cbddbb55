"""``koopcore.attach`` in an ordinary training loop: one line added, nothing else changed.

python examples/attach.py
"""

from __future__ import annotations

import torch
from torch import nn

import koopcore


def train(steps: int, accelerated: bool) -> tuple[float, str]:
    """Fit a sine with a small network; return the final loss and what koopcore did."""
    torch.manual_seed(0)
    layers = [nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 1)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    x = torch.linspace(-3, 3, 100)[:, None]
    y = torch.sin(2 * x)

    def loss() -> torch.Tensor:
        return nn.functional.mse_loss(model(x), y)

    report = "plain training"
    if accelerated:
        koop = koopcore.attach(optimizer, model, loss=loss)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    if accelerated:
        report = str(koop.stats)
    return float(loss().detach()), report


def main(steps: int = 1500) -> dict[str, float]:
    """Train both ways and print the losses side by side."""
    losses = {}
    for name, accelerated in (("plain", False), ("koopcore", True)):
        losses[name], report = train(steps, accelerated)
        print(f"{name:>9}: loss {losses[name]:.2e} after {steps} steps\n{report}")
    return losses


if __name__ == "__main__":
    main()
