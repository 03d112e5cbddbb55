"""Van der Pol, after Liu, Ding, Chen, Yeung 2020 (Fig. 1): learned, beside the paper, and rates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.console import RenderableType

from koopcore.lab.experiment import (
    Cell,
    Context,
    Results,
    annotated,
    packed,
    sheet,
    unpacked,
)
from koopcore.lab.experiments.learning import (
    ERRORS,
    FIRST_SEED,
    KOOPMAN,
    TRUE,
    delay_dmd,
    fitted_slope,
    least_criterion,
    percent,
    state_errors,
    timed,
    without_learning,
)
from koopcore.lab.problems.linear_bound import linear_bound
from koopcore.lab.problems.van_der_pol import PAPER, PERIODS, paper_split
from koopcore.learning import (
    AlternatingLearner,
    Dictionary,
    Diminishing,
    Monomials,
    OneLayer,
    StateInclusive,
)

PAPER_STEP = 0.23


class Variant(NamedTuple):
    """One row of the table."""

    name: str
    dictionary: Dictionary
    settings: dict[str, Any]


BARE = (
    Variant(
        "3 tanh, gradient, step 0.23",
        OneLayer(2, 3, bias=None),
        {"step_k": PAPER_STEP, "step_w": PAPER_STEP},
    ),
    Variant("3 tanh, gradient, 1/L_K", OneLayer(2, 3, bias=None), {}),
    Variant("3 arctan, gradient, 1/L_K", OneLayer(2, 3, "arctan", bias=None), {}),
    Variant(
        "3 logistic, exact K",
        OneLayer(2, 3, "logistic", 0.3, bias=None),
        {"k_step": "exact", "track": "objective"},
    ),
)
# Activation and first spread of W by μ and number of features beside the state: the best on a
# validation part of the training points (benchmarks/bench_learning_settings.py).
BEST = {
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
    """The rows for one μ of `BEST`: three bare features, then the state and more and more."""
    inclusive = (
        Variant(
            f"state + {size} {name}, exact K",
            StateInclusive(OneLayer(2, size, name, scale, bias=None)),
            {"k_step": "exact", "track": "objective"},
        )
        for size, (name, scale) in BEST[mu].items()
    )
    return (*BARE, *inclusive)


def settings(
    quick: bool, seeds: int | None = None, n_iterations: int | None = None
) -> dict[str, Any]:
    """Seeds, none of which was used to choose settings, and iterations of learners and of rates."""
    return {
        "mus": list(BEST),
        "dt": 0.1,
        "first_seed": FIRST_SEED,
        "seeds": seeds or (2 if quick else 10),
        "n_iterations": n_iterations or (50 if quick else 500),
        "rate_iterations": 300 if quick else 3000,
    }


def cells(settings: dict[str, Any]) -> Sequence[Cell]:
    """For each μ: every variant, the rates of E, and what a linear read-out can reach at all."""
    seeds = settings["seeds"]
    parts = []
    for mu in settings["mus"]:
        for variant in variants(mu):
            work = partial(medians, settings, mu, variant)
            parts.append(Cell(f"mu {mu}/{variant.name}", seeds, work))
        parts.append(Cell(f"mu {mu}/without learning", 1, partial(not_learned, settings, mu)))
        parts.append(Cell(f"mu {mu}/rates", seeds, partial(rates, settings, mu)))
        parts.append(Cell(f"mu {mu}/linear bounds", 1, partial(bounds, settings, mu)))
    return parts


def medians(
    settings: dict[str, Any], mu: float, variant: Variant, context: Context
) -> dict[str, Any]:
    """Errors and seconds of a variant, medians over the seeds, and the last seed's prediction.

    Errors are fractions. ``predicted`` are the states at the 200 test points, from the first alone.
    """
    parts = paper_split(mu, settings["dt"])
    runs = []
    for seed in range(settings["first_seed"], settings["first_seed"] + settings["seeds"]):
        learner = AlternatingLearner(
            variant.dictionary,
            n_iterations=settings["n_iterations"],
            random_state=seed,
            **variant.settings,
        )
        seconds = timed(learner, parts.train)
        runs.append({**state_errors(learner.operator_, parts.test), "seconds": seconds})
        context.tick()
    predicted = learner.operator_.predict(parts.test[0], len(parts.test) - 1)
    return {
        "n_features": variant.dictionary.n_features,
        **{name: float(np.median([run[name] for run in runs])) for name in runs[0]},
        "predicted": packed(predicted),
    }


def not_learned(settings: dict[str, Any], mu: float, context: Context) -> dict[str, Any]:
    """The same dictionaries with random W and one exact K, plain EDMD, and delay DMD."""
    train, test = paper_split(mu, settings["dt"])
    seeds = range(settings["first_seed"], settings["first_seed"] + settings["seeds"])
    rows = {
        f"random W, one exact K: {variant.name}": {
            "n_features": variant.dictionary.n_features,
            **without_learning(variant.dictionary, train, test, seeds),
        }
        for variant in variants(mu)[len(BARE) :]
    }
    for degree in (3, 5):
        monomials = Monomials(2, degree)
        rows[f"plain EDMD, monomials to degree {degree}"] = {
            "n_features": monomials.n_features,
            **without_learning(monomials, train, test, [0]),
        }
    for depth in (4, 10):
        rows[f"delay DMD, {depth} states in a row"] = {
            "n_features": 2 * depth + 1,
            **delay_dmd(train, test, depth),
        }
    context.tick()
    return {"rows": rows}


def rates(settings: dict[str, Any], mu: float, context: Context) -> dict[str, Any]:
    """min E over the iterations with the paper's step, constant and diminishing; fitted slopes."""
    train = paper_split(mu, settings["dt"]).train
    n_iterations = settings["rate_iterations"]
    curves: dict[str, list[Any]] = {"constant": [], "diminishing": []}
    slopes = []
    spaced = np.unique(np.geomspace(1, n_iterations, 80).astype(int)) - 1
    for seed in range(settings["first_seed"], settings["first_seed"] + settings["seeds"]):
        for name, step in (("constant", PAPER_STEP), ("diminishing", Diminishing(PAPER_STEP))):
            learner = AlternatingLearner(
                OneLayer(2, 3, bias=None),
                step_k=step,
                step_w=step,
                n_iterations=n_iterations,
                random_state=seed,
            ).fit(train)
            least = least_criterion(learner.history_)
            if name == "constant":
                slopes.append(fitted_slope(least))
            curves[name].append(least[spaced])
        context.tick()
    return {
        "iterations": (spaced + 1).tolist(),
        "constant_slopes": slopes,
        **{name: packed(np.transpose(of_seeds)) for name, of_seeds in curves.items()},
    }


