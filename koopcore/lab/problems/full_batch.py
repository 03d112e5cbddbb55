"""Small problems of full batches: modules that hold their data, and are called for their loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from koopcore.lab.problems import mnist


class LogisticRegression(nn.Module):
    """Ten digits of 49 pixels, 400 of them drawn by the seed, with weight decay 1e-4; convex."""

    images: Tensor
    labels: Tensor

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        digits = mnist.pooled({})
        random = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(digits.inputs), generator=random)[:400]
        self.register_buffer("images", digits.inputs[drawn].to(dtype))
        self.register_buffer("labels", digits.labels[drawn])
        weight = torch.empty(10, 49, dtype=torch.float64).uniform_(-1 / 7, 1 / 7, generator=random)
        self.weight = nn.Parameter(weight.to(dtype))
        self.bias = nn.Parameter(torch.zeros(10, dtype=dtype))

    def forward(self) -> Tensor:
        """Cross entropy plus half the decay times the squared weights."""
        logits = nn.functional.linear(self.images, self.weight, self.bias)
        return nn.functional.cross_entropy(logits, self.labels) + 5e-5 * self.weight.square().sum()


class Factorization(nn.Module):
    """A 40 x 40 matrix, singular values 10, 5, 2.5, 1.25, 0.6, as the product of two factors."""

    matrix: Tensor

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)

        def normal() -> Tensor:
            return torch.randn(40, 5, generator=random, dtype=torch.float64)

        left, right = torch.linalg.qr(normal())[0], torch.linalg.qr(normal())[0]
        values = torch.tensor([10.0, 5.0, 2.5, 1.25, 0.6], dtype=torch.float64)
        self.register_buffer("matrix", ((left * values) @ right.T).to(dtype))
        self.left = nn.Parameter((0.1 * normal()).to(dtype))
        self.right = nn.Parameter((0.1 * normal()).to(dtype))

    def residuals(self) -> Tensor:
        """Entries of the difference, over the square root of 20."""
        return (self.left @ self.right.T - self.matrix).flatten() / math.sqrt(20.0)

    def forward(self) -> Tensor:
        """The sum of their squares."""
        return self.residuals().square().sum()


class Regression(nn.Module):
    """A 2:24:24:1 tanh network, 697 parameters, fitted to 200 values of sin 3x cos 2y + 0.3 x."""

    points: Tensor
    values: Tensor

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            points = 2.0 * torch.rand(200, 2, dtype=torch.float64) - 1.0
            self.network = nn.Sequential(
                nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1)
            ).to(dtype)
        x, y = points.unbind(1)
        self.register_buffer("points", points.to(dtype))
        self.register_buffer("values", ((3 * x).sin() * (2 * y).cos() + 0.3 * x).to(dtype))

    def residuals(self) -> Tensor:
        """Errors over the square root of their number."""
        output: Tensor = self.network(self.points)
        return (output[:, 0] - self.values) / math.sqrt(len(self.values))

    def forward(self) -> Tensor:
        """Mean squared error."""
        return self.residuals().square().sum()


class HenonHeiles(nn.Module):
    """A 1:24:24:4 tanh network that solves a chaotic Hamiltonian system, t in [0, 2 pi].

    ``H = (p² + q² + x² + y²)/2 + x² y - y³/3`` from (0.3, -0.3, 0.3, 0.15); the trial solution
    meets the start exactly, the loss is the mean squared defect of the equations at 120 times.
    Source: Mattheakis et al. 2020.
    """

    times: Tensor
    start: Tensor

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(1, 24).to(dtype)
            self.second = nn.Linear(24, 24).to(dtype)
            self.last = nn.Linear(24, 4).to(dtype)
        times = torch.linspace(0.0, 2 * math.pi, 120, dtype=torch.float64)[:, None]
        self.register_buffer("times", times.to(dtype))
        self.register_buffer("start", torch.tensor([0.3, -0.3, 0.3, 0.15], dtype=dtype))

    def residuals(self) -> Tensor:
        """Defects of the four equations at all times, over the square root of the times."""
        hidden = torch.tanh(self.first(self.times))
        rate = (1 - hidden * hidden) * self.first.weight[:, 0]
        hidden = torch.tanh(self.second(hidden))
        rate = (1 - hidden * hidden) * (rate @ self.second.weight.T)
        net, net_rate = self.last(hidden), rate @ self.last.weight.T
        rise, decay = -torch.expm1(-self.times), torch.exp(-self.times)
        x, y, p, q = (self.start + rise * net).unbind(1)
        dx, dy, dp, dq = (decay * net + rise * net_rate).unbind(1)
        defects = (dx - p, dy - q, dp + x + 2 * x * y, dq + y + x * x - y * y)
        return torch.cat(defects) / math.sqrt(len(self.times))

    def forward(self) -> Tensor:
        """The sum of their squares."""
        return self.residuals().square().sum()
