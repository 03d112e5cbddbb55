"""Koopman jumps of a LoRA adapter: what trains is recorded, what is frozen stays where it is.

pip install "koopcore[torch]" peft
python examples/peft_lora.py

A network that knows sin(2x) learns sin(2x + 1/2) by an adapter alone, with koopcore and without.
"""

from __future__ import annotations

import copy

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import koopcore


def train(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, accelerated: bool
) -> float:
    """Fit ``model``, as far as it trains, to the points; return the final loss."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adagrad(trained, lr=0.1)

    def loss() -> torch.Tensor:
        return nn.functional.mse_loss(model(x), y)

    if accelerated:
        koop = koopcore.attach(optimizer, model, loss=loss)
        print(koop.recorded)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    if accelerated:
        print(koop.stats)
    return float(loss().detach())


def main(steps: int = 1000) -> dict[str, float]:
    """Train a network, then adapters of it both ways, and print the losses side by side."""
    torch.manual_seed(0)
    layers = [nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)]
    base = nn.Sequential(*layers)
    x = torch.linspace(-3, 3, 100)[:, None]
    train(base, x, torch.sin(2 * x), steps, accelerated=True)
    losses = {}
    for name in ("plain", "koopcore"):
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=["0", "2", "4"])
        adapted = get_peft_model(copy.deepcopy(base), config)
        shifted = torch.sin(2 * x + 0.5)
        losses[name] = train(adapted, x, shifted, steps, accelerated=name == "koopcore")
        print(f"{name:>9}: loss {losses[name]:.2e} after {steps} steps of the adapter")
    return losses


if __name__ == "__main__":
    main()
