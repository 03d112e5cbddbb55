"""Windows without motion, too large, unstable, or of odd shape: flagged, finite, alone."""

import itertools

import numpy as np
import pytest
from trajectories import WHOLE, generic

import koopcore as kc
from koopcore.operators import GOOD, OVERFLOW

every_backend = pytest.mark.parametrize("backend", WHOLE)
every_model = pytest.mark.parametrize("model", ["linear", "affine", "trend", "auto"])
FAR = [1, 100, 2000, 10**9, 2**60]


def blocks(*windows):
    """Windows side by side, a group each."""
    ends = np.cumsum([0, *(w.shape[1] for w in windows)])
    groups = [range(a, b) for a, b in itertools.pairwise(ends.tolist())]
    return np.hstack(windows), kc.Partition.groups(int(ends[-1]), groups)


@every_backend
@every_model
@pytest.mark.parametrize("m", [1, 5, 40])
@pytest.mark.parametrize("value", [0.0, 1.0, -3e5, 1e-30])
def test_what_stands_still_goes_on_standing(value, m, model, backend):
    x = np.full((9, m), value)
    ops = kc.fit(x, kc.Partition.groups(m, [range(m)]), model, backend=backend)
    assert ops.status.tolist() == [GOOD]
    # A constant under a linear model is reproduced through one product with 1/value².
    np.testing.assert_allclose(ops.predict(FAR[:3]), np.full((3, m), value), rtol=1e-10)
    assert np.isfinite(ops.predict(FAR)).all()
    assert not np.isnan(ops.growth(FAR)).any()
    assert np.isnan(ops.hindcast_error[0]) or ops.hindcast_error[0] < 1e-6
    assert (~np.isnan(ops.eigenvalues()[0])).sum() == ops.rank[0]


@every_backend
@every_model
@pytest.mark.parametrize("m", [5, 40])
@pytest.mark.parametrize("size", [1e200, 1e160])
def test_a_group_whose_squares_overflow_keeps_its_last_snapshot(size, m, model, backend):
    good = generic(9, m)
    x, part = blocks(good, generic(9, m) * size, good)
    ops = kc.fit(x, part, model, backend=backend)
    assert ops.status.tolist() == [GOOD, OVERFLOW, GOOD]
    got = ops.predict([1, 3])
    np.testing.assert_array_equal(got[:, m : 2 * m], [x[-1, m : 2 * m]] * 2)
    alone = kc.fit(good, kc.Partition.groups(m, [range(m)]), model, backend=backend).predict([1, 3])
    np.testing.assert_array_equal(got[:, :m], alone)
    np.testing.assert_array_equal(got[:, 2 * m :], alone)
    assert ops.rank[1] == 0
    assert ops.condition[1] == np.inf
    assert np.isnan(ops.residual[1])
    assert np.isnan(ops.eigenvalues()[1]).all()
    with pytest.raises(ValueError, match="group 1 has no operator: squares of the snapshots"):
        ops.modes(1)


@every_backend
@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", [3, 40])
def test_an_unstable_operator_is_flagged_not_followed(model, dtype, m, backend):
    """Doubling each step: what a horizon of 2^60 asks for is no number."""
    n = 4 if m == 40 else 9
    calm = np.tile(np.linspace(0.0, 1.0, n)[:, None] ** 2, m) + np.arange(m) * 0.1
    doubling = np.outer(2.0 ** np.arange(n), np.random.default_rng(0).normal(size=m))
    x, part = blocks(doubling, calm)
    x = x.astype(dtype)
    ops = kc.fit(x, part, model, backend=backend)
    assert (ops.status == GOOD).all()
    got, growth = ops.predict(FAR), ops.growth(FAR)
    assert np.isfinite(got).all()
    assert growth[-1, 0] == np.inf
    np.testing.assert_array_equal(got[-1, :m], x[-1, :m])
    # Rounding of the snapshots over a step that doubles them.
    np.testing.assert_allclose(got[0, :m], 2 * x[-1, :m], rtol=1e-4)
    assert growth[0].tolist() == pytest.approx([1.0, 1.0])


@every_backend
def test_float32_predictions_stop_at_its_largest_number(backend):
    x = np.outer(np.float32(10.0) ** np.arange(30, 38), np.ones(8)).astype(np.float32)
    part = kc.Partition.groups(8, [range(8)])
    got = kc.fit(x, part, "linear", backend=backend).predict(5)
    assert np.isfinite(got).all()


@every_backend
@every_model
@pytest.mark.parametrize("power", [-200, -30, 30, 200])
def test_scaling_by_a_power_of_two_scales_predictions_exactly(power, model, backend):
    x, part = blocks(generic(9, 40), generic(9, 4, seed=1))
    one = kc.fit(x, part, model, backend=backend)
    scaled = kc.fit(np.ldexp(x, power), part, model, backend=backend)
    for horizon in (1, 7):
        np.testing.assert_array_equal(
            scaled.predict(horizon), np.ldexp(one.predict(horizon), power)
        )
    np.testing.assert_array_equal(scaled.rank, one.rank)
    np.testing.assert_array_equal(scaled.hindcast_error, one.hindcast_error)
    np.testing.assert_allclose(scaled.eigenvalues(), one.eigenvalues(), rtol=1e-12)


@every_backend
@every_model
def test_the_order_of_parameters_in_a_group_does_not_matter(model, backend):
    x = generic(9, 50)
    rng = np.random.default_rng(0)
    groups = [np.arange(40), np.arange(40, 46)]
    mixed = [rng.permutation(g) for g in groups]
    one, other = (
        kc.fit(x, kc.Partition.groups(50, g), model, backend=backend) for g in (groups, mixed)
    )
    # Sums in another order: u κ², and κ is below 1e3 here.
    np.testing.assert_allclose(other.predict(5), one.predict(5), atol=1e-8)
    np.testing.assert_allclose(other.hindcast_error, one.hindcast_error, rtol=1e-8)


@every_backend
@every_model
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_groups_fitted_together_are_groups_fitted_alone(dtype, model, backend):
    """Bit by bit, and on both sides: a group's operator knows nothing of its neighbours."""
    x = generic(9, 120).astype(dtype)
    groups = [[0], range(1, 6), range(6, 11), range(20, 60), range(61, 119, 2), [11, 13, 12]]
    part = kc.Partition.groups(120, groups)
    together = kc.fit(x, part, model, backend=backend)
    got = together.predict([1, 6])
    for g, group in enumerate(groups):
        alone = kc.fit(x, kc.Partition.groups(120, [group]), model, backend=backend)
        mine = list(group)
        np.testing.assert_array_equal(got[:, mine], alone.predict([1, 6])[:, mine], err_msg=str(g))
        for name in ("rank", "residual", "condition", "hindcast_error", "model"):
            assert getattr(together, name)[g] == getattr(alone, name)[0], (g, name)
    rest = np.setdiff1d(np.arange(120), np.concatenate([list(g) for g in groups]))
    np.testing.assert_array_equal(got[:, rest], [x[-1, rest]] * 2)
