"""Does learning pay? Beside random features, plain EDMD and delay DMD of the same size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from rich.console import RenderableType

from koopcore.lab.experiment import Cell, Context, Results, annotated, sheet
from koopcore.lab.experiments.learning import FIRST_SEED, delayed
from koopcore.lab.problems import flows, glycolysis, van_der_pol
from koopcore.learning import (
    AlternatingLearner,
    Dictionary,
    Monomials,
    OneLayer,
    RadialBasis,
    StateInclusive,
    VariableProjectionLearner,
)
from koopcore.types import FloatArray

METHODS = ("learned", "random", "edmd", "delays")
TITLES = {
    "learned": "learned",
    "random": "random W, one exact K",
    "edmd": "plain EDMD",
    "delays": "delay DMD",
}


@dataclass(frozen=True)
class Problem:
    """A system, the size of every dictionary for it, and how its learner is set.

    n_features: h, the constant among them. horizon: steps predicted. degree: of EDMD's monomials;
    0: the state and radial basis functions around random states of the data. depth: states in a row
    that the random dictionary and, unless it starts from delays, the learned one see. from_delays:
    > 0: the learned features see what those of delay DMD are, and start as them, nearly linear, in
    this scale, the smaller the more precise delays are.
    learner: settings of `VariableProjectionLearner`, chosen with seeds that are not reported.
    """

    name: str
    n_features: int
    horizon: int
    noise: float = 0.0
    degree: int = 0
    depth: int = 1
    from_delays: float = 0.0
    learner: dict[str, Any] = field(default_factory=dict)

    @property
    def ridge(self) -> Any:
        """That of every method: what the learner has."""
        return self.learner.get("ridge", 0.0)


NOISY: dict[str, Any] = {"ridge": "validation", "spectral_radius": 1.0}
PRECISE = {"one_step_weight": 1.0, "one_step_tolerance": 2e-6, "n_iterations": 1500}
PROBLEMS = {
    "duffing": Problem("duffing", 21, 100, degree=5, learner={"horizon": 80, **PRECISE}),
    **{
        f"{name}{' noisy' * bool(noise)}": Problem(
            name, size, steps, noise, degree, depth, delays, {"horizon": steps, **NOISY, **more}
        )
        for name, size, steps, degree, depth, delays, more in (
            ("lorenz-63", 20, 50, 3, 1, 0.0, {}),
            ("lorenz-96", 81, 20, 0, 1, 80**-0.5, {"n_iterations": 60}),
            ("kuramoto", 241, 50, 0, 5, 0.03, {"n_iterations": 40}),
        )
        for noise in (0.0, 0.02)
    },
    "van-der-pol": Problem(
        "van-der-pol", 21, 100, degree=5, learner={"horizon": 80, "n_iterations": 480}
    ),
    "glycolysis": Problem("glycolysis", 36, 200, degree=2, learner={"horizon": 80}),
}
FLOWS: dict[str, Callable[[], flows.Flow]] = {
    "duffing": flows.duffing,
    "lorenz-63": flows.lorenz63,
    "lorenz-96": flows.lorenz96,
    "kuramoto": flows.kuramoto,
}


class Data(NamedTuple):
    """What is learned from, in units of the training data's mean and spread, and what is asked."""

    train: list[FloatArray]
    past: FloatArray  # (starts, steps, n), the last of them x_0; as noisy as the training data
    true: FloatArray  # (starts, horizon, n), without noise


def settings(quick: bool, seeds: int | None = None, seed: int = FIRST_SEED) -> dict[str, Any]:
    """Seeds of data, noise, starts and W; iterations of L-BFGS."""
    return {
        "first_seed": seed,
        "seeds": seeds or (1 if quick else 3),
        "n_iterations": 24 if quick else 200,
        "trajectories": 8 if quick else 60,
        "starts": 20 if quick else 100,
    }


def cells(settings: dict[str, Any]) -> Sequence[Cell]:
    """One per problem and seed, and the objective on Duffing."""
    seeds = range(settings["first_seed"], settings["first_seed"] + settings["seeds"])
    parts = [
        Cell(f"{name}/{seed}", len(METHODS), partial(compared, settings, problem, seed))
        for name, problem in PROBLEMS.items()
        for seed in seeds
    ]
    return [
        *parts,
        *(Cell(f"objective/{seed}", 2, partial(objectives, settings, seed)) for seed in seeds),
    ]