def bounds(settings: dict[str, Any], mu: float, context: Context) -> dict[str, Any]:
    """The least error of any linear read-out of 3, 4 and 6 features; see `linear_bound`."""
    states = paper_split(mu, settings["dt"]).test[1:]
    angle = 2.0 * np.pi * settings["dt"] / PERIODS[mu]
    least = {str(h): linear_bound(states, h, angle) for h in (3, 4, 6)}
    context.tick()
    return least


def table(results: Results, settings: dict[str, Any]) -> RenderableType:
    """One line per μ and variant, the paper's figures last; slopes and bounds under them."""
    title = f"Van der Pol: 400 points learned, 200 predicted; medians of {settings['seeds']} seeds"
    shown = sheet(title, ("h", "psi: 1 step", "psi: 200", "x: 1 step", "x: 200", "time"))
    notes = []
    for mu in settings["mus"]:
        shown.add_row(f"mu = {mu}", style="bold")
        for variant in variants(mu):
            row = results.get(f"mu {mu}/{variant.name}")
            if row is not None:
                figures = [percent(row[name]) for name in ERRORS]
                seconds = f"{row['seconds']:.3f} s"
                shown.add_row(f" {variant.name}", str(row["n_features"]), *figures, seconds)
        for name, row in results.get(f"mu {mu}/without learning", {"rows": {}})["rows"].items():
            figures = [percent(row[error]) if error in row else "" for error in ERRORS]
            shown.add_row(f" {name}", str(row["n_features"]), *figures, "", style="dim")
        shown.add_section()
        if (curves := results.get(f"mu {mu}/rates")) is not None:
            slope = np.median(curves["constant_slopes"])
            notes.append(f"mu = {mu}: slope of min E, constant step, median: {slope:.2f}.")
        if (bound := results.get(f"mu {mu}/linear bounds")) is not None:
            least = ", ".join(f"{h}: {percent(bound[h])}" for h in ("3", "4", "6"))
            notes.append(
                f"mu = {mu}, dt = {settings['dt']}: least x: 200 of a linear read-out, as far as "
                f"it was searched for, by h: {least}."
            )
    printed = (percent(PAPER["one_step"]), percent(PAPER["multi_step"]), f"{PAPER['seconds']} s")
    shown.add_row("paper, 3 features, mu not published", "3", "", "", *printed, style="cyan")
    return annotated(shown, *notes)


