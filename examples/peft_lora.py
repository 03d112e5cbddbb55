"""Koopman jumps of a LoRA adapter: what trains is recorded, what is frozen stays where it is.

pip install "koopcore[torch]" peft
python examples/peft_lora.py lora.png

A network that knows sin(2x) learns sin(2x + 1/2) by an adapter alone, with koopcore and without.
"""

from __future__ import annotations

import copy
import sys

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import koopcore


def train(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, accelerated: bool
) -> list[float]:
    """Fit ``model``, as far as it trains, to the points; return the losses, the last at the end."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adagrad(trained, lr=0.1)

    def loss() -> torch.Tensor:
        return nn.functional.mse_loss(model(x), y)

    if accelerated:
        koop = koopcore.attach(optimizer, model, loss=loss)
        print(koop.recorded)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        now = loss()
        now.backward()
        optimizer.step()
        losses.append(float(now.detach()))
    if accelerated:
        print(koop.stats)
    return [*losses, float(loss().detach())]


def main(picture: str | None = None, steps: int = 1000) -> dict[str, float]:
    """Train a network, then adapters of it both ways, and print the losses side by side."""
    torch.manual_seed(0)
    layers = [nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)]
    base = nn.Sequential(*layers)
    x = torch.linspace(-3, 3, 100)[:, None]
    train(base, x, torch.sin(2 * x), steps, accelerated=True)
    curves = {}
    for name in ("plain", "koopcore"):
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=["0", "2", "4"])
        adapted = get_peft_model(copy.deepcopy(base), config)
        shifted = torch.sin(2 * x + 0.5)
        curves[name] = train(adapted, x, shifted, steps, accelerated=name == "koopcore")
        print(f"{name:>9}: loss {curves[name][-1]:.2e} after {steps} steps of the adapter")
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3.4), dpi=110, layout="constrained")
        axes = figure.subplots()
        for (name, losses), color in zip(curves.items(), ("#2e6f94", "#d4581f"), strict=True):
            axes.plot(losses, color=color, lw=1.2, label=name)
        axes.set(xlabel="step of the adapter", ylabel="loss", yscale="log")
        axes.legend(frameon=False)
        figure.savefig(picture)
    return {name: losses[-1] for name, losses in curves.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