def data(problem: Problem, settings: dict[str, Any], seed: int) -> Data:
    """Trajectories from random starts, and others from other starts; or the paper's split."""
    rng = np.random.default_rng(seed)
    steps, past = problem.horizon, problem.n_features  # more past than any delays need
    if problem.name in FLOWS:
        flow = FLOWS[problem.name]()
        past = 1 + problem.n_features // flow.n_states
        train = flow.trajectories(settings["trajectories"], 101, rng)
        test = flow.trajectories(settings["starts"], past + steps, rng)
    else:
        split = (
            van_der_pol.paper_split(1.0)
            if problem.name == "van-der-pol"
            else glycolysis.paper_split()
        )
        train = split.train[None]
        past = 1 + problem.n_features // train.shape[2]
        firsts = range(0, len(split.test) - past - steps + 1, 2)
        test = np.stack([split.test[first : first + past + steps] for first in firsts])
    rows = train.reshape(-1, train.shape[2])
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    train, test = (train - mean) / spread, (test - mean) / spread
    seen = [x + problem.noise * rng.standard_normal(x.shape) for x in train]
    before = test[:, :past] + problem.noise * rng.standard_normal(test[:, :past].shape)
    return Data(seen, before, test[:, past:])


def compared(
    settings: dict[str, Any], problem: Problem, seed: int, context: Context
) -> dict[str, Any]:
    """Errors and seconds of every method, and what the learner chose."""
    given = data(problem, settings, seed)
    n, steps = given.true.shape[2], problem.horizon
    result: dict[str, Any] = {}
    for method in METHODS:
        dictionary, depth = _dictionary(method, problem, given, seed)
        chosen = dict(problem.learner) if method == "learned" else {"ridge": problem.ridge}
        if method != "learned" and problem.ridge == "validation":
            chosen["horizon"] = problem.learner["horizon"]  # the ridge is judged alike
        if depth > 1 and "horizon" in chosen:
            chosen["horizon"] = min(chosen["horizon"], 101 - 2 * depth)
        if settings["n_iterations"] < 100:  # a quick look
            chosen.pop("n_iterations", None)
        chosen = {"n_iterations": settings["n_iterations"], **chosen}
        learner = VariableProjectionLearner(
            dictionary, standardize=False, random_state=seed, **chosen
        )
        start = time.perf_counter()
        stop = None if method == "learned" else _at_once
        learner.fit([delayed(x, depth) for x in given.train], callback=stop)
        seconds = time.perf_counter() - start
        x0 = np.stack([delayed(x, depth)[-1] for x in given.past])
        predicted = learner.predict(x0, steps)[..., :n]
        result[method] = {
            **errors(predicted, given.true),
            "n_features": dictionary.n_features,
            "ridge": learner.ridge_,
            "radius": float(np.abs(learner.operator_.eigenvalues()[0])),
            "seconds": seconds,
        }
        context.tick()
    return result


