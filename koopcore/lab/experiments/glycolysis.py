"""Glycolysis, after Liu, Ding, Chen, Yeung 2020 (Fig. 2): learned on 1 to 7 workers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import RenderableType

from koopcore.lab.experiment import Cell, Context, Results, packed, sheet, unpacked
from koopcore.lab.experiments.learning import (
    ERRORS,
    FIRST_SEED,
    KOOPMAN,
    TRUE,
    delay_dmd,
    percent,
    state_errors,
    timed,
    without_learning,
)
from koopcore.lab.problems.glycolysis import NAMES, PAPER, paper_split
from koopcore.learning import (
    AlternatingLearner,
    Blocks,
    DistributedLearner,
    Layered,
    Monomials,
    StateInclusive,
    WorkerError,
)

# 15 features a block, as in the paper: its state and a net of three layers. The spreads of the
# first weights were the best on a validation part of the training points
# (benchmarks/bench_learning_settings.py).
BLOCK = StateInclusive(Layered(1, (15, 15, 14), bias=1.0, scale=2.0))


def settings(
    quick: bool,
    workers: int = 1,
    n_iterations: int | None = None,
    seeds: int = 1,
    seed: int = FIRST_SEED,
) -> dict[str, Any]:
    """workers: 1 learns in this process, 2 … 7 on that many ranks over gloo. seed: the first."""
    return {
        "dt": 0.01,
        "workers": workers,
        "n_iterations": n_iterations or (300 if quick else 10_000),
        "seeds": list(range(seed, seed + seeds)),
    }


def cells(settings: dict[str, Any]) -> Sequence[Cell]:
    """One per seed; about a minute each on one quiet core, four with 7 workers on two."""
    return [
        *(Cell(_name(seed), 1, partial(learned, settings, seed)) for seed in settings["seeds"]),
        Cell("without learning", 1, partial(not_learned, settings)),
    ]


def _name(seed: int) -> str:
    return f"seed {seed}"


def learned(settings: dict[str, Any], seed: int, context: Context) -> dict[str, Any]:
    """Learn from 600 points, one state per block, and predict 400; errors are fractions.

    Gradient steps for ``n_iterations``, then one exact solve for K; with several workers also the
    bytes that each received per iteration. Raises ChildProcessError if a worker died.
    """
    parts = paper_split(settings["dt"])
    dictionary = Blocks((BLOCK,) * 7)
    options: dict[str, Any] = {
        "n_iterations": settings["n_iterations"],
        "standardize": True,
        "track": "objective",
        "polish": True,
        "random_state": seed,
    }
    learner: AlternatingLearner | DistributedLearner
    if settings["workers"] == 1:
        learner = AlternatingLearner(dictionary, **options)
    else:
        learner = DistributedLearner(
            dictionary, workers=settings["workers"], timeout=600.0, **options
        )
    try:
        seconds = timed(learner, parts.train)
    except WorkerError as error:
        raise ChildProcessError(str(error)) from error
    objective = learner.history_.objective
    run: dict[str, Any] = {
        **state_errors(learner.operator_, parts.test),
        "seconds": seconds,
        "steps": len(objective),
        "objective": packed(np.c_[objective[:: max(1, len(objective) // 500)]]),
        "predicted": packed(learner.operator_.predict(parts.test[0], len(parts.test) - 1)),
    }
    if isinstance(learner, DistributedLearner):
        run["bytes_received"] = [
            (t.gathered + t.exchanged) / t.iterations for t in learner.traffic_
        ]
    context.tick()
    return run


def not_learned(settings: dict[str, Any], context: Context) -> dict[str, Any]:
    """The same blocks with random weights and one exact K, plain EDMD, and delay DMD."""
    train, test = paper_split(settings["dt"])
    rows = {
        "random weights, one exact K": without_learning(
            Blocks((BLOCK,) * 7), train, test, settings["seeds"], standardize=True
        ),
        "plain EDMD, 35 monomials": without_learning(
            Monomials(7, 2), train, test, [0], standardize=True
        ),
        "delay DMD, 5 states in a row": delay_dmd(train, test, 5),
        "delay DMD, 15 states in a row": delay_dmd(train, test, 15),
    }
    context.tick()
    return {"rows": rows}


def table(results: Results, settings: dict[str, Any]) -> RenderableType:
    """One line per seed, the paper's figures last."""
    workers = settings["workers"]
    crowd = "1 worker" if workers == 1 else f"{workers} workers"
    heads = ("psi: 1 step", "psi: 400", "x: 1 step", "x: 400", "time", "MB/iteration")
    shown = sheet(f"Glycolysis: 600 points learned, 400 predicted; {crowd}", heads)
    for seed in settings["seeds"]:
        run = results.get(_name(seed))
        if run is not None:
            moved = run.get("bytes_received")
            shown.add_row(
                _name(seed),
                *[percent(run[name]) for name in ERRORS],
                f"{run['seconds']:.1f} s",
                f"{max(moved) / 1e6:.2f}" if moved else "-",
            )
    for name, row in results.get("without learning", {"rows": {}})["rows"].items():
        figures = [percent(row[error]) if error in row else "" for error in ERRORS]
        shown.add_row(name, *figures, "", "", style="dim")
    printed = (percent(PAPER["one_step"]), percent(PAPER["multi_step"]), f"{PAPER['seconds']} s")
    shown.add_row("paper", "", "", *printed, "-", style="cyan")
    return shown


def picture(results: Results, settings: dict[str, Any]) -> Figure:
    """Seven species predicted 400 steps from x_0 (Fig. 2) by one seed, and F of all seeds."""
    runs = {name: results[name] for seed in settings["seeds"] if (name := _name(seed)) in results}
    figure = Figure(figsize=(14, 6.5), dpi=110, layout="constrained")
    axes: Any = figure.subplots(2, 4).ravel()
    true = paper_split(settings["dt"]).test[1:]
    if not runs:
        return figure
    predicted = unpacked(next(iter(runs.values()))["predicted"])
    minutes = settings["dt"] * np.arange(1, len(predicted) + 1)
    for column, (one, name) in enumerate(zip(axes, NAMES, strict=False)):
        one.plot(minutes, true[:, column], color=TRUE, lw=4, alpha=0.35, label="true")
        one.plot(minutes, predicted[:, column], color=KOOPMAN, ls=(0, (4, 2)), label="Koopman")
        one.set(title=name, xlabel="min after $x_0$", ylabel="mM")
    axes[0].legend(frameon=False, loc="lower left", fontsize=8)
    for name, run in runs.items():
        objective = unpacked(run["objective"])[:, 0]
        axes[-1].loglog(np.linspace(1, run["steps"], len(objective)), objective, label=name)
    axes[-1].set(title="objective", xlabel="step", ylabel="F")
    axes[-1].legend(frameon=False, fontsize=8)
    return figure
