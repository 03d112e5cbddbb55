"""The two experiments of Liu, Ding, Chen, Yeung 2020, run, printed beside the paper and written."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import koopcore
from koopcore.learning import (
    AlternatingLearner,
    Blocks,
    Dictionary,
    Diminishing,
    DistributedLearner,
    Layered,
    LearnedOperator,
    OneLayer,
    StateInclusive,
    prediction_errors,
)
from koopcore.problems import glycolysis as glycolysis_problem
from koopcore.problems import van_der_pol as van_der_pol_problem
from koopcore.problems.demo_command import write_whole
from koopcore.problems.learning_figures import glycolysis_figure, van_der_pol_figure
from koopcore.problems.learning_rates import fitted_slope, least_criterion

PAPER_STEP = 0.23
ERRORS = ("one_step_features", "multi_step_features", "one_step_states", "multi_step_states")


class Variant(NamedTuple):
    """One row of the Van der Pol table."""

    name: str
    dictionary: Dictionary
    settings: dict[str, Any]


_EXACT = {"k_step": "exact", "track": "objective"}
VARIANTS = (
    Variant(
        "3 tanh, gradient, step 0.23",
        OneLayer(2, 3),
        {"step_k": PAPER_STEP, "step_w": PAPER_STEP},
    ),
    Variant("3 tanh, gradient, 1/L_K", OneLayer(2, 3), {}),
    Variant("3 arctan, gradient, 1/L_K", OneLayer(2, 3, "arctan"), {}),
    Variant("3 logistic, exact K", OneLayer(2, 3, "logistic", 0.3), _EXACT),
    Variant("state + 3 tanh, exact K", StateInclusive(OneLayer(2, 3, scale=0.5)), _EXACT),
    Variant("state + 4 tanh, exact K", StateInclusive(OneLayer(2, 4, scale=0.5)), _EXACT),
    Variant("state + 16 tanh, exact K", StateInclusive(OneLayer(2, 16)), _EXACT),
    Variant("state + 24 tanh, exact K", StateInclusive(OneLayer(2, 24)), _EXACT),
)


def van_der_pol(
    output: Path = Path(),
    *,
    seeds: int = 10,
    n_iterations: int = 500,
    rate_iterations: int = 3000,
    mus: Sequence[float] = (0.2, 1.0),
) -> dict[str, Any]:
    """Learn the oscillator from 400 points, predict 200; print, draw and write the results.

    output: folder of ``van-der-pol.json`` and ``.png``. Every variant is learned from ``seeds``
    random W; figures are medians. Rates: `rate_iterations` iterations with the paper's step,
    constant and diminishing. Returns what the JSON holds; errors there are fractions.
    """
    rows: list[dict[str, Any]] = []
    shown: dict[float, LearnedOperator] = {}
    for mu in mus:
        parts = van_der_pol_problem.paper_split(mu)
        best = np.inf
        for variant in VARIANTS:
            runs = []
            for seed in range(seeds):
                learner = AlternatingLearner(
                    variant.dictionary,
                    n_iterations=n_iterations,
                    random_state=seed,
                    **variant.settings,
                )
                start = time.perf_counter()
                learner.fit(parts.train)
                seconds = time.perf_counter() - start
                runs.append({**_errors(learner.operator_, parts.test), "seconds": seconds})
            medians = _medians(runs)
            h = variant.dictionary.n_features
            rows.append({"mu": mu, "dictionary": variant.name, "n_features": h, **medians})
            if medians["multi_step_states"] < best:
                best, shown[mu] = medians["multi_step_states"], learner.operator_
    rates = {str(mu): _rates(mu, seeds, rate_iterations) for mu in mus}
    result = {"rows": rows, "rates": rates, "paper": van_der_pol_problem.PAPER}
    settings = {"seeds": seeds, "n_iterations": n_iterations, "dt": 0.1, "mu": list(mus)}
    console = _console()
    console.print(_van_der_pol_table(rows, seeds))
    for mu in mus:
        constant = np.median(rates[str(mu)]["constant_slopes"])
        console.print(f"mu = {mu}: slope of min E, constant step, median: {constant:.2f}")
    picture = van_der_pol_figure(shown, rates)
    return _written(console, output, "van-der-pol", settings, result, picture)


def glycolysis(
    output: Path = Path(),
    *,
    workers: int = 1,
    n_iterations: int = 10_000,
    seeds: Sequence[int] = (0,),
    progress: bool = True,
) -> dict[str, Any]:
    """Learn glycolysis from 600 points, one state per block, and predict 400; print and write.

    workers: 1 learns in this process, 2 … 7 on that many ranks over gloo: the same iterates to
    rounding, and bytes per iteration counted. Every block has 15 features: its state and a
    three-layer net. Gradient steps for ``n_iterations``, then one exact solve for K.
    """
    parts = glycolysis_problem.paper_split()
    block = StateInclusive(Layered(1, (15, 15, 14), bias=1.0, scale=2.0))
    dictionary = Blocks((block,) * 7)
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        settings: dict[str, Any] = {
            "n_iterations": n_iterations,
            "standardize": True,
            "track": "objective",
            "polish": True,
            "random_state": seed,
        }
        start = time.perf_counter()
        learner: AlternatingLearner | DistributedLearner
        if workers == 1:
            learner = AlternatingLearner(dictionary, progress=progress, **settings)
        else:
            learner = DistributedLearner(dictionary, workers=workers, timeout=600.0, **settings)
        learner.fit(parts.train)
        run: dict[str, Any] = {
            "seed": seed,
            **_errors(learner.operator_, parts.test),
            "seconds": time.perf_counter() - start,
            "objective": learner.history_.objective[:: max(1, len(learner.history_) // 500)],
        }
        if isinstance(learner, DistributedLearner):
            run["bytes_received"] = [
                (t.gathered + t.exchanged) / t.iterations for t in learner.traffic_
            ]
        runs.append(run)
    result = {"runs": runs, "paper": glycolysis_problem.PAPER}
    described = {"workers": workers, "n_iterations": n_iterations, "seeds": list(seeds), "dt": 0.01}
    console = _console()
    console.print(_glycolysis_table(runs, workers))
    picture = glycolysis_figure(learner.operator_, parts, [run["objective"] for run in runs])
    return _written(console, output, "glycolysis", described, result, picture)


def _console() -> Console:
    # Where the output is no terminal, rich assumes 80 columns and cuts the figures short.
    console = Console()
    return console if console.width >= 118 else Console(width=118)


def _errors(learned: LearnedOperator, test: Any) -> dict[str, float]:
    return dict(vars(prediction_errors(learned, test)))


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.median([run[name] for run in runs])) for name in runs[0]}


def _rates(mu: float, seeds: int, n_iterations: int) -> dict[str, Any]:
    train = van_der_pol_problem.paper_split(mu).train
    curves: dict[str, list[list[float]]] = {"constant": [], "diminishing": []}
    slopes = []
    spaced = np.unique(np.geomspace(1, n_iterations, 80).astype(int)) - 1
    for seed in range(seeds):
        for name, step in (("constant", PAPER_STEP), ("diminishing", Diminishing(PAPER_STEP))):
            learner = AlternatingLearner(
                OneLayer(2, 3),
                step_k=step,
                step_w=step,
                n_iterations=n_iterations,
                random_state=seed,
            ).fit(train)
            least = least_criterion(learner.history_)
            if name == "constant":
                slopes.append(fitted_slope(least))
            curves[name].append(least[spaced].tolist())
    return {"iterations": (spaced + 1).tolist(), "constant_slopes": slopes, **curves}


def _percent(fraction: float) -> str:
    return f"{100.0 * fraction:.3g} %" if np.isfinite(fraction) and fraction < 10.0 else "diverged"


def _van_der_pol_table(rows: list[dict[str, Any]], seeds: int) -> Table:
    table = Table(title=f"Van der Pol: 400 points learned, 200 predicted; medians of {seeds} seeds")
    for name in ("mu", "dictionary", "h", "psi: 1 step", "psi: 200", "x: 1 step", "x: 200", "time"):
        words = name == "dictionary"
        table.add_column(name, justify="left" if words else "right", no_wrap=words)
    for row in rows:
        errors = [_percent(row[name]) for name in ERRORS]
        table.add_row(
            f"{row['mu']}",
            row["dictionary"],
            f"{row['n_features']}",
            *errors,
            f"{row['seconds']:.3f} s",
        )
    paper = van_der_pol_problem.PAPER
    table.add_row(
        "?", "paper, 3 features", "3", "", "", "0.16 %", "1.89 %", f"{paper['seconds']} s"
    )
    return table


def _glycolysis_table(runs: list[dict[str, Any]], workers: int) -> Table:
    table = Table(title=f"Glycolysis: 600 points learned, 400 predicted; {workers} workers")
    for name in ("seed", "psi: 1 step", "psi: 400", "x: 1 step", "x: 400", "time", "MB/iteration"):
        table.add_column(name, justify="right")
    for run in runs:
        moved = run.get("bytes_received")
        table.add_row(
            str(run["seed"]),
            *[_percent(run[name]) for name in ERRORS],
            f"{run['seconds']:.1f} s",
            f"{max(moved) / 1e6:.2f}" if moved else "-",
        )
    table.add_row("paper", "", "", "0.02 %", "2.7 %", "400.4 s", "-")
    return table


def _written(
    console: Console,
    output: Path,
    name: str,
    settings: dict[str, Any],
    result: dict[str, Any],
    picture: Figure,
) -> dict[str, Any]:
    output.mkdir(parents=True, exist_ok=True)
    flags = "".join(
        f" --{key.replace('_', '-')} {value}"
        for key, value in settings.items()
        if isinstance(value, int)
    )
    head = {
        "command": f"koopcore reproduce {name}{flags}",
        "settings": settings,
        "koopcore": koopcore.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    whole: dict[str, Any] = {**head, **result}
    text = json.dumps(whole, indent=1) + "\n"
    writers: list[tuple[str, Callable[[Path], object]]] = [
        (".json", lambda path: path.write_text(text, encoding="utf-8")),
        (".png", picture.savefig),
    ]
    for ending, save in writers:
        path = output / f"{name}{ending}"
        write_whole(path, save)
        console.print(str(path), soft_wrap=True)
    return whole
