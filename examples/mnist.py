"""``koopcore.attach`` on MNIST: jumps and an average of the weights, against minibatch noise.

python examples/mnist.py
"""

from __future__ import annotations

import torch
from torch import nn

import koopcore
from koopcore.lab.problems import mnist


def train(steps: int, accelerated: bool) -> tuple[float, str]:
    """Train 784:20:20:20:10; return the validation loss and what koopcore did."""
    digits = mnist.load()  # 10,000 digits that the package carries
    model = mnist.network(seed=0)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=2.0)
    batches = mnist.Minibatches(digits, size=64, seed=0)
    images, labels = digits.images[:1000], digits.labels[:1000]

    def loss() -> torch.Tensor:  # one fixed batch: candidates are compared on the same digits
        return nn.functional.cross_entropy(model(images), labels)

    if not accelerated:
        mnist.train(model, optimizer, batches, steps)
        return mnist.validation_loss(model, digits), "plain training"
    koop = koopcore.attach(
        optimizer,
        model,
        loss=loss,
        stride=40,
        record="mean",  # a snapshot is the mean over its stride
        candidates=("regression", "koopman"),  # a line through all of them, and rank 2
        rank=2,
        slack=0.0,  # the lowest loss, not the farthest place
        max_horizon=1,
        ladder=2,
        average=0.98,  # which a jump must beat too
    )
    mnist.train(model, optimizer, batches, steps)
    with koop.averaged():
        return mnist.validation_loss(model, digits), str(koop.stats)


def main(steps: int = 1000) -> dict[str, float]:
    """Train both ways and print the validation losses side by side."""
    losses = {}
    for name, accelerated in (("plain", False), ("koopcore", True)):
        losses[name], report = train(steps, accelerated)
        print(f"{name:>9}: validation loss {losses[name]:.3f} after {steps} steps ({report})")
    return losses


if __name__ == "__main__":
    main()
