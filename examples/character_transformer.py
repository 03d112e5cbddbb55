"""A small transformer learns characters in minibatches: validation at the averages koopcore keeps.

python examples/character_transformer.py characters.png
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import koopcore
from koopcore.lab.problems import characters


def main(picture: str | None = None, steps: int = 1200, every: int = 100) -> dict[str, float]:
    """Train; at every so many steps validate at the weights, at one EMA, and at koopcore's best."""
    text = characters.load()
    model = characters.network(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(0)
    held = slice(0, 128)  # of the training text: averages are compared on it, never validated on

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(text.inputs[held]), text.labels[held])

    def validation() -> float:
        with torch.no_grad():
            logits = model(text.validation_inputs)
            return float(nn.functional.cross_entropy(logits, text.validation_labels))

    koop = koopcore.attach(optimizer, model, loss=loss)
    curves: dict[str, list[float]] = {"weights": [], "EMA 0.99": [], "koop.averaged()": []}
    for step in range(1, steps + 1):
        rows = torch.randint(0, len(text.inputs), (32,), generator=order)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(text.inputs[rows]), text.labels[rows]).backward()
        optimizer.step()
        if step % every == 0:
            curves["weights"].append(validation())
            with koop.averaged(0.99):
                curves["EMA 0.99"].append(validation())
            with koop.averaged() as name:
                curves["koop.averaged()"].append(validation())
    for label, values in curves.items():
        print(f"{label:>16}: validation loss {values[-1]:.3f} after {steps} steps")
    print(f"the best average was {name}\n{koop.stats}")
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3.4), dpi=110, layout="constrained")
        axes = figure.subplots()
        at = range(every, steps + 1, every)
        for (label, values), color in zip(
            curves.items(), ("#8a929d", "#2e6f94", "#d4581f"), strict=True
        ):
            axes.plot(at, values, "o-", ms=3, color=color, label=label)
        axes.set(xlabel="optimizer step", ylabel="validation loss")
        axes.legend(frameon=False)
        figure.savefig(picture)
    return {label: values[-1] for label, values in curves.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
