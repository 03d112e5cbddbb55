"""Predictions, operators and their spectra against dense matrices, on every backend."""

import itertools

import numpy as np
import pytest
from trajectories import (
    WHOLE,
    by_operator,
    generic,
    movement,
    operator_of,
    prediction_of,
    smooth,
    spiral,
)

import koopcore as kc
from koopcore.operators import GOOD, OUT_OF_RANGE, STATUS

ONE = {m: kc.Partition.groups(m, [range(m)]) for m in (1, 2, 3, 5, 6, 11, 30, 40, 65)}

#: Windows with one operator that is well determined: (snapshots, model), snapshot side and feature
#: side, full and deficient rank.
WINDOWS = {
    "linear, full rank": (generic(6, 40), "linear"),
    "affine, full rank": (generic(6, 40), "affine"),
    "linear, two snapshots": (generic(2, 30), "linear"),
    "affine, three snapshots": (generic(3, 30), "affine"),
    "linear, square": (generic(7, 6, seed=2), "linear"),
    "linear, rank 3 of 9": (smooth(10, 30, offset=0.0), "linear"),
    "affine, rank 3 of 8": (smooth(10, 30), "affine"),
    "linear, feature side": (generic(20, 5), "linear"),
    "affine, feature side": (generic(20, 5), "affine"),
    "linear, one parameter": (generic(20, 1, seed=4) + 30, "linear"),
    "affine, one parameter": (generic(20, 1, seed=4), "affine"),
    "linear, feature side, spiral": (by_operator(spiral(0.4, 0.99, 5), np.ones(5), 40), "linear"),
    "affine, feature side, spiral": (
        by_operator(spiral(0.4, 0.99, 5), np.ones(5), 40, offset=3.0),
        "affine",
    ),
}
every_window = pytest.mark.parametrize(("x", "model"), WINDOWS.values(), ids=WINDOWS)
every_backend = pytest.mark.parametrize("backend", WHOLE)


def fitted(x, model, backend, **options):
    return kc.fit(x, ONE[x.shape[1]], model, backend=backend, **options)


# -- predictions ----------------------------------------------------------------------------------


@every_backend
@every_window
def test_predictions_are_powers_of_the_operator(x, model, backend):
    ops = fitted(x, model, backend)
    assert ops.status.tolist() == [GOOD]
    for horizon in (1, 2, 5):
        expected = prediction_of(x, horizon, affine=model == "affine")
        # Condition numbers below 1e3, squared by the Gram matrix: 1e-10 of the movement; the
        # deficient windows stop where pivots meet the noise: their smallest motion keeps 1e-6.
        tolerance = 1e-6 * (movement(x) + np.abs(expected - x[-1]).max())
        np.testing.assert_allclose(ops.predict(horizon), expected, rtol=0, atol=tolerance)


@every_backend
@every_window
def test_operator_is_the_one_that_predicts(x, model, backend):
    ops = fitted(x, model, backend)
    u = ops.operator(0)
    assert u.shape == (x.shape[1], x.shape[1])
    position, step = x[-1], x[-1] - x[-2]
    for horizon in range(1, 6):
        step = u @ step
        position = position + step if model == "affine" else u @ position
        scale = movement(x) + np.abs(position).max()
        np.testing.assert_allclose(ops.predict(horizon), position, rtol=0, atol=1e-6 * scale)


@every_backend
@every_window
def test_a_sequence_of_horizons_is_each_horizon(x, model, backend):
    ops = fitted(x, model, backend)
    horizons = [7, 1, 3, 3, 12]
    together = ops.predict(horizons)
    assert together.shape == (5, x.shape[1])
    # One rollout serves all horizons: the same numbers, but for how a product of matrices is cut.
    scale = 1e-9 * (movement(x) + np.abs(together).max())
    for row, horizon in zip(together, horizons, strict=True):
        np.testing.assert_allclose(row, ops.predict(horizon), rtol=0, atol=scale)
    np.testing.assert_array_equal(together[2], together[3])
    growth = ops.growth(horizons)
    assert growth.shape == (5, 1)
    np.testing.assert_allclose(growth[1], 1.0)
    np.testing.assert_allclose(growth[0], ops.growth(7), rtol=1e-9)


