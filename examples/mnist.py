"""``koopcore.attach`` on MNIST: a minibatch run that jumps when a fixed batch's loss falls.

python examples/mnist.py
"""

from __future__ import annotations

import torch
from torch import nn

import koopcore
from koopcore.problems import mnist


def train(steps: int, accelerated: bool) -> tuple[float, str]:
    """Train 784:20:20:20:10; return the validation loss and what koopcore did."""
    digits = mnist.load()  # 10,000 digits that the package carries
    model = mnist.network(seed=0)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=0.1)
    batches = mnist.Minibatches(digits, size=64, seed=0)
    images, labels = digits.images[:1000], digits.labels[:1000]

    def loss() -> torch.Tensor:  # one fixed batch: candidates are compared on the same digits
        return nn.functional.cross_entropy(model(images), labels)

    report = "plain training"
    if accelerated:
        # A snapshot is the mean of its stride, against minibatch noise.
        koop = koopcore.attach(optimizer, model, loss=loss, stride=20, record="mean")
    mnist.train(model, optimizer, batches, steps)
    if accelerated:
        report = str(koop.stats)
    return mnist.validation_loss(model, digits), report


def main(steps: int = 1000) -> dict[str, float]:
    """Train both ways and print the validation losses side by side."""
    losses = {}
    for name, accelerated in (("plain", False), ("koopcore", True)):
        losses[name], report = train(steps, accelerated)
        print(f"{name:>9}: validation loss {losses[name]:.3f} after {steps} steps ({report})")
    return losses


if __name__ == "__main__":
    main()
