"""Table 1 of Dogra & Redman 2020: oscillator networks predicted once, late in their training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import RenderableType
from torch import Tensor

import koopcore as kc
from koopcore.lab.experiment import Cell, Context, Results, annotated, sheet
from koopcore.lab.problems.descent import Descent, one_thread
from koopcore.lab.problems.oscillator import PAPER, PARAMETERS, OscillatorBatch, batched_partition
from koopcore.lab.problems.scores import Floats, equivalent_steps, error_ratio
from koopcore.lab.stopwatch import in_turns

ROWS = ("koopcore", "koopcore, float32", "paper, stride", "paper, each step")
"""koopcore: network-wide affine operator, horizon by loss check (also with the snapshots rounded
to float32). paper: an operator F'F⁺ per node by `numpy.linalg.pinv`, fixed T, on the same window
with the same stride, and with a snapshot each step as published."""
_TIMED_STEPS = 20
_OVERRUN = 1.2  # ordinary training goes on to 1.2 T, so that T^eq/T > 1 is measured, not capped


def settings(quick: bool) -> dict[str, Any]:
    """Regime of the experiment, the same for every row of an optimizer."""
    regime: dict[str, Any] = {
        "networks": 25,
        "seed": 1300,
        "duration": 4 * math.pi,
        "precision": "float64",
        "window": 17,
        "stride": 50,
        "horizon": 2500,
        "look": 2,
        "shares": [2.0**-half_octave for half_octave in np.arange(0, 6.5, 0.5)],
        "t1": 16_000,
        "rates": {"adam": 1e-4, "adagrad": 0.05, "adadelta": 0.1},
        "decay": 1e-5,
        "together": 9,
    }
    if quick:
        regime |= {"networks": 4, "stride": 25, "horizon": 500, "t1": 3000}
    return regime


def cells(settings: dict[str, Any]) -> Sequence[Cell]:
    """Some networks of one optimizer each, and the times, which do not depend on the values."""
    steps = settings["t1"] + sum(_stretches(settings))
    parts = []
    for optimizer in settings["rates"]:
        for first in range(0, settings["networks"], settings["together"]):
            last = min(first + settings["together"], settings["networks"])
            work = partial(predictions, settings, optimizer, first, last)
            parts.append(Cell(f"{optimizer}/{first + 1}-{last}", steps, work))
    return [*parts, Cell("seconds", len(settings["rates"]), partial(seconds, settings))]


def predictions(
    settings: dict[str, Any], optimizer: str, first: int, last: int, context: Context
) -> dict[str, Any]:
    """Train networks ``first .. last - 1``, predict at ``t2`` by every row, train on, and score."""
    problem = OscillatorBatch(
        last,
        settings["seed"],
        dtype=getattr(torch, settings["precision"]),
        duration=settings["duration"],
    )
    rate, decay = settings["rates"][optimizer], settings["decay"]
    start = problem.initial()[first:]
    descent = Descent(problem, optimizer, rate=rate, decay=decay, start=start)
    inside, beyond = _stretches(settings)
    descent.advance(settings["t1"], tick=context.tick)
    window = descent.advance(inside, every=1, tick=context.tick).snapshots
    after = descent.advance(beyond, every=settings["stride"], tick=context.tick)
    start = window[-1]
    scores = {}
    for row in ROWS:
        guess, horizons = predict(settings, row, window, problem)
        steps = horizons * settings["stride"]
        true = after.snapshots[horizons, np.arange(len(horizons))]
        with one_thread(start.device):
            reached = problem.loss(guess)
        equivalent = equivalent_steps(after.losses, reached)
        scores[row] = {
            "horizon": steps.tolist(),
            "equivalent": equivalent.tolist(),
            "relative": (equivalent / steps).tolist(),
            "error_ratio": error_ratio(guess, true, start).tolist(),
            "loss": reached.tolist(),
        }
    return {"rows": scores, "loss_t2": after.losses[0].tolist()}


def of_optimizer(results: Results, optimizer: str) -> dict[str, dict[str, list[float]]]:
    """The rows of every network of one optimizer that is done; empty if none is."""
    parts = [cell["rows"] for name, cell in results.items() if name.startswith(f"{optimizer}/")]
    return {
        row: {key: [value for part in parts for value in part[row][key]] for key in scores}
        for row, scores in (parts[0] if parts else {}).items()
    }


def predict(
    settings: dict[str, Any], row: str, window: Tensor, problem: OscillatorBatch
) -> tuple[Tensor, np.ndarray[Any, np.dtype[np.int64]]]:
    """Return the predicted parameters ``(networks, 152)`` and each network's horizon in snapshots.

    window : ``(steps + 1, networks, 152)``, every step; strided here.
    """
    stride, networks = settings["stride"], window.shape[1]
    farthest = settings["horizon"] // stride
    snapshots = window[::stride].contiguous()
    if row.startswith("paper"):
        every = row.endswith("each step")
        guess = pinv_nodes(
            (window if every else snapshots).numpy(), settings["horizon"] if every else farthest
        )
        return torch.from_numpy(guess), np.full(networks, farthest)
    if "float32" in row:
        snapshots = snapshots.float()
    return checked(settings, problem, snapshots, window[-1])


def checked(
    settings: dict[str, Any], problem: OscillatorBatch, snapshots: Tensor, now: Tensor
) -> tuple[Tensor, np.ndarray[Any, np.dtype[np.int64]]]:
    """The prediction and horizon of each network by the loss check; see `predict`.

    Where no place that the operator predicts is better than ``now`` ``(networks, 152)``, the
    straight line is asked, as `koopcore.attach` asks it.
    """
    networks = len(now)
    part, every = batched_partition("network", networks), torch.arange(networks)
    horizons, beyond = ladder(settings), lookouts(settings)
    guess, jumps = now.clone(), np.full(networks, horizons[-1])
    left = np.ones(networks, bool)
    for model in ("affine", "trend"):
        operators = kc.fit(snapshots.reshape(len(snapshots), -1), part, model=model)
        predicted = operators.predict([*horizons, *beyond]).reshape(-1, networks, now.shape[1])
        places = predicted[: len(horizons)].to(now.dtype)
        rung = best_horizon(problem, predicted[len(horizons) :].to(now.dtype))
        rung, better = nearer(problem, rung, places, now)
        replaced = left & better
        guess[replaced] = places[rung, every][replaced]
        jumps[replaced] = np.asarray(horizons)[rung][replaced]
        left &= ~better
        if not left.any():
            break
    return guess, jumps


def ladder(settings: dict[str, Any]) -> list[int]:
    """Horizons that may be taken, in snapshots, longest first: half octaves below T."""
    farthest = settings["horizon"] / settings["stride"]
    return sorted({max(1, round(farthest * share)) for share in settings["shares"]}, reverse=True)


def lookouts(settings: dict[str, Any]) -> list[int]:
    """Where the loss is looked at for each horizon of the ladder: ``look`` times as far."""
    return [max(1, round(settings["look"] * horizon)) for horizon in ladder(settings)]


def best_horizon(problem: OscillatorBatch, beyond: Tensor) -> Any:
    """The loss check: which horizon of the ladder each network takes, ``(networks,)``.

    beyond : ``(horizons, networks, 152)`` predicted somewhat beyond each horizon, longest first.

    Where the predicted loss turns, the prediction's error, which grows exponentially, has eaten
    the whole gain of the last stretch; half way there it is small. So the search looks twice as
    far as it jumps.
    """
    with one_thread(beyond.device):
        losses = problem.loss(beyond.flatten(0, 1)).reshape(beyond.shape[:2])
    return torch.where(losses.isfinite(), losses, math.inf).argmin(0).numpy()


def nearer(
    problem: OscillatorBatch, rung: Any, places: Tensor, now: Tensor
) -> tuple[Any, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Shorter horizons where the place has no lower loss than ``now``, and whether one has.

    rung : which of the places ``(horizons, networks, 152)``, longest first, each network takes.
    """
    every = torch.arange(len(now))
    with one_thread(now.device):
        present = problem.loss(now)
        while True:
            better = (problem.loss(places[rung, every]) < present).numpy()
            shorter = ~better & (rung < len(places) - 1)
            if not shorter.any():
                return rung, better
            rung = rung + shorter


