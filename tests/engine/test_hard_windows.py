"""Windows without motion, too large, unstable, or of odd shape: flagged, finite, alone."""

import itertools

import numpy as np
import pytest
from trajectories import WHOLE, generic

import koopcore as kc
from koopcore.backends import backend_for
from koopcore.operators import GOOD, OUT_OF_RANGE

reference = backend_for("cpu", "reference")
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
@pytest.mark.parametrize("power", [1000, 600, -520, -1000])
def test_groups_whose_squares_leave_float64_are_fitted_in_their_own_unit(power, m, model, backend):
    good, other = generic(9, m), generic(9, m, seed=1)
    x, part = blocks(good, np.ldexp(other, power), good)
    ops = kc.fit(x, part, model, backend=backend)
    assert ops.status.tolist() == [GOOD] * 3
    alone = kc.Partition.groups(m, [range(m)])
    middle = kc.fit(other, alone, model, backend=backend)
    got, expected = ops.predict([1, 3]), middle.predict([1, 3])
    # The same numbers but for rounding, of predictions and of float64 near its least number.
    slack = 1e-9 * np.abs(expected).max() + np.ldexp(1.0, max(-1074 - power, -1022))
    np.testing.assert_allclose(np.ldexp(got[:, m : 2 * m], -power), expected, atol=slack)
    ends = kc.fit(good, alone, model, backend=backend)
    np.testing.assert_array_equal(got[:, :m], ends.predict([1, 3]))
    np.testing.assert_array_equal(got[:, 2 * m :], ends.predict([1, 3]))
    assert ops.model[1] == middle.model[0]
    assert ops.rank[1] == middle.rank[0]
    np.testing.assert_allclose(ops.hindcast_error[1], middle.hindcast_error[0], rtol=1e-6)
    np.testing.assert_allclose(np.ldexp(ops.residual[1], -power), middle.residual[0], rtol=1e-6)
    np.testing.assert_allclose(ops.growth(3)[1], middle.growth(3)[0], rtol=1e-6)
    u = middle.operator(0)
    np.testing.assert_allclose(ops.operator(1), u, atol=1e-6 * np.abs(u).max())
    assert (~np.isnan(ops.eigenvalues()[1])).sum() == ops.rank[1]
    assert ops.modes(1).shape == middle.modes(0).shape


@pytest.mark.parametrize("m", [5, 40])
def test_a_group_without_a_finite_fit_has_a_status_and_keeps_its_last_snapshot(m, monkeypatch):
    """Nothing is known that does it: a backend that fails one group says so."""
    project, refit = reference.project, reference.feature_refit

    def failing_project(*args):
        made = project(*args)
        made.operator[1] = np.nan
        return made

    def failing_refit(*args):
        made = refit(*args)
        made.projection.operator[1] = np.nan
        return made

    monkeypatch.setattr(reference, "project", failing_project)
    monkeypatch.setattr(reference, "feature_refit", failing_refit)
    x, part = blocks(generic(9, m), generic(9, m, seed=1), generic(9, m))
    ops = kc.fit(x, part, "linear", rank=2, backend="reference")
    assert ops.status.tolist() == [GOOD, OUT_OF_RANGE, GOOD]
    got = ops.predict([1, 3])
    np.testing.assert_array_equal(got[:, m : 2 * m], [x[-1, m : 2 * m]] * 2)
    assert ops.rank[1] == 0
    assert ops.condition[1] == np.inf
    assert np.isnan(ops.residual[1])
    assert np.isnan(ops.eigenvalues()[1]).all()
    with pytest.raises(ValueError, match="group 1 has no operator: no finite fit"):
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


@every_backend
@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("horizon", [None, 4])
def test_groups_that_stand_still_have_a_residual(horizon, model, backend):
    still = np.full((12, 4), 2.0)
    x, part = blocks(generic(12, 4), still, np.zeros((12, 4)), np.ldexp(generic(12, 4), -600))
    ops = kc.fit(x, part, model, horizon=horizon, backend=backend)
    assert ops.status.tolist() == [GOOD] * 4
    assert ops.residual[1] <= 1e-15
    assert ops.residual[2] == 0.0
    assert np.isfinite(ops.residual).all()
