"""A short run of tests/fuzz.py, and whether it notices what is wrong."""

from __future__ import annotations

import itertools
import warnings

import fuzz
import numpy as np
import pytest
from trajectories import NAMES

import koopcore as kc
from koopcore.backends.composed import Composed
from koopcore.backends.reference import Reference
from koopcore.operators import KoopmanOperators

FAMILIES = [
    f"{motion}+{change}{length}"
    for motion in fuzz.MOTIONS
    for change in fuzz.CHANGES
    for length in ("", f"+{fuzz.LONG}")
]


def tallies_of(work, backends=tuple(NAMES), state=None):
    state = state or fuzz.State(None, {})
    before = state.done
    for done in fuzz.run(work[before:], backends, 1, state.tallies):
        state.save(before + done, 0.0)
    return state.tallies


def total(tallies):
    whole = fuzz.Tally()
    for tally in tallies.values():
        whole.add(tally)
    return whole


def test_no_family_of_random_windows_fails():
    tallies = tallies_of(fuzz.batches(7 * len(FAMILIES), 6, 0, ""))  # twice 6, and 1 if long
    whole = total(tallies)
    assert set(tallies) == set(FAMILIES)
    assert not whole.counts, "\n" + fuzz.table(tallies)
    assert whole.judged > 0.95 * whole.groups


def too_far(stage):
    """`combine` that moves a hundredth too far."""

    def combine(self, snapshots, part, weights, out):
        stage(self, snapshots, part, 1.0 + 1.01 * (weights - 1.0), out)

    return combine


def too_large(stage):
    """`project` whose operators are a hundredth too large."""

    def project(self, *given):
        made = stage(self, *given)
        return made._replace(operator=made.operator * 1.01)

    return project


def nothing_ahead(stage):
    """A fit that writes zeros for what it predicts at once."""

    def fused(self, *given):
        solved = stage(self, *given)
        if given[4] is not None:
            given[4].out[:] = 0.0
        return solved

    return fused


def twice(stage):
    def operator(self, group):
        return 2.0 * stage(self, group)

    return operator


def warning(stage):
    def issuing(self, *given):
        warnings.warn("a backend that warns", RuntimeWarning, stacklevel=2)
        return stage(self, *given)

    return issuing


@pytest.mark.parametrize(
    ("of", "stage", "broken", "family", "kinds"),
    [
        (Reference, "combine", too_far, "oscillating", {"wrong", "apart"}),
        (Reference, "project", too_large, "oscillating", {"wrong", "apart"}),
        (KoopmanOperators, "operator", twice, "walk", {"truth"}),
        (Composed, "gram_solve", nothing_ahead, "walk", {"ahead"}),
        (Composed, "feature_fit", nothing_ahead, "walk", {"ahead"}),
        (Reference, "gram", warning, "walk", {"crash"}),
    ],
)
def test_what_is_wrong_is_noticed(of, stage, broken, family, kinds, monkeypatch):
    others = [name for name in NAMES if name != "reference"][:1]
    work = fuzz.batches(8 * len(fuzz.CHANGES), 8, 0, family)
    monkeypatch.setattr(of, stage, broken(getattr(of, stage)))
    whole = total(tallies_of(work, (*others, "reference")))
    noticed = {kind for kind, count in whole.counts.items() if count}
    assert kinds - ({"apart"} if not others else set()) <= noticed


def test_a_run_that_was_stopped_goes_on(tmp_path):
    given = {"seed": 0}
    work = fuzz.batches(4 * 20, 4, 0, "low_rank")
    at_once = tallies_of(work, NAMES[:1])
    first = fuzz.State(tmp_path / "state.json", given)
    tallies_of(work[:8], NAMES[:1], first)
    again = fuzz.State(tmp_path / "state.json", given)
    assert again.done == 8
    assert tallies_of(work, NAMES[:1], again) == at_once
    with pytest.raises(SystemExit, match="of another run"):
        fuzz.State(tmp_path / "state.json", {"seed": 1})


def test_hindcast_and_growth_tell_how_good_a_prediction_is():
    """The table of docs/mathematics.md, of motions that go on as they were, on a smaller scale."""
    rng, rows = np.random.default_rng(0), []
    for name in ("smooth", "growing", "oscillating", "random_system", "noisy") * 8:
        for model, dtype in itertools.product(("affine", "linear", "auto"), ("float32", "float64")):
            n, m, groups = int(rng.choice([9, 16, 24, 33])), int(rng.integers(1, 40)), 20
            motion = fuzz.MOTIONS[name](rng, groups, 2 * n, m)
            problem = fuzz.Problem(motion[:, :n].astype(dtype), fuzz.Method(model == "affine"))
            ops = kc.fit(problem.snapshots, problem.part, model)
            got = ops.predict(n).reshape(groups, m).astype(np.float64)
            moved = np.linalg.norm(motion[:, -1] - motion[:, n - 1], axis=1)
            error = np.linalg.norm(got - motion[:, -1], axis=1) / np.maximum(moved, 1e-300)
            rows.append(np.stack([ops.hindcast_error, ops.growth(n), error], axis=1))
    hindcast, growth, error = np.concatenate(rows).T
    steady = growth < 3.0
    sure = error[steady & (hindcast < 1e-3)]
    assert len(sure) > 1000
    assert np.quantile(sure, 0.95) < 1e-3
    assert (sure > 1.0).mean() < 1e-3
    fair = error[steady & (hindcast >= 1e-2) & (hindcast < 0.1)]
    assert len(fair) > 50
    assert np.median(fair) < 0.1
    assert (fair > 1.0).mean() < 0.1
    bad = error[steady & (hindcast >= 0.5)]
    assert np.median(bad) > 0.5
