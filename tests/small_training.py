"""A small regression problem, the optimizers to try on it, and bitwise snapshots of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from koopcore.training.attach import attach
from koopcore.training.attached import Attached
from koopcore.training.recording.parameters import same_bits

#: Name -> optimizer over parameters, at a rate at which the regression below descends smoothly.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=3e-3, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "rmsprop-momentum": lambda p: torch.optim.RMSprop(p, lr=3e-4, momentum=0.9),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.02, max_iter=2, history_size=4),
}


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """1:8:8:1 with tanh: 97 parameters."""
    torch.manual_seed(seed)
    layers = [nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)]
    return nn.Sequential(*layers).to(dtype)


def noisy_network(seed: int = 0) -> nn.Sequential:
    """With batch norm and dropout, which draw on buffers and random numbers in training mode."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)
    )


def points(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """32 points of a sine."""
    x = torch.linspace(-2, 2, 32, dtype=dtype)[:, None]
    return x, torch.sin(2 * x)


def loss_of(model: nn.Module, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    """The mean squared error of ``model`` on the points."""
    x, y = points(dtype)
    return lambda: nn.functional.mse_loss(model(x).to(y.dtype), y)


def train(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], steps: int) -> list[float]:
    """An ordinary loop; the closure form, so that LBFGS is no exception."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return [float(optimizer.step(closure).detach()) for _ in range(steps)]


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of all parameters, buffers and tensors in the optimizer's state, in a fixed order."""
    state = optimizer.state_dict()["state"]
    found = [p.detach().clone() for p in model.parameters()]
    found += [b.clone() for b in model.buffers()]
    for _, entry in sorted(state.items()):
        for _, value in sorted(entry.items(), key=lambda item: str(item[0])):
            values = value if isinstance(value, list) else [value]
            found += [v.detach().clone() for v in values if isinstance(v, Tensor)]
    return found


def identical(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal bit by bit."""
    return len(one) == len(other) and all(same_bits(a, b) for a, b in zip(one, other, strict=True))


def attached_run(steps: int = 200, name: str = "adagrad", **options: Any) -> Attached:
    """A run of the regression with koopcore attached."""
    model = network()
    stepper = OPTIMIZERS[name](model.parameters())
    koop = attach(stepper, model, loss=loss_of(model), **options)
    train(stepper, loss_of(model), steps)
    return koop
