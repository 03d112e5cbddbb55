"""Table 2 of Dogra & Redman 2020: an MNIST network under minibatch Adadelta, predicted once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from rich.console import RenderableType
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import koopcore as kc
from koopcore.lab.experiment import Cell, Context, Results, annotated, sheet
from koopcore.lab.problems import mnist
from koopcore.lab.problems.descent import one_thread
from koopcore.lab.problems.scores import Floats, equivalent_steps
from koopcore.lab.stopwatch import in_turns
from koopcore.training.jumping.bounds import GroupBounds

PAPER_SPEEDUP = 15
_OVERRUN = 2  # ordinary training goes on to 2 T, so that T^eq/T > 1 is measured, not capped
_TIMED_STEPS = 50

#: Which snapshots are recorded, partition, model, whether single groups are bounded.
Method: TypeAlias = tuple[str, str, str, bool]
ROWS: dict[str, Method] = {
    "koopcore, quasi-node": ("mean", "quasi-node", "affine", True),
    "F'F+, bounded": ("mean", "quasi-node", "linear", True),
    "affine, not bounded": ("mean", "quasi-node", "affine", False),
    "network, affine": ("mean", "network", "affine", False),
    "straight line": ("mean", "network", "trend", False),
    "paper": ("last", "quasi-node", "linear", False),
}
"""mean: over each stride; last: single snapshots, twice as many. bounded: no group outruns its
straight line (`GroupBounds`). paper: F'F+ of single snapshots. All at full rank."""


def settings(quick: bool, data: str | None = None) -> dict[str, Any]:
    """Regime, none of which is published: rate, batch, t1, t2, T, q; data as in `mnist.load`."""
    regime: dict[str, Any] = {
        "seeds": 10,
        "first_seed": 200,
        "rate": 0.1,
        "batch": 64,
        "t1": 1500,
        "window": 6,
        "stride": 100,
        "horizon": 250,
        "quasi_node": 49,
        "evaluate_every": 10,
        "smoothing": 25,
    }
    if quick:
        regime |= {"seeds": 2, "t1": 300, "stride": 40, "horizon": 100}
    return regime if data is None else {**regime, "data": data}


def cells(settings: dict[str, Any]) -> Sequence[Cell]:
    """One cell per seed, and one for the times."""
    steps = settings["t1"] + _inside(settings) + _OVERRUN * settings["horizon"]
    seeds = range(settings["first_seed"], settings["first_seed"] + settings["seeds"])
    trained = [Cell(f"seed {seed}", steps, partial(predictions, settings, seed)) for seed in seeds]
    return [*trained, Cell("seconds", 1, partial(seconds, settings))]


def predictions(settings: dict[str, Any], seed: int, context: Context) -> dict[str, Any]:
    """Train, record, predict by every row's method, train on, and score by validation loss."""
    digits = mnist.of_settings(settings)
    with one_thread(torch.device("cpu")):
        model, stepper, batches = _begin(digits, settings, seed)
        mnist.train(model, stepper, batches, settings["t1"], context.tick)
        before: list[float] = []
        watch = _Watch(model, digits, settings["evaluate_every"], before, context.tick)
        recorded = record(settings, model, stepper, batches, watch)
        guesses = {row: predict(settings, row, recorded, model) for row in ROWS} | {
            "window mean": recorded["mean"].mean(0)
        }
        other = copy.deepcopy(model)
        start = mnist.validation_loss(model, digits)
        curve = [start]
        watch = _Watch(model, digits, settings["evaluate_every"], curve, context.tick)
        mnist.train(model, stepper, batches, _OVERRUN * settings["horizon"], watch)
        reached = {}
        for row, vector in guesses.items():
            vector_to_parameters(vector, other.parameters())
            reached[row] = mnist.validation_loss(other, digits)
    smooth = smoothed(np.array([*before, *curve]), settings["smoothing"])[len(before) :]
    rows = {}
    for row, loss in reached.items():
        finite = loss if math.isfinite(loss) else math.inf
        equal = float(equivalent_steps(smooth, finite)[0]) * settings["evaluate_every"]
        rows[row] = {"loss": loss, "equivalent": equal, "relative": equal / settings["horizon"]}
    return {"rows": rows, "smoothed": smooth.tolist(), "validation": curve, "before": before}


