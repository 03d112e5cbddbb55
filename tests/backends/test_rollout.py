"""rollout and rollout_dense of every backend against stepping in longdouble and the reference."""

from functools import cache

import numpy as np
import pytest
from backend_cases import OTHERS, REFERENCE, U
from trajectories import basis_of, generic

from koopcore.backends.protocol import WEIGHT_LIMIT
from koopcore.backends.reference import DIRECT_STEPS

DIRECT = DIRECT_STEPS
HORIZONS = [1, 2, 3, 7, 100, DIRECT - 1, DIRECT, DIRECT + 1, 3000]
BOTH = pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])

#: What is asked for at once: kernels step, fill buffers, sort and square.
ASKED = {
    "first": [1],
    "one": [100],
    "trajectory": list(range(1, 81)),
    "unsorted, repeated": [50, 3, 50, 1, 700],
    "through the buffer": [250, 251, 256, 257, 300, 520, DIRECT],
    "squared": [DIRECT + 1, 5000, 3, 5003, 10**6],
}
others = pytest.mark.parametrize("backend", OTHERS, indirect=True)
asked = pytest.mark.parametrize("asked", ASKED)

#: Roots of the recurrence's characteristic polynomial, distinct and within the unit circle.
ROOTS = {
    "decay": [0.9, 0.5, -0.3],
    "unit circle": [1.0, np.exp(0.7j), np.exp(-0.7j)],
    "one column": [0.99],
    "two columns": [1.0, 0.999],
    "eight columns": [*(0.97 * np.exp(1j * np.array([0.3, -0.3, 1.2, -1.2, 2.5, -2.5]))), 0.8, -1],
}


def recurrence(roots):
    """a with x_{k+N} = Σ a_i x_{k+i}, oldest first."""
    return -np.poly(roots).real[:0:-1]


@cache
def stepped(roots, affine):
    """Snapshots (n, 12), and x_{n+T} at HORIZONS by the recurrence itself, in longdouble."""
    a = recurrence(ROOTS[roots])
    x = generic(len(a) + 1 + affine, 12, seed=len(a) + 1 + affine)
    past = [c.astype(np.longdouble) for c in (np.diff(x, axis=0)[1:] if affine else x[1:])]
    for _ in range(max(HORIZONS)):
        past.append(np.array(past[-len(a) :]).T @ a.astype(np.longdouble))
    steps = np.array(past[len(a) :])
    ends = x[-1] + np.cumsum(steps, axis=0) if affine else steps
    return x, np.array([ends[t - 1] for t in HORIZONS])


@BOTH
@pytest.mark.parametrize("roots", ROOTS)
def test_rollout_is_the_recurrence_stepped(backend, affine, roots):
    x, ends = stepped(roots, affine)
    weights, growth = backend.rollout(recurrence(ROOTS[roots])[None], affine, HORIZONS)
    assert weights.shape == (len(HORIZONS), 1, len(x))
    assert growth.shape == (len(HORIZONS), 1)
    got = (basis_of(x) @ weights[:, 0].T.astype(np.longdouble)).T
    # Roots in the circle do not enlarge the rounding of a step, but for their condition number:
    # that of the eigenvectors, once for S^T/2 and once for its square. T steps of it.
    scale = np.abs(ends).max() + np.abs(x).max()
    kappa = np.linalg.cond(np.vander(ROOTS[roots]))
    assert np.abs(got - ends).max() <= 10 * max(HORIZONS) * kappa**2 * U * scale


