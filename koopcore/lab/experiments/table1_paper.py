"""Table 1 of Dogra & Redman 2020 at the paper's own schedule, over what it does not publish.

``t1 = 35,001``, ``t2 = 45,000``, a snapshot of every step, ``T = 2,500``, an operator per node (2
and 11 weights). Learning rates and the cut-off of the pseudo-inverse are not published: both are
swept, beside the models and partitions of koopcore and the straight line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import koopcore as kc
from koopcore.files import write_whole
from koopcore.lab.experiment import Cell, Context, Results, packed, sheet, unpacked
from koopcore.lab.experiments.table1 import pinv_nodes
from koopcore.lab.options import PartitionName
from koopcore.lab.problems.descent import Descent, one_thread
from koopcore.lab.problems.oscillator import PAPER, OscillatorBatch, batched_partition
from koopcore.lab.problems.scores import Floats, equivalent_steps, error_ratio
from koopcore.lab.stopwatch import in_turns

COMMAND = "table1 --schedule paper"

LINE = "straight line"
_TIMED_STEPS = 20


def settings(quick: bool) -> dict[str, Any]:
    """The paper's schedule; paces are pairs (rate, decay): rate / (1 + decay s) at step s."""
    weak = 1e-5
    regime: dict[str, Any] = {
        "networks": 25,
        "seed": 1300,
        "duration": 4 * math.pi,
        "precision": "float64",
        "t1": 35_001,
        "t2": 45_000,
        "horizon": 2500,
        "beyond": 3000,
        "stride_beyond": 100,
        "paces": {
            "adagrad": [[rate, weak] for rate in (0.01, 0.02, 0.05, 0.1)],
            "adadelta": [[rate, weak] for rate in (0.01, 0.03, 0.1)],
            "adam": [[rate, weak] for rate in (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)],
        },
        "cutoffs": [1e-15, 1e-12, 2.2e-12, 1e-10, 1e-8],
        "partitions": ["nodes", "network", "layers", "weights"],
        "models": ["linear", "affine", "auto"],
        "trajectories": "table1-paper-trajectories",
    }
    if quick:
        regime |= {"networks": 3, "t1": 1001, "t2": 2000, "horizon": 200, "beyond": 300}
        regime["paces"] = {"adagrad": [[0.05, weak]], "adam": [[1e-4, weak]]}
        regime["trajectories"] = "table1-paper-quick-trajectories"
    return regime


class Run(NamedTuple):
    """One optimizer at one rate and decay."""

    optimizer: str
    rate: float
    decay: float

    def __str__(self) -> str:
        return f"{self.optimizer} {self.rate:g}, decay {self.decay:g}"


def runs(settings: dict[str, Any]) -> Iterator[Run]:
    """All runs, optimizer by optimizer."""
    for optimizer, paces in settings["paces"].items():
        for rate, decay in paces:
            yield Run(optimizer, rate, decay)


def cells(settings: dict[str, Any]) -> Sequence[Cell]:
    """For every run its training, then what each method makes of it; and the times."""
    parts = []
    for run in runs(settings):
        training = f"{run}/training"
        steps = settings["t2"] + settings["beyond"]
        parts.append(Cell(training, steps, partial(losses, settings, run)))
        methods: list[tuple[str, Callable[[dict[str, Any], Floats], Rows]]]
        methods = [(name, partial(operators, name)) for name in settings["partitions"]]
        methods = [("literal", literal), *methods, (LINE, straight_line)]
        for name, rows in methods:
            work = partial(scored, settings, run, rows)
            parts.append(Cell(f"{run}/{name}", 1, work, needs=(training,)))
    ticks = len(settings["paces"])
    firsts = tuple(f"{_first(settings, name)}/training" for name in settings["paces"])
    return [*parts, Cell("seconds", ticks, partial(seconds, settings), needs=firsts)]


def _first(settings: dict[str, Any], optimizer: str) -> Run:
    return next(run for run in runs(settings) if run.optimizer == optimizer)


