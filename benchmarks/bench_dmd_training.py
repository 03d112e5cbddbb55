"""What do the variants of koopcore.dmd predict of training windows, where `attach` would jump?

    python benchmarks/bench_dmd_training.py

Networks that solve an oscillator's equations (152 parameters each) train by Adagrad, by Adam, and
by Adagrad with noise on every gradient. Of many windows of 17 snapshots the state one and four
windows later is predicted by each variant, with one operator per network. Prints JSON: the median
of |predicted - true| / |true movement|, and in how many of the windows the loss at the prediction
is below that where the window ends.
"""

import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import koopcore as kc
from koopcore.dmd import DMD, OptimizedDMD, UnstableForecastWarning, fixed_point
from koopcore.lab.problems.descent import Descent
from koopcore.lab.problems.oscillator import OscillatorBatch

WINDOW, STRIDE, NETWORKS, WARMUP, WINDOWS = 17, 10, 12, 3_000, 6
warnings.simplefilter("ignore", UnstableForecastWarning)


class Noisy:
    """The oscillator with normal noise on each gradient, a share of its length."""

    def __init__(self, problem: OscillatorBatch, share: float) -> None:
        self.problem, self.share = problem, share
        self.random = torch.Generator().manual_seed(0)

    def initial(self) -> torch.Tensor:
        return self.problem.initial()

    def loss_and_gradient(self, params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, gradient = self.problem.loss_and_gradient(params)
        noise = torch.randn(gradient.shape, generator=self.random, dtype=gradient.dtype)
        size = gradient.norm(dim=1, keepdim=True) / gradient.shape[1] ** 0.5
        return loss, gradient + self.share * size * noise


def of_dmd(**settings: Any) -> Callable[[np.ndarray, list[int]], np.ndarray]:
    return lambda x, horizons: DMD(**settings).fit(x).predict(horizons)


def engine(model: Any) -> Callable[[np.ndarray, list[int]], np.ndarray]:
    """What `attach` predicts with: the engine, one network after the other."""
    return lambda x, horizons: np.stack([kc.fit(one, model=model).predict(horizons) for one in x])


def line(x: np.ndarray, horizons: list[int]) -> np.ndarray:
    slope = (x[:, -1] - x[:, 0]) / (x.shape[1] - 1)
    return np.stack([x[:, -1] + T * slope for T in horizons], axis=1)


def rest(x: np.ndarray, horizons: list[int]) -> np.ndarray:
    state = fixed_point(x, 1e-6).state
    return np.stack([state] * len(horizons), axis=1)


VARIANTS: dict[str, Callable[[np.ndarray, list[int]], np.ndarray]] = {
    "attach: affine": engine("affine"),
    "attach: linear": engine("linear"),
    "line": line,
    "DMD(model='affine', rank=None)": of_dmd(rank=None, model="affine"),
    "the same, rank='svht'": of_dmd(rank="svht", model="affine"),
    "the same, rank=0.9999": of_dmd(rank=0.9999, model="affine"),
    "the same, rank=3": of_dmd(rank=3, model="affine"),
    "the same, rank=None, delays=3": of_dmd(rank=None, model="affine", delays=3),
    "the same, rank=3, delays=3": of_dmd(rank=3, model="affine", delays=3),
    "the same, rank=3, delays=5": of_dmd(rank=3, model="affine", delays=5),
    "the same, rank=3, noise='median'": of_dmd(rank=3, model="affine", noise="median"),
    "the same, rank=3, tls": of_dmd(rank=3, model="affine", tls=True),
    "OptimizedDMD(4)": lambda x, horizons: OptimizedDMD(4).fit(x).predict(horizons),
    "fixed_point(ridge=1e-6)": rest,
}


def study(optimizer: str, share: float) -> dict[str, Any]:
    problem = OscillatorBatch(NETWORKS, dtype=torch.float64)
    descent = Descent(Noisy(problem, share) if share else problem, optimizer)
    descent.advance(WARMUP)
    span = WINDOW - 1
    trace = descent.advance((WINDOWS + 5) * span * STRIDE, every=STRIDE).snapshots.numpy()
    horizons = [span, 4 * span]
    errors: dict[str, list[np.ndarray]] = {name: [] for name in VARIANTS}
    better: dict[str, list[np.ndarray]] = {name: [] for name in VARIANTS}
    for k in range(WINDOWS):
        begin = k * span
        end = begin + span
        x = np.ascontiguousarray(trace[begin : end + 1].transpose(1, 0, 2))
        true = np.stack([trace[end + T] for T in horizons], axis=1)
        moved = np.linalg.norm(true - x[:, -1:], axis=2)
        now = problem.loss(torch.from_numpy(x[:, -1])).numpy()
        for name, predict in VARIANTS.items():
            got = np.asarray(predict(x, horizons))
            errors[name].append(np.linalg.norm(got - true, axis=2) / moved)
            there = [problem.loss(torch.from_numpy(got[:, j].copy())).numpy() for j in (0, 1)]
            better[name].append(np.stack(there, axis=1) < now[:, None])
    return {
        name: {
            "error, 1 window": float(np.median(np.concatenate(errors[name])[:, 0])),
            "error, 4 windows": float(np.median(np.concatenate(errors[name])[:, 1])),
            "lower loss, 1 window": float(np.concatenate(better[name])[:, 0].mean()),
            "lower loss, 4 windows": float(np.concatenate(better[name])[:, 1].mean()),
        }
        for name in VARIANTS
    }


if __name__ == "__main__":
    report = {
        name: study(optimizer, share)
        for name, optimizer, share in (
            ("adagrad", "adagrad", 0.0),
            ("adam", "adam", 0.0),
            ("adagrad, gradient noise 0.3", "adagrad", 0.3),
        )
    }
    print(json.dumps(report, indent=2))