def within_the_circle(rng, columns):
    """Coefficients of a recurrence with roots of radius 0.3 to 0.999."""
    pairs = rng.uniform(0.3, 0.999, columns // 2) * np.exp(1j * rng.uniform(0.1, 3.0, columns // 2))
    a = recurrence(np.concatenate([pairs, pairs.conj(), [0.9] * (columns % 2)]))
    return a if np.abs(a).sum() < 50 else None  # many random roots make unruly coefficients


@cache
def stable(columns, affine, asked):
    """Coefficients of 35 groups (W does not divide it), and the reference's rollouts."""
    rng = np.random.default_rng(columns)
    # The sum of |a_i| is below one: roots inside the circle, errors decay as the states do.
    a = rng.uniform(-1.0, 1.0, (35, columns))
    a *= 0.97 / np.abs(a).sum(axis=1, keepdims=True)
    for group in range(0, 35, 3):
        roots = within_the_circle(rng, columns)
        a[group] = a[group] if roots is None else roots
    return a, *REFERENCE.rollout(a, affine, ASKED[asked])


@others
@asked
@pytest.mark.parametrize(
    ("columns", "affine"),
    [
        *[(1, False), (1, True), (2, False), (3, True), (6, False), (7, True), (8, False)],
        *[(14, True), (15, False), (15, True), (24, False), (30, True), (31, False), (40, True)],
    ],
)
def test_rollouts_of_many_groups_equal_the_reference(backend, columns, affine, asked):
    a, expected, expected_growth = stable(columns, affine, asked)
    weights, growth = backend.rollout(a, affine, ASKED[asked])
    # The recurrence amplifies rounding by at most the sum of its impulse response, about 1e3 here.
    scale = np.abs(expected).max(axis=2, keepdims=True) + np.abs(a).max(axis=1)[None, :, None]
    assert (np.abs(weights - expected) / scale).max() < 1e-9
    contracting = np.abs(a).sum(axis=1) < 1.0
    for i, horizon in enumerate(ASKED[asked]):
        # Every step rounds anew.
        tolerance = 1e-13 * (1 + horizon)
        error = np.abs(weights - expected)[i, contracting]
        assert error.max() <= tolerance * np.abs(expected[i, contracting]).max()
        np.testing.assert_allclose(
            growth[i, contracting], expected_growth[i, contracting], rtol=tolerance, atol=1e-15
        )
    alive = expected_growth > 1e-9
    assert growth[alive] == pytest.approx(expected_growth[alive], rel=1e-6)


def test_growth_compares_with_the_first_step(backend):
    weights, growth = backend.rollout(np.array([[0.9], [1.1]]), True, [1, 2, 11, 2001])
    np.testing.assert_allclose(growth[:3], [[1, 1], [0.9, 1.1], [0.9**10, 1.1**10]], rtol=1e-13)
    assert growth[3, 0] == pytest.approx(0.9**2000)
    assert growth[3, 1] == np.inf
    assert (weights[3, 1] == 1.0).all()


@BOTH
@pytest.mark.parametrize("late", [200, DIRECT + 1, 5000, 10**9, 2**60])
def test_a_divergent_rollout_is_the_last_snapshot_and_says_so(backend, affine, late):
    a = np.array([[0.5, 0.25], [0.0, 2.0], [0.25, 0.5], [0.0, 1e200], [-3.0, 0.1], [np.nan, 0.0]])
    weights, growth = backend.rollout(a, affine, [late, 3])
    assert np.isfinite(weights).all()
    for lost in (1, 3, 4, 5):
        assert (weights[0, lost] == 1.0).all()
        assert growth[0, lost] == np.inf
    alone, _ = backend.rollout(a[1:2], affine, [3])
    np.testing.assert_array_equal(weights[1, 1], alone[0, 0])  # early horizons are kept
    assert np.abs(weights[1, 1]).max() < WEIGHT_LIMIT
    expected, expected_growth = REFERENCE.rollout(a, affine, [late, 3])
    assert weights == pytest.approx(expected, rel=1e-9, abs=1e-300)
    np.testing.assert_array_equal(np.isinf(growth), np.isinf(expected_growth))
    for fixed in (0, 2):  # neighbours go on to their fixed point
        assert growth[0, fixed] < 1e-10
        np.testing.assert_allclose(weights[0, fixed, 0], 1.0 if affine else 0.0, atol=1e-12)


@BOTH
def test_horizons_may_come_in_any_order_and_repeat(backend, affine):
    a = np.stack([recurrence(ROOTS["decay"]), recurrence(ROOTS["unit circle"])])
    mixed = [DIRECT + 5, 3, 1, 3, 700, DIRECT + 5]
    weights, growth = backend.rollout(a, affine, mixed)
    for i, t in enumerate(mixed):
        alone, its_growth = backend.rollout(a, affine, [t])
        # At T beyond direct stepping either route may be taken; both are right to rounding.
        np.testing.assert_allclose(weights[i], alone[0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(growth[i], its_growth[0], rtol=1e-9, atol=1e-12)


# -- dense ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [1, 2, 5])
def test_a_dense_rollout_is_a_power_or_a_sum_of_powers(backend, r):
    rng = np.random.default_rng(r)
    basis, _ = np.linalg.qr(rng.normal(size=(3, r, r)))
    values = np.linspace(0.2, 0.999, r)
    operators = basis * values @ basis.transpose(0, 2, 1)
    start = rng.normal(size=(3, r))
    along = (basis.transpose(0, 2, 1) @ start[:, :, None])[:, :, 0]
    powers, growth = backend.rollout_dense(operators, start, False, HORIZONS)
    sums, _ = backend.rollout_dense(operators, start, True, HORIZONS)
    assert powers.shape == (len(HORIZONS), 3, r)
    for i, t in enumerate(HORIZONS):
        expected = (basis @ (along * values ** (t - 1))[:, :, None])[:, :, 0]
        geometric = (1 - values**t) / (1 - values)
        total = (basis @ (along * geometric)[:, :, None])[:, :, 0]
        # T u of accumulated rounding, of the largest sum: about 1000 starts.
        np.testing.assert_allclose(powers[i], expected, atol=1e-11)
        np.testing.assert_allclose(sums[i], total, atol=1e-9)
        ratio = np.linalg.norm(expected, axis=1) / np.linalg.norm(start, axis=1)
        np.testing.assert_allclose(growth[i], ratio, atol=1e-11)


@cache
def dense(r, affine, asked):
    """Rotations, in which no state grows or dies, beside non-normal operators of radius 1."""
    rng = np.random.default_rng(r)
    operator = rng.normal(size=(11, r, r))
    operator[:6] = np.linalg.qr(operator[:6])[0]
    operator[6:] /= np.abs(np.linalg.eigvals(operator[6:])).max(axis=1)[:, None, None]
    start = rng.normal(size=(11, r))
    return operator, start, *REFERENCE.rollout_dense(operator, start, affine, ASKED[asked])


@others
@asked
@BOTH
@pytest.mark.parametrize("r", [1, 2, 3, 4, 7, 11])
def test_dense_rollouts_of_many_groups_equal_the_reference(backend, r, affine, asked):
    operator, start, expected, expected_growth = dense(r, affine, asked)
    states, growth = backend.rollout_dense(operator, start, affine, ASKED[asked])
    # A rotation's powers lose r·u each; its sums may grow with the horizon where it has a fixed
    # direction, which the division by the largest state takes out. Non-normal operators amplify
    # rounding.
    bound = 1e-14 * (max(ASKED[asked]) + 10)
    for i, horizon in enumerate(ASKED[asked]):
        scale = np.maximum(np.abs(expected[i]).max(axis=1), np.abs(start).max(axis=1))
        error = np.abs(states[i] - expected[i]).max(axis=1)
        assert (error[:6] < bound * scale[:6]).all()
        assert error[6:].max() <= 1e-11 * (1 + horizon) * np.abs(expected[i]).max()
        difference = np.abs(growth[i] - expected_growth[i])[6:]
        assert difference.max() <= 1e-11 * (1 + horizon) * expected_growth[i].max()
    assert growth[:, :6] == pytest.approx(expected_growth[:, :6], rel=bound)


@pytest.mark.parametrize("late", [2000, 5000, 10**9, 2**60])
def test_a_dense_rollout_may_overflow_but_does_not_stop(backend, late):
    operators = np.stack([np.diag([0.5, 0.5]), *[np.diag([2.0, 0.5])] * 3])
    states, growth = backend.rollout_dense(operators, np.ones((4, 2)), False, [2, late])
    np.testing.assert_allclose(states[0], [[0.5, 0.5], *[[2.0, 0.5]] * 3], rtol=1e-15)
    assert not np.isfinite(states[1, 1:]).all(axis=1).any()
    np.testing.assert_allclose(states[1, 0], 0.0, atol=1e-300)
    assert growth[1, 0] < 1e-300
    assert not (growth[1, 1:] < WEIGHT_LIMIT).any()
