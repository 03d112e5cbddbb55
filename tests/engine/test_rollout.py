"""rollout, rollout_dense and combine against stepping in longdouble: all backends."""

import numpy as np
import pytest
from trajectories import NAMES, basis_of, generic

from koopcore.backends import backend_for
from koopcore.backends.protocol import WEIGHT_LIMIT, Snapshots
from koopcore.backends.reference import DIRECT_STEPS, Reference
from koopcore.partition.partition import Partition

reference = Reference()


U = 2.0**-53
DIRECT = DIRECT_STEPS
HORIZONS = [1, 2, 3, 7, 100, DIRECT - 1, DIRECT, DIRECT + 1, 3000]

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


def stepped(columns, a, last):
    """Columns up to ``last`` steps on, by the recurrence itself, in longdouble: (last, m)."""
    past = [np.asarray(c, dtype=np.longdouble) for c in columns]
    weights = np.asarray(a, dtype=np.longdouble)
    for _ in range(last):
        past.append(np.array(past[-len(a) :]).T @ weights)
    return np.array(past[-last:])


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("roots", ROOTS.values(), ids=ROOTS)
def test_rollout_is_the_recurrence_stepped(backend, affine, roots):
    a = recurrence(roots)
    n = len(a) + 1 + affine
    x = generic(n, 12, seed=n)
    weights, growth = backend_for("cpu", backend).rollout(a[None], affine, HORIZONS)
    assert weights.shape == (len(HORIZONS), 1, n)
    assert growth.shape == (len(HORIZONS), 1)
    start = np.diff(x, axis=0)[1:] if affine else x[1:]
    steps = stepped(start, a, max(HORIZONS))
    ends = x[-1] + np.cumsum(steps, axis=0) if affine else steps
    ends = np.array([ends[t - 1] for t in HORIZONS])
    got = (basis_of(x) @ weights[:, 0].T.astype(np.longdouble)).T
    # Roots in the circle do not enlarge the rounding of a step, but for their condition number:
    # that of the eigenvectors, once for S^T/2 and once for its square. T steps of it.
    scale = np.abs(ends).max() + np.abs(x).max()
    kappa = np.linalg.cond(np.vander(roots))
    assert np.abs(got - ends).max() <= 10 * max(HORIZONS) * kappa**2 * U * scale


@pytest.mark.parametrize("backend", NAMES)
def test_growth_compares_with_the_first_step(backend):
    weights, growth = backend_for("cpu", backend).rollout(
        np.array([[0.9], [1.1]]), True, [1, 2, 11, 2001]
    )
    np.testing.assert_allclose(growth[:3], [[1, 1], [0.9, 1.1], [0.9**10, 1.1**10]], rtol=1e-13)
    assert growth[3, 0] == pytest.approx(0.9**2000)
    assert growth[3, 1] == np.inf
    assert (weights[3, 1] == 1.0).all()


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("late", [200, DIRECT + 1, 10**9, 2**60])
def test_a_divergent_rollout_is_the_last_snapshot_and_says_so(backend, affine, late):
    a = np.array([[0.5, 0.25], [0.0, 2.0], [0.25, 0.5]])
    weights, growth = backend_for("cpu", backend).rollout(a, affine, [late, 3])
    assert np.isfinite(weights).all()
    assert (weights[0, 1] == 1.0).all()
    assert growth[0, 1] == np.inf
    alone, _ = backend_for("cpu", backend).rollout(a[1:2], affine, [3])
    np.testing.assert_array_equal(weights[1, 1], alone[0, 0])  # early horizons are kept
    assert np.abs(weights[1, 1]).max() < WEIGHT_LIMIT
    for stable in (0, 2):  # neighbours go on to their fixed point
        assert growth[0, stable] < 1e-10
        np.testing.assert_allclose(weights[0, stable, 0], 1.0 if affine else 0.0, atol=1e-12)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("affine", [False, True])