def pinv_nodes(snapshots: Floats, horizon: int, cutoff: float = 1e-15) -> Floats:
    """The paper's operator, literally: ``(F'F⁺)^T x_n`` for every node, ``(networks, 152)``.

    snapshots : ``(n, networks, 152)``. F⁺ is `numpy.linalg.pinv`: by SVD, without the singular
    values below ``cutoff`` times the largest.
    """
    endpoint = np.empty(snapshots.shape[1:])
    for nodes in _nodes():  # nodes of one fan-in together: (count, m)
        patches = np.asarray(snapshots, np.float64)[:, :, nodes].transpose(1, 2, 3, 0)
        operator = patches[..., 1:] @ np.linalg.pinv(patches[..., :-1], rcond=cutoff)
        power = np.linalg.matrix_power(operator, horizon)
        endpoint[:, nodes] = (power @ patches[..., -1:])[..., 0]
    return endpoint


def _nodes() -> list[Any]:
    part = batched_partition("nodes", 1)
    groups = [part.indices(group) for group in range(part.n_groups)]
    sizes = sorted({len(group) for group in groups})
    return [np.array([group for group in groups if len(group) == size]) for size in sizes]


def _stretches(settings: dict[str, Any]) -> tuple[int, int]:
    """Steps inside the window, and after it (a whole number of strides)."""
    stride = settings["stride"]
    after = math.ceil(_OVERRUN * settings["horizon"] / stride) * stride
    return (settings["window"] - 1) * stride, after