def trajectory(
    settings: dict[str, Any], run: Run, folder: Path, tick: Callable[[], object] = lambda: None
) -> dict[str, Floats]:
    """All networks of a run, trained as one batch, or read from where it was kept.

    before  : losses ``(t1 // 100 + 1, networks)``, every 100 steps.
    window  : snapshots ``(t2 - t1 + 1, networks, 152)``; the last is the state at ``t2``.
    losses  : ``(beyond + 1, networks)`` from ``t2`` on.
    after   : snapshots ``(beyond // stride_beyond + 1, networks, 152)`` from ``t2`` on.

    Kept in a folder beside the results: 0.3 GB a run at full size, too large to be among them.
    """
    names = ("networks", "seed", "duration", "precision", "t1", "t2", "horizon", "beyond")
    regime = {name: settings[name] for name in (*names, "stride_beyond")} | run._asdict()
    path = folder / settings["trajectories"] / f"{run}.npz"
    if path.exists():
        with np.load(path) as file:
            if json.loads(str(file["settings"])) != regime:
                raise ValueError(f"{path} was trained with other settings; move it away")
            return {name: file[name] for name in ("before", "window", "losses", "after")}
    descent = Descent(
        _problem(settings, settings["networks"]), run.optimizer, rate=run.rate, decay=run.decay
    )
    before = descent.advance(settings["t1"], tick=tick)
    window = descent.advance(settings["t2"] - settings["t1"], every=1, tick=tick)
    after = descent.advance(settings["beyond"], every=settings["stride_beyond"], tick=tick)
    arrays: dict[str, Any] = {
        "before": before.losses[::100].numpy(),
        "window": window.snapshots.numpy(),
        "losses": after.losses.numpy(),
        "after": after.snapshots.numpy(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda part: np.savez(part, settings=np.array(json.dumps(regime)), **arrays))
    return arrays


def _problem(settings: dict[str, Any], networks: int) -> OscillatorBatch:
    return OscillatorBatch(
        networks,
        settings["seed"],
        dtype=getattr(torch, settings["precision"]),
        duration=settings["duration"],
    )


def losses(settings: dict[str, Any], run: Run, context: Context) -> dict[str, Any]:
    """Train; losses of every network at t1, t2 and t2 + T."""
    trained = trajectory(settings, run, context.folder, context.tick)
    after = trained["losses"]
    lines = packed(np.c_[trained["before"][-1], after[0], after[settings["horizon"]]])
    return dict(zip(("t1", "t2", "t2 + T"), lines, strict=True))


Rows = Iterator[tuple[str, Floats]]
"""Name of a row -> predicted parameters ``(networks, 152)`` at t2 + T."""


def literal(settings: dict[str, Any], window: Floats) -> Rows:
    """`pinv_nodes` at every cut-off."""
    for cutoff in settings["cutoffs"]:
        yield _literal(cutoff), pinv_nodes(window, settings["horizon"], cutoff)


def _literal(cutoff: float) -> str:
    return f"pinv {cutoff:g}"


def operators(partition: PartitionName, settings: dict[str, Any], window: Floats) -> Rows:
    """Every model of koopcore for one partition, all networks in one call."""
    snapshots = window.reshape(len(window), -1)
    part = batched_partition(partition, window.shape[1])
    for model in settings["models"]:
        fit = kc.fit(snapshots, part, model=model)
        yield f"{partition} {model}", fit.predict(settings["horizon"])


def straight_line(settings: dict[str, Any], window: Floats) -> Rows:
    """Through the window's ends."""
    part = batched_partition("network", window.shape[1])
    line = kc.fit(window.reshape(len(window), -1), part, model="trend")
    yield LINE, line.predict(settings["horizon"])


def scored(
    settings: dict[str, Any],
    run: Run,
    rows: Callable[[dict[str, Any], Floats], Rows],
    context: Context,
) -> dict[str, Any]:
    """``T^eq/T`` and the error ratio of every network, for every row."""
    trained = trajectory(settings, run, context.folder)
    window, problem = trained["window"], _problem(settings, settings["networks"])
    true = trained["after"][settings["horizon"] // settings["stride_beyond"]]
    scores = {}
    for name, guess in rows(settings, window):
        guess = guess.reshape(true.shape)
        with one_thread(torch.device("cpu")), torch.no_grad():
            reached = problem.loss(torch.from_numpy(guess)).numpy()
        relative = equivalent_steps(trained["losses"], reached) / settings["horizon"]
        lines = packed(np.c_[relative, error_ratio(guess, true, window[-1])], ".4g")
        scores[name] = dict(zip(("relative", "error_ratio"), lines, strict=True))
    context.tick()
    return scores


def seconds(settings: dict[str, Any], context: Context) -> dict[str, Any]:
    """Times of one network alone, in turns: a training step, and each row's fit and prediction."""
    problem = _problem(settings, 1)
    horizon = settings["horizon"]
    times = {}
    for optimizer in settings["paces"]:
        run = _first(settings, optimizer)
        window = trajectory(settings, run, context.folder)["window"][:, :1].copy()
        start = torch.from_numpy(window[-1])
        descent = Descent(problem, optimizer, rate=run.rate, start=start)
        snapshots = window[:, 0]
        calls: dict[str, Callable[[], object]] = {
            "step": partial(descent.advance, _TIMED_STEPS),
            "pinv": partial(pinv_nodes, window, horizon),
        }
        for partition in settings["partitions"]:
            part = batched_partition(partition, 1)
            for model in settings["models"]:
                calls[f"{partition} {model}"] = partial(_endpoint, snapshots, part, model, horizon)
        with one_thread(torch.device("cpu")):
            medians = in_turns(tuple(calls.values()), rounds=5)
        times[optimizer] = dict(zip(calls, medians, strict=True))
        # A stretch of s steps evaluates s + 1 losses and gradients, both its ends included.
        times[optimizer]["step"] /= _TIMED_STEPS + 1
        context.tick()
    return times


def _endpoint(snapshots: Floats, part: kc.Partition, model: str, horizon: int) -> Floats:
    endpoint: Floats = kc.fit(snapshots, part, model=model, horizon=horizon).predict(horizon)
    return endpoint


NOTES = (
    "Each entry: networks of 100 with T^eq > 0, and the median T^eq/T (at most 1.2, where ordinary "
    "training ends here). pinv: an operator F'F+ per node by numpy.linalg.pinv at that cut-off; "
    "2.2e-12 is MATLAB's for these sizes. The others are koopcore's models; the line goes through "
    "the window's ends. All predict T steps, with no check of the loss.\n"
    "Speed-up: seconds of T^eq optimizer steps of one network (median) / seconds of its fit and "
    "endpoint, at the rate where that row's median T^eq/T is highest among those of most success.\n"
    "Published (Dogra & Redman, NeurIPS 2020): speed-ups 98 / 132 / 141 for Adam / Adagrad / "
    "Adadelta; rates, decay and cut-off are not."
)


def table(results: Results, settings: dict[str, Any]) -> RenderableType:
    """Success and T^eq/T, then error ratios, of every run and row; then the times."""
    cutoffs = [_literal(cutoff) for cutoff in settings["cutoffs"]]
    by_node = [f"nodes {model}" for model in settings["models"]]
    others = [
        f"{partition} {model}"
        for partition in settings["partitions"]
        if partition != "nodes"
        for model in settings["models"]
    ]
    regime = (
        f"{settings['networks']} networks, seed {settings['seed']}, t in [0, "
        f"{settings['duration'] / math.pi:g} pi], {settings['precision']}; t1 = "
        f"{settings['t1']:,}, t2 = {settings['t2']:,}, a snapshot each step, T = "
        f"{settings['horizon']:,}; rate / (1 + decay s) at step s."
    )
    title = "Table 1 at the paper's schedule"
    errors = _grid(f"{title}: error ratio", [*cutoffs, LINE, *by_node], results, settings, _error)
    return Group(
        _grid(f"{title}: operators per node", [*cutoffs, LINE, *by_node], results, settings),
        _grid(f"{title}: other partitions", others, results, settings),
        errors,
        *([_speeds(results, settings)] if "seconds" in results else []),
        Text(f"{regime}\n{NOTES}", style="dim"),
    )


def scores_of(results: Results, run: Run) -> dict[str, dict[str, Floats]]:
    """Row -> ``relative`` and ``error_ratio`` of every network, from the cells that are done."""
    return {
        row: {key: unpacked([line])[:, 0] for key, line in lines.items()}
        for name, cell in results.items()
        if name.startswith(f"{run}/") and not name.endswith("/training")
        for row, lines in cell.items()
        if row != "finished"
    }


def _grid(
    title: str,
    rows: Sequence[str],
    results: Results,
    settings: dict[str, Any],
    figure: Callable[[dict[str, Floats]], str] | None = None,
) -> Table:
    heads = [row.replace(" ", "\n", 1) for row in rows]
    shown = sheet(title, heads, "optimizer, rate")
    latest = ""
    for run in runs(settings):
        scores = scores_of(results, run)
        if not scores:
            continue
        if run.optimizer != latest:
            shown.add_section()
            latest = run.optimizer
        figures = [(figure or _success)(scores[row]) if row in scores else "" for row in rows]
        shown.add_row(str(run), *figures)
    return shown


def _success(scores: dict[str, Floats]) -> str:
    relative = scores["relative"]
    return f"{100 * np.mean(relative > 0):.0f} {np.median(relative):.2f}"


def _error(scores: dict[str, Floats]) -> str:
    return f"{np.median(scores['error_ratio']):.2g}"


def _speeds(results: Results, settings: dict[str, Any]) -> Table:
    """Seconds of one network, and the speed-up at the row's best run."""
    shown = sheet("One network: seconds, and window speed-up", list(settings["paces"]))
    times = results["seconds"]
    rows = ["pinv", *(f"{p} {m}" for p in settings["partitions"] for m in settings["models"])]
    shown.add_row(
        "one training step", *(f"{1e3 * times[o]['step']:.3g} ms" for o in settings["paces"])
    )
    for row in rows:
        figures = []
        for optimizer in settings["paces"]:
            spent = times[optimizer]
            figure = f"{1e3 * spent[row]:.3g} ms"
            best = max(_medians(results, settings, optimizer, row), default=None)
            if best is not None:
                speed = best[1] * settings["horizon"] * spent["step"] / spent[row]
                figure += f"  {speed:,.0f}x"
            figures.append(figure)
        shown.add_row(row, *figures)
    published = [f"{PAPER['speedup'][optimizer]}x" for optimizer in settings["paces"]]
    shown.add_row("published", *published, style="cyan")
    return shown


def _medians(
    results: Results, settings: dict[str, Any], optimizer: str, row: str
) -> Iterator[tuple[float, float]]:
    """(success, median T^eq/T) of a row in every run of an optimizer; "pinv": at every cut-off."""
    for run in runs(settings):
        if run.optimizer == optimizer:
            for name, scores in scores_of(results, run).items():
                if name == row or (row == "pinv" and name.startswith("pinv ")):
                    relative = scores["relative"]
                    yield float(np.mean(relative > 0)), float(np.median(relative))