@every_backend
@every_window
def test_a_trajectory_is_every_horizon_in_turn(x, model, backend):
    ops = fitted(x, model, backend)
    path = ops.trajectory(6)
    assert path.shape == (6, x.shape[1])
    np.testing.assert_array_equal(path, ops.predict([1, 2, 3, 4, 5, 6]))


@pytest.mark.parametrize("horizons", [range(2, 9, 3), (2, 5), np.array([2, 5]), [np.int32(2)]])
def test_horizons_come_in_any_integer_sequence(horizons):
    ops = fitted(generic(6, 30), "affine", "reference")
    assert ops.predict(horizons).shape == (len(horizons), 30)
    np.testing.assert_allclose(ops.predict(horizons)[0], ops.predict(2), rtol=1e-12)


@every_backend
@pytest.mark.parametrize("model", ["affine", "auto"])
@pytest.mark.parametrize("m", [5, 65])
def test_an_affine_motion_goes_to_its_fixed_point(model, m, backend):
    point = np.full(m, 7.0)
    x = by_operator(spiral(0.5, 0.9, m), np.ones(m), 16, offset=7.0)
    ops = fitted(x, model, backend)
    # The motion left at T = 400 is 0.9^400; what is seen is the error of the sum of all steps.
    np.testing.assert_allclose(ops.predict(400), point, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ops.predict(2**60), point, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        ops.predict(3),
        by_operator(spiral(0.5, 0.9, m), np.ones(m), 19, offset=7.0)[-1],
        rtol=0,
        atol=1e-6,
    )


@every_backend
@pytest.mark.parametrize("n", [2, 3, 9])
@pytest.mark.parametrize("m", [1, 5, 40])
def test_trend_is_the_straight_line_through_the_ends(n, m, backend):
    x = generic(n, m)
    ops = fitted(x, "trend", backend)
    for horizon in (1, 10, 10**9):
        expected = x[-1] + horizon * (x[-1] - x[0]) / (n - 1)
        np.testing.assert_allclose(ops.predict(horizon), expected, rtol=1e-12, atol=1e-9)
    assert ops.model.tolist() == ["trend"]
    assert ops.growth(100).tolist() == [1.0]
    np.testing.assert_array_equal(ops.operator(0), np.eye(m))
    mode = ops.modes(0)[:, 0]
    np.testing.assert_allclose(mode, (x[-1] - x[0]) / np.linalg.norm(x[-1] - x[0]))


# -- spectra --------------------------------------------------------------------------------------


@every_backend
@every_window
def test_eigenvalues_are_the_nonzero_eigenvalues_of_the_operator(x, model, backend):
    ops = fitted(x, model, backend)
    r = int(ops.rank[0])
    got = ops.eigenvalues()[0]
    assert np.isnan(got[r:]).all()
    assert (np.diff(np.abs(got[:r])) <= 1e-12).all()
    for u in (ops.operator(0), operator_of(x, model == "affine")):
        values = np.linalg.eigvals(u)
        values = values[np.argsort(-np.abs(values))]
        assert np.abs(values[r:]).max(initial=0.0) <= 1e-6
        for value in values[:r]:
            # Relative to the largest; conjugates may swap, so each is looked for.
            assert np.abs(got[:r] - value).min() <= 1e-6 * np.abs(values[0])


@every_backend
@every_window
def test_modes_are_eigenvectors_of_the_operator(x, model, backend):
    ops = fitted(x, model, backend)
    u, values, modes = ops.operator(0), ops.eigenvalues()[0], ops.modes(0)
    r = int(ops.rank[0])
    assert modes.shape == (x.shape[1], r)
    np.testing.assert_allclose(np.linalg.norm(modes, axis=0), 1.0)
    error = np.linalg.norm(u @ modes - modes * values[:r], axis=0)
    # A backward error, in units of the operator: κ² u.
    assert (error <= 1e-7 * np.linalg.norm(u)).all()


