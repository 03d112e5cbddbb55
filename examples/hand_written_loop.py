"""The functional API in a hand-written loop: record, fit, predict, keep the best, by yourself.

python examples/hand_written_loop.py
"""

from __future__ import annotations

import torch
from torch import nn

import koopcore
from koopcore.training import SnapshotRing

WINDOW, STRIDE = 9, 6
HORIZONS = [2, 8, 32, 128]  # snapshots ahead: a quarter window to sixteen windows


def main(steps: int = 1500, jumps: bool = True) -> float:
    """Train a small network, jumping ahead whenever a prediction has a lower loss."""
    torch.manual_seed(0)
    layers = [nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 1)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    x = torch.linspace(-3, 3, 100)[:, None]
    y = torch.sin(2 * x)

    layout = koopcore.Layout.from_module(model, align=32)  # where each parameter stands in a row
    part = koopcore.Partition.network(layout)  # one operator for all of them
    ring = SnapshotRing(list(model.parameters()), WINDOW)

    def loss() -> torch.Tensor:
        return nn.functional.mse_loss(model(x), y)

    accepted = 0
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if not jumps or step % STRIDE:
            continue
        ring.capture()
        if not ring.full:
            continue
        operators = koopcore.fit(ring.data, part, order=ring.order)
        places = [ring.newest().clone(), *operators.predict(HORIZONS)]  # stay, or go
        losses = []
        with torch.no_grad():
            for place in places:
                ring.write(place)
                losses.append(float(loss()))
        best = min(range(len(places)), key=losses.__getitem__)
        ring.write(places[best])
        ring.clear()
        accepted += best > 0
    final = float(loss().detach())
    print(f"loss {final:.2e} after {steps} steps, {accepted} jumps")
    return final


if __name__ == "__main__":
    print("plain:   ", end=" ")
    main(jumps=False)
    print("koopcore:", end=" ")
    main()