def test_horizons_may_come_in_any_order_and_repeat(backend, affine):
    a = np.stack([recurrence(ROOTS["decay"]), recurrence(ROOTS["unit circle"])])
    run = backend_for("cpu", backend).rollout
    mixed = [DIRECT + 5, 3, 1, 3, 700, DIRECT + 5]
    weights, growth = run(a, affine, mixed)
    for i, t in enumerate(mixed):
        alone, own_growth = run(a, affine, [t])
        # At T beyond direct stepping either route may be taken; both are right to rounding.
        np.testing.assert_allclose(weights[i], alone[0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(growth[i], own_growth[0], rtol=1e-9, atol=1e-12)


# -- dense ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("r", [1, 2, 5])
def test_a_dense_rollout_is_a_power_or_a_sum_of_powers(backend, r):
    rng = np.random.default_rng(r)
    basis, _ = np.linalg.qr(rng.normal(size=(3, r, r)))
    values = np.linspace(0.2, 0.999, r)
    operators = basis * values @ basis.transpose(0, 2, 1)
    start = rng.normal(size=(3, r))
    along = (basis.transpose(0, 2, 1) @ start[:, :, None])[:, :, 0]
    run = backend_for("cpu", backend).rollout_dense
    powers, growth = run(operators, start, False, HORIZONS)
    sums, _ = run(operators, start, True, HORIZONS)
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


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("late", [2000, 10**9, 2**60])
def test_a_dense_rollout_may_overflow_but_does_not_stop(backend, late):
    operators = np.stack([np.diag([0.5, 0.5]), np.diag([2.0, 0.5])])
    states, growth = backend_for("cpu", backend).rollout_dense(
        operators, np.ones((2, 2)), False, [2, late]
    )
    np.testing.assert_allclose(states[0], [[0.5, 0.5], [2.0, 0.5]], rtol=1e-15)
    assert not np.isfinite(states[1, 1]).all()
    np.testing.assert_allclose(states[1, 0], 0.0, atol=1e-300)
    assert growth[1, 0] < 1e-300
    assert not growth[1, 1] < WEIGHT_LIMIT


# -- combine --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 3, 16, 33])
@pytest.mark.parametrize("horizons", [1, 3])
def test_combine_adds_weighted_differences_to_the_last_snapshot(backend, dtype, n, horizons):
    part = Partition.groups(80, [[5], range(10, 60, 3), [79, 0, 41], [1, 2, 3, 4]])
    x = generic(n, 80).astype(dtype)
    order = (np.arange(n) + n // 2) % n
    ring = np.empty_like(x)
    ring[order] = x
    weights = np.random.default_rng(n).normal(size=(horizons, part.n_groups, n))
    out = np.full((horizons, 80), np.nan, dtype=dtype)
    backend_for("cpu", backend).combine(Snapshots(ring, order), part, weights, out)
    covered = np.concatenate([part.indices(g) for g in range(part.n_groups)])
    assert np.isnan(np.delete(out, covered, axis=1)).all()
    for group in range(part.n_groups):
        mine = part.indices(group)
        basis = basis_of(x[:, mine])
        ends = (basis @ weights[:, group].T).T
        size = np.abs(x[-1, mine]) + (np.abs(basis) @ np.abs(weights[:, group] - 1).T).T
        # Sums of n products in the dtype of the snapshots, and one rounding of the result.
        bound = (n + 4) * np.finfo(dtype).eps * size
        assert (np.abs(out[:, mine] - ends) <= bound).all()


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_of_one_give_the_last_snapshot_bit_by_bit(backend, dtype):
    x = generic(7, 33).astype(dtype)
    part = Partition.groups(33, [range(33)])
    out = np.full((2, 33), np.nan, dtype=dtype)
    backend_for("cpu", backend).combine(Snapshots(x, np.arange(7)), part, np.ones((2, 1, 7)), out)
    np.testing.assert_array_equal(out, [x[-1], x[-1]])


@pytest.mark.parametrize("backend", NAMES)
def test_what_float32_cannot_hold_is_its_largest_number(backend):
    x = np.array([[1.0, -1.0, 0.0], [2.0, -2.0, 0.0]], dtype=np.float32)
    part = Partition.groups(3, [range(3)])
    out = np.full((1, 3), np.nan, dtype=np.float32)
    weights = np.array([[[1.0, 1e39]]])
    backend_for("cpu", backend).combine(Snapshots(x, np.arange(2)), part, weights, out)
    largest = np.finfo(np.float32).max
    np.testing.assert_array_equal(out, [[largest, -largest, 0.0]])


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(
    "made",
    [
        lambda out: np.asfortranarray(out),
        lambda out: np.repeat(out, 2, axis=1)[:, ::2],
        lambda out: np.repeat(out, 2, axis=0)[::2],
    ],
    ids=["fortran", "every 2nd column", "every 2nd row"],
)
def test_combine_writes_into_any_strides(backend, made):
    x = generic(5, 40).astype(np.float32)
    part = Partition.groups(40, [range(0, 40, 2), range(1, 20, 2)])
    weights = np.random.default_rng(0).normal(size=(3, 2, 5))
    run, window = backend_for("cpu", backend).combine, Snapshots(x, np.arange(5))
    plain = np.full((3, 40), np.nan, dtype=np.float32)
    run(window, part, weights, plain)
    strided = made(np.full((3, 40), np.nan, dtype=np.float32))
    run(window, part, weights, strided)
    np.testing.assert_array_equal(strided, plain)
