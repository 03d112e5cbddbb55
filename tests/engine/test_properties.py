"""What must not change an answer, and what the answer is: on random problems, for every backend.

Every problem is fitted by all CPU backends and predicted in both ways; the answer is `oracle`'s, by
singular values of the columns themselves. An error may be 1e-6 of the movement, or ten times what
the answer moves by when the columns are changed by rounding; problems whose answer moves by more
than a tenth are not drawn. HYPOTHESIS_PROFILE=search draws other examples each time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import oracle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from trajectories import NAMES

import koopcore as kc
from koopcore.fitted.selection import CREDIBLE_GROWTH, ROUNDING
from koopcore.operators import GOOD

HORIZONS = (1, 3, 12)
CLOSE = 1e-6  # of the movement: what an error may always be
UNCERTAIN = 0.1  # of the movement: such an answer says nothing

pytestmark = pytest.mark.filterwarnings("error")

# -- problems --------------------------------------------------------------------------------------


def modes(rng, n, m, turns):
    """A point, and Σ_j v_j λ_jᵗ around it."""
    shapes = rng.normal(size=(len(turns), m)) + 1j * rng.normal(size=(len(turns), m))
    return rng.normal(size=m) + (np.power.outer(turns, np.arange(n)).T @ shapes).real


def decaying(rng, n, m):
    return modes(rng, n, m, np.array([0.9, 0.6, 0.2]) + rng.uniform(-0.05, 0.05, 3))


def oscillating(rng, n, m):
    return modes(rng, n, m, rng.uniform(0.85, 1.01, 2) * np.exp(1j * rng.uniform(0.3, 2.8, 2)))


def growing(rng, n, m):
    return modes(rng, n, m, rng.uniform(0.8, 1.1, 2))


def walking(rng, n, m):
    return rng.normal(size=m) + np.cumsum(rng.normal(size=(n, m)), axis=0)


def flat(rng, n, m):
    """Two directions only."""
    return rng.normal(size=(n, 2)) @ rng.normal(size=(2, m))


def whole_numbers(rng, n, m):
    return rng.integers(-4, 5, size=(n, m)).astype(np.float64)


MOTIONS = {f.__name__: f for f in (decaying, oscillating, growing, walking, flat, whole_numbers)}


@dataclass(frozen=True)
class Problem:
    """One window and how it is fitted; printed as it is, it is made again."""

    motion: str
    n: int
    m: int
    model: str
    dtype: str
    rank: int | None
    ridge: float
    seed: int

    @cached_property
    def x(self) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        return MOTIONS[self.motion](rng, self.n, self.m).astype(self.dtype)

    @property
    def method(self) -> oracle.Method:
        return oracle.Method(self.model == "affine", self.rank, self.ridge)

    @property
    def is_small(self) -> bool:
        """Fewer parameters than columns: fitted on the feature side."""
        return self.m < self.n - 1

    @property
    def rng(self) -> np.random.Generator:
        """For what a test does to it."""
        return np.random.default_rng([self.seed, 1])


@st.composite
def problems(
    draw,
    models=("linear", "affine"),
    ways=("plain", "plain", "rank", "ridge"),
    motions=tuple(MOTIONS),
    least_n=3,
    least_m=1,
):
    n = draw(st.integers(least_n, 14))
    m = draw(st.integers(least_m, max(least_m, n - 2)) | st.integers(max(n - 1, least_m), 24))
    model = draw(st.sampled_from(models))
    way = draw(st.sampled_from(ways))
    return Problem(
        draw(st.sampled_from(motions)),
        n,
        m,
        model,
        draw(st.sampled_from(("float32", "float64"))),
        draw(st.integers(1, max(1, min(m, n - 2)))) if way == "rank" else None,
        draw(st.sampled_from((1e-9, 1e-5, 1e-2))) if way == "ridge" else 0.0,
        draw(st.integers(0, 2**16)),
    )


def about(seconds):
    """Settings of a property that takes so long here."""
    return settings(max_examples=int(30 * seconds))


# -- comparisons -----------------------------------------------------------------------------------


@dataclass
class Expected:
    """The answer for snapshots x (n, m), and how far predictions may be from it."""

    x: np.ndarray
    method: oracle.Method
    noise: float = 0.0  # what the snapshots themselves are off by, as a share of their length
    answer: oracle.Answer = field(init=False)
    allowed: np.ndarray = field(init=False)  # (n_horizons,)

    def __post_init__(self) -> None:
        self.answer = oracle.answer(self.x[None], self.method, HORIZONS)
        doubt = oracle.spread(self.x[None], self.method, HORIZONS, self.noise)[:, 0]
        assume((doubt < UNCERTAIN).all())
        # A ridge is added to a Gram matrix whose sums are rounded, and there is no second pass.
        rounding = max(self.x.shape) * oracle.EPSILON / (self.method.ridge or np.inf)
        self.allowed = np.maximum(CLOSE, 10.0 * (doubt + rounding))

    @property
    def values(self) -> np.ndarray:
        return self.answer.values[:, 0]

    def check(self, got: np.ndarray, note: str) -> None:
        error = got[:, None].astype(np.float64) - self.answer.values
        error = oracle.share(error, self.answer, self.x.dtype)[:, 0]
        assert (error <= self.allowed).all(), f"{note}: off by {error}, allowed {self.allowed}"


def predictions(x, problem, part=None, order=None):
    """(backend and way, predictions (n_horizons, size), operators) of every backend and way."""
    part = part or kc.Partition.groups(x.shape[1], [range(x.shape[1])])
    for backend in NAMES:
        options = problem.model, problem.rank, problem.ridge, backend
        ops = kc.fit(x, part, *options, order=order)
        yield f"{backend}, fit and predict", ops.predict(HORIZONS), ops
        ops = kc.fit(x, part, *options, order=order, horizon=HORIZONS)
        yield f"{backend}, fit with horizon", ops.predict(HORIZONS), ops


def check_all(x, problem, expected, back=None, **options):
    """Predictions of x, turned back into those of the problem by ``back``, are as expected."""
    for note, got, ops in predictions(x, problem, **options):
        assert (ops.status == GOOD).all(), note
        expected.check(got if back is None else back(got.astype(np.float64)), note)


# -- what the answer is ----------------------------------------------------------------------------


@about(4)
@given(problems())
def test_predictions_are_powers_of_the_operator_by_singular_values(problem):
    x = problem.x
    expected = Expected(x, problem.method)
    check_all(x, problem, expected)


@about(4)
@given(problems())
def test_operator_predicts(problem):
    """predict(1) = U x_n, and predict(T1 + T2) is predict(T1) stepped T2 times."""
    x = problem.x
    expected = Expected(x, problem.method)
    last, before = x[-1].astype(np.float64), x[-2].astype(np.float64)
    for note, _, ops in predictions(x, problem):
        u = ops.operator(0)
        state = last - before if problem.model == "affine" else last
        position, path = last, []
        for t in range(1, max(HORIZONS) + 1):
            state = u @ state
            position = position + state if problem.model == "affine" else state
            if t in HORIZONS:
                path.append(position)
        expected.check(np.array(path), f"{note}, by operator()")


@about(2)
@given(problems())
def test_hindcast_error_is_that_of_a_shorter_window(problem):
    # In the shorter window too, such a ridge weighs coordinates about x_n.
    assume(not (problem.ridge and problem.is_small and problem.model == "linear"))
    x, kept = problem.x, problem.n - max(1, (problem.n - 1) // 4)
    due = oracle.hindcast(x[None], problem.method)[0]
    if np.isnan(due):
        for note, _, ops in predictions(x, problem):
            assert np.isnan(ops.hindcast_error[0]), note
        return
    ahead = [problem.n - kept]
    shorter = oracle.answer(x[None, :kept], problem.method, ahead)
    moved = np.linalg.norm(x[-1].astype(np.float64) - x[kept - 1])
    doubt = oracle.spread(x[None, :kept], problem.method, ahead)[0, 0]
    assume(doubt < UNCERTAIN)
    allowed = max(CLOSE, 10.0 * doubt) * max(1.0, shorter.movement[0, 0] / moved) if moved else 0.0
    # It is a root of a difference of squares, which are rounded.
    allowed += 1e-7 * np.linalg.norm(x[-1].astype(np.float64)) / moved if moved else 0.0
    for note, _, ops in predictions(x, problem):
        assert ops.hindcast_error[0] == pytest.approx(due, rel=1e-3, abs=allowed), note


@about(2)
@given(problems(models=("auto",), ways=("plain", "rank")))
def test_auto_is_the_best_candidate_by_hindcast(problem):
    """The straight line, both models, three ridges: predicted as that candidate is alone."""
    x, part = problem.x, kc.Partition.groups(problem.m, [range(problem.m)])
    ridges = (0.0, 1e-9, 1e-5) if problem.rank is None else (0.0,)
    for note, got, ops in predictions(x, problem):
        backend = note.split(",")[0]
        alone = [kc.fit(x, part, "trend", backend=backend)] + [
            kc.fit(x, part, model, problem.rank, ridge, backend)
            for model in ("affine", "linear")
            for ridge in ridges
        ]
        errors = [
            fit.hindcast_error[0] if fit.growth(problem.n)[0] <= CREDIBLE_GROWTH else np.nan
            for fit in alone
        ]
        best = np.nanmin(errors, initial=np.inf)
        if np.isfinite(best):
            assert ops.hindcast_error[0] <= max(best, ROUNDING) * (1.0 + 1e-6), note
        else:
            assert ops.model[0] == "trend", note
        same = [fit for fit in alone if fit.model[0] == ops.model[0]]
        # One and the same computation, but for the order of sums.
        size = np.abs(got).max() * np.finfo(x.dtype).eps * 100
        assert any(np.abs(fit.predict(HORIZONS) - got).max() <= size for fit in same), note


# -- what must not change it -----------------------------------------------------------------------


@about(2)
@given(problems())
def test_permuted_parameters(problem):
    x, p = problem.x, problem.rng.permutation(problem.m)
    # The ridge of the linear model of small groups weighs coordinates about the largest parameter,
    # the first of them if there are several.
    largest = (np.abs(x[-1]) == np.abs(x[-1]).max()).sum()
    assume(largest == 1 or not (problem.ridge and problem.is_small and problem.model == "linear"))
    check_all(x[:, p], problem, Expected(x, problem.method), lambda y: y[:, np.argsort(p)])


@about(2)
@given(problems())
def test_mixed_parameters(problem):
    """An orthogonal mixing; a ridge of small groups weighs parameters one by one."""
    assume(not (problem.ridge and problem.is_small))
    q, _ = np.linalg.qr(problem.rng.normal(size=(problem.m, problem.m)))
    x = problem.x
    mixed = (x.astype(np.float64) @ q).astype(x.dtype)
    noise = float(np.finfo(x.dtype).eps)  # of what was mixed
    check_all(mixed, problem, Expected(x, problem.method, noise), lambda y: y @ q.T)


@about(2)
@given(problems(), st.data())
def test_a_segment_split_in_two(problem, data):
    x, m = problem.x, problem.m
    assume(m > 1)
    cut, gap = data.draw(st.integers(1, m - 1)), data.draw(st.integers(1, 3))
    wide = np.full((problem.n, m + gap), 7.0, dtype=x.dtype)
    mine = np.r_[0:cut, cut + gap : m + gap]
    wide[:, mine] = x
    part = kc.Partition.groups(m + gap, [mine])
    check_all(wide, problem, Expected(x, problem.method), lambda y: y[:, mine], part=part)


@about(2)
@given(problems(), st.integers(1, 30))
def test_parameters_that_do_not_move(problem, n_more):
    """Zero, or for the affine model constant, anywhere in the group: it may change sides then."""
    assume(not (problem.ridge and problem.is_small))
    x, rng = problem.x, problem.rng
    at = np.sort(rng.permutation(problem.m + n_more)[: problem.m])
    value = rng.normal(size=problem.m + n_more) if problem.model == "affine" else 0.0
    wide = np.zeros((problem.n, problem.m + n_more), dtype=x.dtype) + np.asarray(value, x.dtype)
    wide[:, at] = x
    check_all(wide, problem, Expected(x, problem.method), lambda y: y[:, at])


@about(2)
@given(problems(), st.sampled_from((2, 3, 4, 9)))
def test_repeated_parameters(problem, times):
    """All equally often: every length is √times what it was."""
    assume(not problem.ridge or (times == 4 and not problem.is_small))
    x = problem.x
    expected = Expected(x, problem.method)
    Expected(np.tile(x, times), problem.method)  # the rank must be clear by the cut-off there too
    check_all(np.tile(x, times), problem, expected, lambda y: y[:, : problem.m])


@about(3)
@given(problems(), st.data())
def test_scaled_by_powers_of_two(problem, data):
    x = problem.x
    most = float(np.abs(x).max())
    least = float(np.abs(x[x != 0.0]).min(initial=most)) if most else 1.0
    assume(most > 0.0)
    limits = np.finfo(x.dtype)
    low = int(np.frexp(limits.tiny)[1] - np.frexp(least)[1]) + 1 + limits.nmant
    high = int(np.frexp(limits.max)[1] - np.frexp(most)[1]) - 9
    power = data.draw(st.integers(low, high) | st.sampled_from((low, high)))
    # Not even the last digits of a prediction are lost; those that grow beyond are not numbers.
    expected = Expected(x, problem.method)
    assume(np.abs(expected.values).max() < 256.0 * most)
    check_all(np.ldexp(x, power), problem, expected, lambda y: np.ldexp(y, -power))


@about(2)
@given(problems(ways=("plain", "rank")), st.floats(1e-6, 1e6))
def test_scaled_by_other_numbers(problem, factor):
    x = problem.x
    noise = float(np.finfo(x.dtype).eps)
    scaled = (x.astype(np.float64) * factor).astype(x.dtype)
    check_all(scaled, problem, Expected(x, problem.method, noise), lambda y: y / factor)


@about(2)
@given(problems(models=("affine",)), st.integers(0, 28))
def test_affine_motion_elsewhere(problem, bits):
    """The same differences far from the origin: numbers of few digits, so that sums are exact."""
    x = problem.x
    assume(np.abs(x).max() < 32.0)
    if x.dtype == np.float32:
        bits = bits // 3
    digits = 21 if x.dtype == np.float64 else 10
    x = (np.round(np.ldexp(x.astype(np.float64), digits)) * 2.0**-digits).astype(x.dtype)
    offset = np.round(problem.rng.normal(size=problem.m) * 2.0**bits).astype(x.dtype)
    far = x + offset
    assert (far - offset == x).all()
    expected = Expected(far, problem.method)
    near = Expected(x, problem.method)
    np.testing.assert_array_equal(near.allowed, expected.allowed)
    check_all(far, problem, expected)
    check_all(x, problem, near)


@about(2)
@given(problems(), st.floats(0.0, 10.0))
def test_linear_motion_far_from_the_origin(problem, power):
    """No worse than a singular value decomposition in float64 with the same rule for the rank."""
    x = problem.x.astype(np.float64) + 10.0**power * problem.rng.normal(size=problem.m)
    check_all(x, problem, Expected(x, problem.method))


@about(2)
@given(problems(), st.data())
def test_repeated_snapshots(problem, data):
    """A step that was paused, or the first or last snapshot twice."""
    at = data.draw(st.integers(0, problem.n - 1))
    times = data.draw(st.integers(2, 4))
    x = np.repeat(problem.x, np.where(np.arange(problem.n) == at, times, 1), axis=0)
    check_all(x, problem, Expected(x, problem.method))


MADE_BY_AN_OPERATOR = ("decaying", "oscillating", "growing")


@about(2)
@given(
    problems(ways=("plain",), motions=MADE_BY_AN_OPERATOR, least_n=8, least_m=6), st.integers(1, 3)
)
def test_windows_shifted_in_time(problem, shift):
    """More columns and parameters than modes: the motion goes on, from any window of it."""
    n, make = problem.n, MOTIONS[problem.motion]
    x = make(problem.rng, n + 2 * max(HORIZONS), problem.m).astype(problem.dtype)
    for first in (0, shift):
        window = np.ascontiguousarray(x[first : first + n])
        expected = Expected(window, problem.method, float(np.finfo(x.dtype).eps))
        expected.check(x[np.add(first + n - 1, HORIZONS)], "the motion itself")
        check_all(window, problem, expected)


@about(2)
@given(problems(), st.data())
def test_rings_in_any_order_and_strides(problem, data):
    """Rows of a ring in any order, columns backwards or apart, either memory order."""
    x, n, m = problem.x, problem.n, problem.m
    expected = Expected(x, problem.method)
    slots = data.draw(st.permutations(range(n + 2)))
    order = slots[:n]
    step = data.draw(st.sampled_from((-2, -1, 1, 3)))
    memory_order = data.draw(st.sampled_from(("C", "F")))
    memory = np.full((n + 2, abs(step) * m), np.nan, dtype=x.dtype, order=memory_order)
    ring = memory[:, ::step]
    ring[order] = x
    check_all(ring, problem, expected, order=order)


@about(2)
@given(problems(), st.integers(0, 40))
def test_one_group_among_many(problem, n_before):
    x, rng = problem.x, problem.rng
    sizes = np.r_[rng.integers(1, 30, n_before), problem.m, rng.integers(1, 30, 5)]
    ends = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    wide = rng.normal(size=(problem.n, ends[-1])).cumsum(axis=0).astype(x.dtype)
    mine = slice(ends[n_before], ends[n_before + 1])
    wide[:, mine] = x
    part = kc.Partition.groups(ends[-1], [range(*pair) for pair in itertools.pairwise(ends)])
    expected = Expected(x, problem.method)
    check_all(wide, problem, expected, lambda y: y[:, mine], part=part)