def seconds(settings: dict[str, Any], context: Context) -> dict[str, Any]:
    """Times of one network alone, all in turns: a training step, and each row's prediction."""
    dtype = getattr(torch, settings["precision"])
    problem = OscillatorBatch(1, settings["seed"], dtype=dtype, duration=settings["duration"])
    farthest = settings["horizon"] // settings["stride"]
    part = batched_partition("network", 1)
    medians = {}
    for optimizer, rate in settings["rates"].items():
        descent = Descent(problem, optimizer, rate=rate)
        window = descent.advance(_stretches(settings)[0], every=1).snapshots
        rows = window[:: settings["stride"], 0].contiguous()

        single = rows.float()
        strided, every = rows[:, None].numpy(), window.numpy()
        calls: dict[str, Callable[[], object]] = {
            "step": lambda descent=descent: descent.advance(_TIMED_STEPS),  # type: ignore[misc]
            "koopcore": lambda rows=rows: kc.fit(rows, part, horizon=farthest).predict(farthest),  # type: ignore[misc]
            "koopcore, loss check included": lambda rows=rows: checked(  # type: ignore[misc]
                settings, problem, rows[:, None], rows[-1:]
            ),
            "koopcore, float32": lambda single=single: kc.fit(  # type: ignore[misc]
                single, part, horizon=farthest
            ).predict(farthest),
            "paper, stride": lambda strided=strided: pinv_nodes(strided, farthest),  # type: ignore[misc]
            "paper, each step": lambda every=every: pinv_nodes(every, settings["horizon"]),  # type: ignore[misc]
        }
        times = dict(zip(calls, in_turns(tuple(calls.values())), strict=True))
        # A stretch of s steps evaluates s + 1 losses and gradients, both its ends included.
        times["step"] /= _TIMED_STEPS + 1
        medians[optimizer] = times
        context.tick()
    return medians


NOTES = (
    "koopcore: network-wide affine operator, half the horizon of the lowest predicted loss, less "
    "if the loss there is not below the present one, or along the straight line if none is; "
    "float32: the same from snapshots rounded to float32. paper: an operator F'F+ per node by "
    "numpy.linalg.pinv at cut-off 1e-15, fixed T, same window, with this stride or a snapshot each "
    "step; a window so short, which is not the paper's, has noise above that cut-off: see "
    "--schedule paper for theirs.\n"
    "T^eq: steps that ordinary training needs from t2 to reach the predicted network's loss "
    "(first crossing); success: T^eq > 0. Error ratio: |predicted - true| / |true movement|, "
    "median over weights, then networks.\n"
    "Window speed-up: seconds of T^eq optimizer steps of one network (median) / seconds of its fit "
    "and endpoint prediction; 'checked': the loss checks of the horizon's choice included.\n"
    "Paper: Dogra & Redman, NeurIPS 2020: t1 = 35,001, t2 = 45,000, T = 2,500; rates and machine "
    "not published."
)


def table(results: Results, settings: dict[str, Any]) -> RenderableType:
    """One row per optimizer and method, the paper's own figures beside them."""
    heads = ("success", "T^eq/T", "least", "T, steps", "error", "speed-up", "checked")
    shown = sheet(f"Table 1: {settings['networks']} oscillator networks (1:10:10:2)", heads)
    for optimizer in settings["rates"]:
        rows = of_optimizer(results, optimizer)
        if not rows:
            continue
        times = results.get("seconds", {}).get(optimizer)
        shown.add_row(f"{optimizer.capitalize()}", style="bold")
        for row in ROWS:
            shown.add_row(f" {row}", *_figures(rows, row, times))
        printed = ("2,500", f"{PAPER['error_ratio']}", f"{PAPER['speedup'][optimizer]}x", "-")
        shown.add_row(" published", "-", "-", "-", *printed, style="cyan", end_section=True)
    regime = (
        f"t in [0, {settings['duration'] / math.pi:g} pi], {settings['precision']}, t1 = "
        f"{settings['t1']:,}; window of {settings['window']} snapshots, stride "
        f"{settings['stride']}, so t2 = t1 + {_stretches(settings)[0]}; T up to "
        f"{settings['horizon']:,} steps; rates "
        + ", ".join(f"{rate:g} {name}" for name, rate in settings["rates"].items())
        + f", at step s divided by 1 + {settings['decay']:g} s; seed {settings['seed']}; "
        f"{PARAMETERS} parameters a network."
    )
    return annotated(shown, regime, NOTES)


def _figures(rows: dict[str, Any], row: str, times: dict[str, float] | None) -> list[str]:
    scores = rows[row]
    relative = np.asarray(scores["relative"])
    speed = checked = "-"
    if times is not None:
        trained = float(np.median(scores["equivalent"])) * times["step"]
        speed = f"{trained / times[row]:,.0f}x"
        if row == "koopcore":
            checked = f"{trained / times['koopcore, loss check included']:,.0f}x"
    return [
        f"{100 * np.mean(relative > 0):.0f} %",
        f"{np.median(relative):.3f}",
        f"{relative.min():.3f}",
        f"{np.median(scores['horizon']):,.0f}",
        f"{np.median(scores['error_ratio']):.2g}",
        speed,
        checked,
    ]
