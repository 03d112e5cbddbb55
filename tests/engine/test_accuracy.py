"""Prediction error of every backend beside orthogonal least squares, over tables of cases."""

from functools import partial

import numpy as np
import pytest
from accuracy_tables import EPSILON, HORIZONS, KINDS, SIZES, WINDOWS, check, side_by_side
from oracle import Method, answer, spread
from trajectories import WHOLE, generic

import koopcore as kc


def _predict(snapshots, part, model, backend):
    return kc.fit(snapshots, part, model=model, backend=backend).predict(HORIZONS)


@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_as_good_as_orthogonal_least_squares(kind, dtype, model):
    fits = {name: partial(_predict, model=model, backend=name) for name in WHOLE}
    check(kind, dtype, model, fits)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("model", ["linear", "affine"])
def test_constant_trajectories_stay_where_they_are(model, dtype):
    for m in SIZES:
        for n in WINDOWS[model == "affine" :]:
            snapshots = np.tile(np.random.default_rng(m).normal(size=m).astype(dtype), (n, 1))
            part = kc.Partition.groups(m, [np.arange(m)])
            for backend in WHOLE:
                ops = kc.fit(snapshots, part, model=model, backend=backend)
                # U x = x (xᵀx)/(xᵀx): one rounding a step in float64, then one to the dtype
                np.testing.assert_allclose(
                    ops.predict(HORIZONS),
                    np.tile(snapshots[-1], (3, 1)),
                    rtol=2e-7 if dtype == "float32" else 1e-12,
                )


@pytest.mark.parametrize("model", ["linear", "affine"])
def test_eigenvalues_equal_those_of_the_pseudo_inverse_operator(model):
    """To 1e-6 where they are well conditioned: distinct modes of comparable size, float64."""
    angles, radii = np.array([0.3, 1.1, 2.0]), np.array([0.99, 0.95, 0.9])
    expected = np.sort_complex(
        np.concatenate([radii * np.exp(1j * angles), radii * np.exp(-1j * angles)])
    )
    for m in (11, 65, 257):
        for n in (9, 16, 33):
            rng = np.random.default_rng([m, n])
            powers = np.power.outer(expected, np.arange(n)).T
            modes = rng.normal(size=(3, m)) + 1j * rng.normal(size=(3, m))
            half = expected.imag > 0
            x = (powers[:, half] @ modes).real + (model == "affine") * rng.normal(size=m)
            part = kc.Partition.groups(m, [np.arange(m)])
            for backend in WHOLE:
                values = kc.fit(x, part, model=model, backend=backend).eigenvalues()[0]
                nearest = [values[np.nanargmin(np.abs(values - e))] for e in expected]
                np.testing.assert_allclose(
                    nearest, expected, rtol=1e-6, err_msg=f"{backend} {m} {n}"
                )


@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backends_agree_to_rounding_scaled_by_the_condition(dtype, model):
    """κ² u of the movement, as the Gram matrix squares cond(F): at T = 1, where nothing grows."""
    for m in (11, 65, 257):
        for n in (8, 16):
            _, snapshots, part = side_by_side("oscillating", m, n, dtype)
            fits = [kc.fit(snapshots, part, model=model, backend=backend) for backend in WHOLE]
            base = fits[-1].predict(1).astype(float)
            for ops in fits[:-1]:
                assert (ops.rank == fits[-1].rank).all()
                for group in range(part.n_groups):
                    columns = part.indices(group)
                    step = np.linalg.norm(np.diff(snapshots[-2:, columns].astype(float), axis=0))
                    bound = 100.0 * fits[-1].condition[group] ** 2 * EPSILON * step
                    ulp = 4.0 * np.finfo(dtype).eps * np.linalg.norm(snapshots[-1, columns])
                    error = np.linalg.norm(ops.predict(1).astype(float)[columns] - base[columns])
                    assert error <= bound + ulp


@pytest.mark.parametrize("backend", WHOLE)
def test_full_rank_that_is_rounding_is_told_from_motions_that_fall_steeply(backend):
    """Each column is 3 to 1000 times smaller than the last: pivots alike, and no digits left.

    Groups whose answer is known to 1 % are compared. Half of them were once fitted from a factor
    that is rounding, with errors of 1e-3 to 2e-2.
    """
    seeds = range(150)
    windows = [
        generic(8, 70, s)
        * 10.0 ** (-np.random.default_rng(s).uniform(0.5, 3) * np.arange(8))[:, None]
        for s in seeds
    ]
    part = kc.Partition.groups(70 * 150, [range(70 * k, 70 * k + 70) for k in seeds])
    got = kc.fit(np.hstack(windows), part, "linear", backend=backend).predict(1)
    problem = np.stack(windows), Method(False), [1]
    due = answer(*problem)
    error = np.linalg.norm(got.reshape(150, 70) - due.values[0], axis=1) / due.movement[0]
    known = spread(*problem)[0] < 1e-2
    assert known.sum() > 100
    assert error[known].max() < 6e-3
    assert (error[known] > 1e-3).mean() < 0.05