def record(
    settings: dict[str, Any],
    model: nn.Module,
    stepper: torch.optim.Optimizer,
    batches: mnist.Minibatches,
    after_step: Callable[[], object],
) -> dict[str, Tensor]:
    """Train through the window; ``mean`` ``(window, P)`` and ``last`` ``(2 window, P)``."""
    stride = settings["stride"]
    parts: list[Tensor] = []
    snapshots: dict[str, list[Tensor]] = {"last": [], "mean": []}

    def keep() -> None:
        parts.append(parameters_to_vector(model.parameters()).detach())
        if len(parts) in {stride // 2, stride}:
            snapshots["last"].append(parts[-1])
        if len(parts) == stride:
            snapshots["mean"].append(torch.stack(parts).mean(0))
            parts.clear()
        after_step()

    mnist.train(model, stepper, batches, _inside(settings), keep)
    return {name: torch.stack(rows) for name, rows in snapshots.items()}


def predict(
    settings: dict[str, Any], row: str, recorded: dict[str, Tensor], model: nn.Module
) -> Tensor:
    """The parameters ``(P,)`` that a row's method predicts ``horizon`` steps after ``t2``."""
    return _predictor(settings, row, recorded, model)()


def _predictor(
    settings: dict[str, Any], row: str, recorded: dict[str, Tensor], model: nn.Module
) -> Callable[[], Tensor]:
    """Fit and prediction of a row; partition and bounds, which any window shares, made before."""
    kind, grouping, operator, bounded = ROWS[row]
    rows, part = recorded[kind], _partition(settings, grouping, model)
    ahead = _ahead(settings, kind)
    bounds = GroupBounds(part) if bounded else None

    def run() -> Tensor:
        vector: Tensor = kc.fit(rows, part, model=operator, horizon=ahead).predict(ahead)
        if bounds is None:
            return vector
        return bounds(vector, rows[-1], rows[0], ahead / (len(rows) - 1))

    return run


def _ahead(settings: dict[str, Any], kind: str) -> int:
    """The horizon in snapshots: from ``t2`` for single ones, which come twice a stride.

    The last mean stands for the middle of its stride, half a stride before ``t2``.
    """
    stride = settings["stride"]
    steps, each = settings["horizon"], stride // 2
    if kind == "mean":
        steps, each = steps + stride // 2, stride
    if steps % each:
        raise ValueError(
            f"{steps} steps ahead are not a whole number of snapshots {each} steps apart"
        )
    return int(steps // each)


def smoothed(losses: Floats, points: int) -> Floats:
    """Centred running mean of ``points`` (odd) evaluations; at the ends, of as many as there are.

    Centred, because a mean of past losses alone lags and would flatter the prediction.
    """
    kernel = np.ones(points)
    return np.convolve(losses, kernel, "same") / np.convolve(np.ones(len(losses)), kernel, "same")


class _Watch:
    """Appends the validation loss every so many steps."""

    def __init__(
        self,
        model: nn.Module,
        digits: mnist.Samples,
        every: int,
        losses: list[float],
        tick: Callable[[], object],
    ) -> None:
        self._model, self._digits, self._every = model, digits, every
        self._losses, self._tick = losses, tick
        self._step = 0

    def __call__(self) -> None:
        self._step += 1
        self._tick()
        if self._step % self._every == 0:
            self._losses.append(mnist.validation_loss(self._model, self._digits))


def _begin(
    digits: mnist.Samples, settings: dict[str, Any], seed: int
) -> tuple[nn.Module, torch.optim.Optimizer, mnist.Minibatches]:
    model = mnist.network(seed)
    stepper = torch.optim.Adadelta(model.parameters(), lr=settings["rate"])
    return model, stepper, mnist.Minibatches(digits, settings["batch"], seed)


def _partition(settings: dict[str, Any], grouping: str, model: nn.Module) -> kc.Partition:
    layout = kc.Layout.from_module(model)
    if grouping == "network":
        return kc.Partition.network(layout)
    return kc.Partition.quasi_nodes(layout, settings["quasi_node"], layers=[0])


def _inside(settings: dict[str, Any]) -> int:
    return settings["window"] * settings["stride"]


def seconds(settings: dict[str, Any], context: Context) -> dict[str, Any]:
    """Times in turns: a minibatch step, and every row's fit and endpoint prediction."""
    digits = mnist.of_settings(settings)
    with one_thread(torch.device("cpu")):
        model, stepper, batches = _begin(digits, settings, settings["first_seed"])
        recorded = record(settings, model, stepper, batches, lambda: None)
        calls: dict[str, Callable[[], object]] = {
            "step": lambda: mnist.train(model, stepper, batches, _TIMED_STEPS)
        }
        calls |= {row: _predictor(settings, row, recorded, model) for row in ROWS}
        times = dict(zip(calls, in_turns(tuple(calls.values())), strict=True))
    times["step"] /= _TIMED_STEPS
    context.tick()
    return times


NOTES = (
    "T^eq: steps from t2 until the smoothed validation loss of ordinary training (centred running "
    "mean) is that of the predicted network; success: T^eq > 0. Speed-up: seconds of T^eq steps "
    "(median) / seconds of fit and endpoint prediction.\n"
    "Means are over the stride; the last of them stands half a stride before t2, so T is counted "
    "from there. koopcore: affine, quasi-node on layer 1 and node elsewhere, full rank; a group "
    "that outruns its straight line 1.5 times goes along it. Paper row: single snapshots, F'F+ at "
    "full rank, same groups, fixed T. Published: Dogra & Redman, NeurIPS 2020; t1, t2, T, q, batch "
    "and rate are not published."
)


def table(results: Results, settings: dict[str, Any]) -> RenderableType:
    """One line per method; the published speed-up last."""
    seeds = [cell for name, cell in results.items() if name.startswith("seed ")]
    heads = ("success", "T^eq/T", "least", "loss at t2+T", "speed-up")
    shown = sheet(f"Table 2: MNIST 784:20:20:20:10, {len(seeds)} seeds", heads)
    times = results.get("seconds")
    for row in (*ROWS, "window mean") if seeds else ():
        relative = np.array([cell["rows"][row]["relative"] for cell in seeds])
        loss = np.median([cell["rows"][row]["loss"] for cell in seeds])
        speed = "-"
        if times is not None and row in times:
            taken = float(np.median(relative)) * settings["horizon"] * times["step"]
            speed = f"{taken / times[row]:,.0f}x"
        shown.add_row(
            row,
            f"{100 * np.mean(relative > 0):.0f} %",
            f"{np.median(relative):.3f}",
            f"{relative.min():.3f}",
            f"{loss:.3g}",
            speed,
        )
    if seeds:
        trained = [
            cell["smoothed"][settings["horizon"] // settings["evaluate_every"]] for cell in seeds
        ]
        shown.add_row("trained on, T steps", "-", "1", "1", f"{np.median(trained):.3g}", "1x")
    shown.add_row("published", "-", "-", "-", "-", f"{PAPER_SPEEDUP}x", style="cyan")
    t2 = settings["t1"] + _inside(settings)
    regime = (
        f"Adadelta, rate {settings['rate']:g}, batch {settings['batch']}; t1 = {settings['t1']:,}, "
        f"t2 = {t2:,}, T = {settings['horizon']:,} steps, window {settings['window']}, stride "
        f"{settings['stride']}, q = {settings['quasi_node']}; {mnist.described(settings)}; seeds "
        f"from {settings['first_seed']}."
    )
    return annotated(shown, regime, NOTES)
