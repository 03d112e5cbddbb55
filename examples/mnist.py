"""``koopcore.attach`` on MNIST: under minibatch noise the gain is an average, chosen by a loss.

python examples/mnist.py
"""

from __future__ import annotations

import torch
from torch import nn

import koopcore
from koopcore.lab.problems import mnist


def train(steps: int, attached: bool) -> tuple[float, str]:
    """Train 784:20:20:20:10; return the validation loss and what koopcore did."""
    digits = mnist.load()  # 10,000 digits that the package carries
    model = mnist.network(seed=0)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=2.0)
    batches = mnist.Minibatches(digits, size=64, seed=0)
    images, labels = digits.inputs[:1000], digits.labels[:1000]

    def loss() -> torch.Tensor:  # one fixed batch: averages are compared on the same digits
        return nn.functional.cross_entropy(model(images), labels)

    if not attached:
        mnist.train(model, optimizer, batches, steps)
        return mnist.validation_loss(model, digits), "plain training"
    koop = koopcore.attach(optimizer, model, loss=loss)
    mnist.train(model, optimizer, batches, steps)  # as before, to the last bit of the weights
    with koop.averaged() as name:
        return mnist.validation_loss(model, digits), f"average {name}\n{koop.stats}"


def main(steps: int = 1000) -> dict[str, float]:
    """Train both ways and print the validation losses side by side."""
    losses = {}
    for name, attached in (("plain", False), ("koopcore", True)):
        losses[name], report = train(steps, attached)
        print(f"{name:>9}: validation loss {losses[name]:.3f} after {steps} steps, {report}")
    return losses


if __name__ == "__main__":
    main()
