"""``koopcore.attach`` on MNIST: under minibatch noise the gain is an average, chosen by a loss.

python examples/mnist.py
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import swa_utils

import koopcore
from koopcore.lab.problems import mnist


def train(steps: int, attached: bool) -> tuple[dict[str, float], str]:
    """Train 784:20:20:20:10; return validation losses by name and what koopcore did."""
    digits = mnist.load()  # 10,000 digits that the package carries
    model = mnist.network(seed=0)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=2.0)
    batches = mnist.Minibatches(digits, size=64, seed=0)
    images, labels = digits.inputs[:1000], digits.labels[:1000]

    def loss() -> torch.Tensor:  # one fixed batch: averages are compared on the same digits
        return nn.functional.cross_entropy(model(images), labels)

    if not attached:
        average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.99))
        optimizer.register_step_post_hook(lambda *_: average.update_parameters(model))
        mnist.train(model, optimizer, batches, steps)
        losses = {"plain": mnist.validation_loss(model, digits)}
        return {**losses, "EMA 0.99": mnist.validation_loss(average.module, digits)}, ""
    koop = koopcore.attach(optimizer, model, loss=loss)
    mnist.train(model, optimizer, batches, steps)  # as before, to the last bit of the weights
    with koop.averaged() as name:
        losses = {"koopcore": mnist.validation_loss(model, digits)}
        return losses, f"koopcore took the average {name}\n{koop.stats}"


def main(steps: int = 1000) -> dict[str, float]:
    """Train both ways and print the validation losses below each other."""
    plain, _ = train(steps, attached=False)
    averaged, report = train(steps, attached=True)
    losses = plain | averaged
    for name, value in losses.items():
        print(f"{name:>9}: validation loss {value:.3f} after {steps} steps")
    print(report)
    return losses


if __name__ == "__main__":
    main()