def errors(predicted: FloatArray, true: FloatArray) -> dict[str, float]:
    """Of one step over all starts, and of all steps, the median over the starts.

    ‖predicted - true‖ / ‖true‖ about the training data's mean and in units of its spread, so that
    predicting the mean has an error of 1.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        missed = np.linalg.norm((predicted - true).reshape(len(true), -1), axis=1)
    of_starts = missed / np.linalg.norm(true.reshape(len(true), -1), axis=1)
    of_starts = np.where(np.isfinite(of_starts), of_starts, np.inf)
    one = np.linalg.norm(predicted[:, 0] - true[:, 0]) / np.linalg.norm(true[:, 0])
    return {"one_step": float(one), "multi_step": float(np.median(of_starts))}


def objectives(settings: dict[str, Any], seed: int, context: Context) -> dict[str, Any]:
    """F on Duffing with 16 features: 500 alternating iterations, and L-BFGS in no more time."""
    given = data(PROBLEMS["duffing"], settings, seed)
    dictionary = StateInclusive(OneLayer(2, 13, scale=2**-0.5), constant=True)
    start = time.perf_counter()
    alternating = AlternatingLearner(
        dictionary,
        k_step="exact",
        track="objective",
        n_iterations=settings["n_iterations"] * 5 // 2,
        random_state=seed,
    ).fit(given.train)
    seconds = time.perf_counter() - start
    context.tick()
    start = time.perf_counter()
    history: list[tuple[float, float]] = []
    learner = VariableProjectionLearner(
        dictionary, n_iterations=10 * settings["n_iterations"], standardize=False, random_state=seed
    )

    def late(*_: object) -> bool:
        history.append((time.perf_counter() - start, learner.history_.objective[-1]))
        return history[-1][0] > 10 * seconds  # what is compared in time is cut below

    learner.fit(given.train, callback=late)
    context.tick()
    in_time = [value for at, value in history if at <= seconds]
    return {
        "alternating": min(alternating.history_.objective),
        "alternating_seconds": seconds,
        "projection": min(in_time, default=float("inf")),
        "projection_in_the_end": min(value for _, value in history),
        "projection_seconds_to_1e-7": next((at for at, value in history if value <= 1e-7), None),
        "projection_iterations": len(in_time),
    }


def table(results: Results, settings: dict[str, Any]) -> RenderableType:
    """One line per problem and method: medians over the seeds; F on Duffing under it."""
    title = f"Dictionaries of equal size, held-out starts; medians of {settings['seeds']} seeds"
    shown = sheet(title, ("h", "1 step", "multi-step", "of the best other", "time"))
    seeds = range(settings["first_seed"], settings["first_seed"] + settings["seeds"])
    for name, problem in PROBLEMS.items():
        runs = [results[key] for seed in seeds if (key := f"{name}/{seed}") in results]
        if not runs:
            continue
        shown.add_row(f"{name}, {problem.horizon} steps", style="bold")
        multi = {m: float(np.median([run[m]["multi_step"] for run in runs])) for m in METHODS}
        best = min(multi[m] for m in METHODS[1:])
        for method in METHODS:
            shown.add_row(
                f" {TITLES[method]}",
                str(runs[0][method]["n_features"]),
                f"{np.median([run[method]['one_step'] for run in runs]):.2g}",
                f"{multi[method]:.3g}",
                f"{multi[method] / best:.2f}" if method == "learned" else "",
                f"{np.median([run[method]['seconds'] for run in runs]):.1f} s",
            )
        shown.add_section()
    notes = ["Errors: 1 is predicting the mean. Multi-step: the median over the starts."]
    runs = [results[key] for seed in seeds if (key := f"objective/{seed}") in results]
    if runs:
        alternating, projection, seconds = (
            np.median([run[key] for run in runs])
            for key in ("alternating", "projection", "alternating_seconds")
        )
        notes.append(
            f"F on Duffing, 16 features: alternating {alternating:.2g} in {seconds:.1f} s, "
            f"variable projection {projection:.2g} in that time."
        )
    return annotated(shown, *notes)


def _dictionary(method: str, problem: Problem, given: Data, seed: int) -> tuple[Dictionary, int]:
    """The method's dictionary, and how many states in a row are its state."""
    n, h = given.true.shape[2], problem.n_features
    if method == "delays":
        depth = (h - 1) // n
        return Monomials(n * depth, 1, constant=True), depth
    if method == "edmd" and problem.degree:
        return Monomials(n, problem.degree, constant=True), 1
    if method == "edmd":
        size = h - n - 1
        rows = np.concatenate(given.train)
        rng = np.random.default_rng([seed, 1])
        centres = rows[rng.choice(len(rows), size, replace=False)]
        # The width: the median distance of the centres, the usual choice.
        apart = np.linalg.norm(centres[:, None] - centres, axis=2)
        width = float(np.median(apart[np.triu_indices(size, 1)]))
        return StateInclusive(RadialBasis(centres, width), constant=True), 1
    if method == "learned" and (scale := problem.from_delays):
        width = n * ((h - 1) // n)
        layer = OneLayer(width, h - n - 1, scale=scale, coordinates=tuple(range(n, width)))
        return StateInclusive(layer, constant=True, states=n), width // n
    width, bare = n * problem.depth, h - n * problem.depth - 1
    return StateInclusive(OneLayer(width, bare, scale=width**-0.5), constant=True), problem.depth


def _at_once(*_: object) -> bool:
    """Stops before the first step: W stays random, K is exact."""
    return True
