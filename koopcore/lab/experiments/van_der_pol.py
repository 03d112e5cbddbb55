"""Van der Pol, after Liu, Ding, Chen, Yeung 2020 (Fig. 1): learned, beside the paper, and rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from koopcore.lab.experiments.learning import (
    ERRORS,
    FIRST_SEED,
    percent,
    state_errors,
    timed,
    wide_console,
    written,
)
from koopcore.lab.experiments.learning_figures import van_der_pol_figure
from koopcore.lab.problems.learning_rates import fitted_slope, least_criterion
from koopcore.lab.problems.linear_bound import linear_bound
from koopcore.lab.problems.van_der_pol import PAPER, PERIODS, Split, paper_split
from koopcore.learning import (
    AlternatingLearner,
    Dictionary,
    Diminishing,
    LearnedOperator,
    OneLayer,
    StateInclusive,
)
from koopcore.learning.progress import bar
from koopcore.types import FloatArray

PAPER_STEP = 0.23


class Variant(NamedTuple):
    """One row of the table."""

    name: str
    dictionary: Dictionary
    settings: dict[str, Any]


BARE = (
    Variant(
        "3 tanh, gradient, step 0.23",
        OneLayer(2, 3),
        {"step_k": PAPER_STEP, "step_w": PAPER_STEP},
    ),
    Variant("3 tanh, gradient, 1/L_K", OneLayer(2, 3), {}),
    Variant("3 arctan, gradient, 1/L_K", OneLayer(2, 3, "arctan"), {}),
    Variant(
        "3 logistic, exact K",
        OneLayer(2, 3, "logistic", 0.3),
        {"k_step": "exact", "track": "objective"},
    ),
)
# Activation and first spread of W by μ and number of features beside the state: the best on a
# validation part of the training points (benchmarks/bench_learning_settings.py).
CHOSEN = {
    0.2: {
        2: ("tanh", 0.5),
        3: ("arctan", 0.25),
        4: ("tanh", 0.25),
        8: ("tanh", 0.25),
        16: ("tanh", 0.5),
        24: ("arctan", 0.25),
    },
    1.0: {
        2: ("arctan", 1.0),
        3: ("arctan", 1.0),
        4: ("tanh", 0.5),
        8: ("tanh", 0.25),
        16: ("tanh", 0.5),
        24: ("tanh", 1.0),
    },
}


def variants(mu: float) -> tuple[Variant, ...]:
    """The rows for one μ of `CHOSEN`: three bare features, then the state and more and more."""
    inclusive = (
        Variant(
            f"state + {size} {name}, exact K",
            StateInclusive(OneLayer(2, size, name, scale)),
            {"k_step": "exact", "track": "objective"},
        )
        for size, (name, scale) in CHOSEN[mu].items()
    )
    return (*BARE, *inclusive)


def van_der_pol(
    output: Path = Path(),
    *,
    seeds: int = 10,
    n_iterations: int = 500,
    rate_iterations: int = 3000,
    mus: Sequence[float] = tuple(CHOSEN),
    progress: bool = True,
) -> dict[str, Any]:
    """Learn the oscillator from 400 points, predict 200; print, draw and write the results.

    output: folder of ``van-der-pol.json`` and ``.png``. Every variant is learned from ``seeds``
    random W, none of which was used to choose settings; figures are medians. mus: of `CHOSEN`.
    Rates: `rate_iterations` iterations with the paper's step, constant and diminishing. Returns
    what the JSON holds; errors there are fractions. Cost: about a minute on one core.
    """
    rows: list[dict[str, Any]] = []
    shown: dict[float, LearnedOperator] = {}
    rates: dict[str, dict[str, Any]] = {}
    some = range(FIRST_SEED, FIRST_SEED + seeds)
    total = sum(len(variants(mu)) + 1 for mu in mus)
    with bar(total, progress, "Van der Pol") as done:
        for mu in mus:
            parts = paper_split(mu)
            best = np.inf
            for variant in variants(mu):
                row, last = _row(variant, parts, some, n_iterations)
                rows.append({"mu": mu, **row})
                if row["multi_step_states"] < best:
                    best, shown[mu] = row["multi_step_states"], last
                done(len(rows) + len(rates))
            rates[str(mu)] = _rates(parts.train, some, rate_iterations)
            done(len(rows) + len(rates))
    bounds = {
        str(mu): {
            str(h): linear_bound(paper_split(mu).test[1:], h, 0.2 * np.pi / PERIODS[mu])
            for h in (3, 4, 6)
        }
        for mu in mus
    }
    result = {"rows": rows, "rates": rates, "linear_bounds": bounds, "paper": PAPER}
    settings = {"seeds": seeds, "n_iterations": n_iterations, "first_seed": FIRST_SEED, "dt": 0.1}
    console = wide_console()
    console.print(_table(rows, seeds))
    for mu in mus:
        constant = np.median(rates[str(mu)]["constant_slopes"])
        console.print(f"mu = {mu}: slope of min E, constant step, median: {constant:.2f}")
        least = ", ".join(f"{h}: {percent(found)}" for h, found in bounds[str(mu)].items())
        console.print(f"mu = {mu}: least x: 200 of any linear read-out, by number of h: {least}")
    picture = van_der_pol_figure(shown, rates)
    return written(console, output, "van-der-pol", settings, result, picture)


def _row(
    variant: Variant, parts: Split, seeds: Sequence[int], n_iterations: int
) -> tuple[dict[str, Any], LearnedOperator]:
    """Medians over the seeds, and the last seed's operator."""
    runs = []
    for seed in seeds:
        learner = AlternatingLearner(
            variant.dictionary, n_iterations=n_iterations, random_state=seed, **variant.settings
        )
        seconds = timed(learner, parts.train)
        runs.append({**state_errors(learner.operator_, parts.test), "seconds": seconds})
    medians = {name: float(np.median([run[name] for run in runs])) for name in runs[0]}
    named = {"dictionary": variant.name, "n_features": variant.dictionary.n_features}
    return {**named, **medians}, learner.operator_


def _rates(train: FloatArray, seeds: Sequence[int], n_iterations: int) -> dict[str, Any]:
    curves: dict[str, list[list[float]]] = {"constant": [], "diminishing": []}
    slopes = []
    spaced = np.unique(np.geomspace(1, n_iterations, 80).astype(int)) - 1
    for seed in seeds:
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


def _table(rows: list[dict[str, Any]], seeds: int) -> Table:
    table = Table(title=f"Van der Pol: 400 points learned, 200 predicted; medians of {seeds} seeds")
    for name in ("mu", "dictionary", "h", "psi: 1 step", "psi: 200", "x: 1 step", "x: 200", "time"):
        words = name == "dictionary"
        table.add_column(name, justify="left" if words else "right", no_wrap=words)
    for row in rows:
        errors = [percent(row[name]) for name in ERRORS]
        table.add_row(
            f"{row['mu']}",
            row["dictionary"],
            f"{row['n_features']}",
            *errors,
            f"{row['seconds']:.3f} s",
        )
    table.add_row(
        "?", "paper, 3 features", "3", "", "", "0.16 %", "1.89 %", f"{PAPER['seconds']} s"
    )
    return table