def test_eigenvalues_of_unlike_groups_are_padded():
    x = generic(20, 50)
    part = kc.Partition.groups(50, [[0], [1, 2, 3], range(4, 40)])
    ops = kc.fit(x, part, "linear", backend="reference")
    values = ops.eigenvalues()
    assert values.shape == (3, 19)
    assert (~np.isnan(values)).sum(axis=1).tolist() == [1, 3, 19] == ops.rank.tolist()


# -- diagnostics ----------------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("ridge", [0.0, 1e-300])
@pytest.mark.parametrize("m", [11, 40])
def test_hindcast_error_is_that_of_a_shorter_fit(model, ridge, m, backend):
    """The tiny ridge changes no digit, but takes the dense route instead of the companion one."""
    x = generic(9, m)
    ops = fitted(x, model, backend, ridge=ridge)
    shorter = fitted(x[:7], model, backend, ridge=ridge)  # a quarter of 8 steps held out
    error = np.linalg.norm(shorter.predict(2) - x[-1]) / np.linalg.norm(x[-1] - x[6])
    np.testing.assert_allclose(ops.hindcast_error, [error], rtol=1e-8)


@every_backend
@pytest.mark.parametrize("model", ["linear", "affine", "trend"])
def test_hindcast_error_on_the_feature_side(model, backend):
    x = generic(41, 5)
    ops = fitted(x, model, backend)
    error = np.linalg.norm(fitted(x[:31], model, backend).predict(10) - x[-1])
    np.testing.assert_allclose(
        ops.hindcast_error, [error / np.linalg.norm(x[-1] - x[30])], rtol=1e-8
    )


@every_backend
@pytest.mark.parametrize("ridge", [0.0, 1e-300])
@pytest.mark.parametrize("affine", [False, True])
def test_residual_on_the_snapshot_side(affine, ridge, backend):
    x = generic(8, 40)
    rows = np.diff(x, axis=0) if affine else x
    f, target = rows[:-1].T, rows[-1]
    best, *_ = np.linalg.lstsq(f, target, rcond=None)
    ops = fitted(x, "affine" if affine else "linear", backend, ridge=ridge)
    np.testing.assert_allclose(ops.residual, [np.linalg.norm(f @ best - target)], rtol=1e-8)


@every_backend
@pytest.mark.parametrize("affine", [False, True])
def test_residual_on_the_feature_side_is_the_newest_step(affine, backend):
    x = generic(30, 5)
    rows = np.diff(x, axis=0) if affine else x
    expected = np.linalg.norm(operator_of(x, affine) @ rows[-2] - rows[-1])
    ops = fitted(x, "affine" if affine else "linear", backend)
    np.testing.assert_allclose(ops.residual, [expected], rtol=1e-8)


def test_every_group_has_its_diagnostics_in_its_place():
    x = generic(12, 60)
    parts = [range(40), [45], range(50, 55), [41, 42, 43, 44]]
    for order in itertools.permutations(range(4)):
        part = kc.Partition.groups(60, [parts[g] for g in order])
        ops = kc.fit(x, part, "affine", backend="reference")
        for place, g in enumerate(order):
            alone = kc.fit(x, kc.Partition.groups(60, [parts[g]]), "affine", backend="reference")
            for name in ("rank", "residual", "condition", "hindcast_error", "status", "model"):
                assert getattr(ops, name)[place] == getattr(alone, name)[0], name


def test_status_codes_are_documented():
    assert set(STATUS) == {GOOD, OUT_OF_RANGE}
    assert all(STATUS.values())


def test_repr_says_what_was_fitted():
    x = generic(9, 30)
    part = kc.Partition.groups(30, [range(20), [25]])
    ops = kc.fit(x, part, "affine", backend="reference")
    assert repr(ops) == "KoopmanOperators(2 groups, 9 snapshots, models {'affine': 2})"