def picture(results: Results, settings: dict[str, Any]) -> Figure:
    """One row per μ: both states predicted 200 steps from x_0 (Fig. 1), the cycle, the rates.

    Shown is the variant with the least error at 200 steps.
    """
    mus = settings["mus"]
    figure = Figure(figsize=(14, 4.2 * len(mus)), dpi=110, layout="constrained")
    grid: Any = figure.subplots(len(mus), 3, squeeze=False)
    for mu, (states, plane, rate) in zip(mus, grid, strict=True):
        learned = [
            results[name]
            for variant in variants(mu)
            if (name := f"mu {mu}/{variant.name}") in results
        ]
        true = paper_split(mu, settings["dt"]).test
        plane.plot(*true.T, color=TRUE, lw=4, alpha=0.35, label="true")
        if learned:
            best = min(learned, key=lambda row: row["multi_step_states"])
            predicted = unpacked(best["predicted"])
            steps = np.arange(1, len(predicted) + 1)
            for column, name in enumerate(("$x_1$", "$x_2$")):
                states.plot(steps, true[1:, column], color=TRUE, lw=4, alpha=0.35)
                states.plot(steps, predicted[:, column], color=KOOPMAN, ls=(0, (4, 2)))
                states.annotate(name, (steps[8], true[9, column]), fontsize=12)
            plane.plot(*predicted.T, color=KOOPMAN, ls=(0, (4, 2)), label="Koopman")
        states.set(xlabel="steps after $x_0$", title=f"$\\mu$ = {mu}: predicted from $x_0$ alone")
        plane.set(xlabel="$x_1$", ylabel="$x_2$", title="limit cycle")
        plane.legend(frameon=False)
        if f"mu {mu}/rates" in results:
            _draw_rates(rate, results[f"mu {mu}/rates"])
    return figure


def _draw_rates(axes: Any, rates: dict[str, Any]) -> None:
    t = np.asarray(rates["iterations"])
    curves = {name: unpacked(rates[name]) for name in ("constant", "diminishing")}
    for (name, values), colour in zip(curves.items(), (TRUE, KOOPMAN), strict=True):
        axes.loglog(t, values, color=colour, lw=0.7, alpha=0.35)
        axes.loglog(t, np.median(values, axis=1), color=colour, lw=2.2, label=f"{name} step")
    start = float(np.median(curves["constant"][0]))
    axes.loglog(t, start / t, color="black", lw=1, ls=":", label="$\\propto 1/T$")
    axes.loglog(
        t, start / (1 + np.log(t)), color="black", lw=1, ls="--", label="$\\propto 1/\\log T$"
    )
    slope = np.median(rates["constant_slopes"])
    axes.set(xlabel="$T$", ylabel="$\\min_{t\\leq T} E$", title=f"rates; fitted slope {slope:.2f}")
    axes.legend(frameon=False, fontsize=8)
