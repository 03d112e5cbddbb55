"""Prediction error of every backend beside Householder/SVD least squares, over tables of cases.

A case is a kind of motion, a storage dtype, m, n and a model; each is tried on several
trajectories, fitted side by side in one call. The oracle is float64 least squares on the snapshots
themselves, without any Gram matrix: the coefficients of x_n on the window where the columns are
independent, the (m, m) operator elsewhere.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from trajectories import WHOLE

import koopcore as kc

SIZES = (1, 2, 11, 65, 257, 3073)
WINDOWS = (2, 3, 8, 16, 33, 64)
HORIZONS = (1, 10, 100)
SEEDS = {1: 9, 2: 9, 11: 9, 65: 9, 257: 9, 3073: 3}  # trajectories of m parameters
NONE_APART = 3  # of the first trajectories no single prediction may stand apart
EPSILON = 2.0**-52


def _smooth(t, m, rng):
    """Four slow decays about a fixed point, as weights late in training move."""
    powers = np.exp(-np.outer(t, [0.002, 0.01, 0.03, 0.08]))
    return rng.normal(size=m) + powers @ (rng.normal(size=(4, m)) * [[0.3], [0.1], [0.05], [0.02]])


def _oscillating(t, m, rng):
    """Three damped oscillations about a fixed point."""
    phase, decay = np.outer(t, [0.15, 0.4, 0.9]), np.exp(-np.outer(t, [0.002, 0.004, 0.01]))
    waves = np.hstack([decay * np.cos(phase), decay * np.sin(phase)])
    return rng.normal(size=m) + waves @ (rng.normal(size=(6, m)) * 0.1)


def _noisy(t, m, rng):
    """The smooth motion under white noise, a hundred times the rounding of float32."""
    return _smooth(t, m, rng) + rng.normal(size=(len(t), m)) * 1e-5


def _deficient(t, m, rng):
    """Two modes only, so that longer windows are rank-deficient up to rounding."""
    return np.power.outer([1.0, 0.97], t).T @ rng.normal(size=(2, m))


#: Where one Gram matrix in float64 does not resolve what orthogonal methods still do: cond(F) is
#: 9e6 on eleven parameters, two directions fall below rounding. Measured 3.3e-4; bound in place of
#: 1e-4.
UNRESOLVED = {("oscillating", "float32", "linear", 11, 16): 4e-4}

KINDS = {"smooth": _smooth, "oscillating": _oscillating, "noisy": _noisy, "deficient": _deficient}


@cache
def trajectory(kind, m, n, seed):
    rng = np.random.default_rng([seed, m, n])
    return KINDS[kind](np.arange(n + max(HORIZONS)), m, rng)


def least_squares(x, affine):
    """Predictions (n_horizons, m) at HORIZONS by least squares on snapshots (n, m) in float64."""
    rows = np.diff(x, axis=0) if affine else x
    f, ahead, state = rows[:-1].T, rows[1:].T, rows[-1]
    cut = max(f.shape) * EPSILON
    out = {}
    if f.shape[0] >= f.shape[1]:
        a = np.linalg.lstsq(f, state, rcond=cut)[0]
        c, total = a.copy(), a.copy()
        for t in range(1, max(HORIZONS) + 1):
            out[t] = x[-1] + ahead @ total if affine else ahead @ c
            c = np.append(0.0, c[:-1]) + a * c[-1]
            total = total + c
    else:
        u = np.linalg.lstsq(f.T, ahead.T, rcond=cut)[0].T
        position = x[-1].copy()
        for t in range(1, max(HORIZONS) + 1):
            state = u @ state
            position = position + state
            out[t] = position if affine else state
    return np.stack([out[t] for t in HORIZONS])


def relative_errors(predicted, x, n):
    """‖predicted - true‖ / ‖true movement‖ at HORIZONS."""
    true = x[np.add(n - 1, HORIZONS)]
    return np.linalg.norm(predicted - true, axis=1) / np.linalg.norm(true - x[n - 1], axis=1)


def side_by_side(kind, m, n, dtype):
    """Trajectories of all seeds, their snapshots (n, SEEDS·m), and the partition into groups."""
    full = [trajectory(kind, m, n, seed) for seed in range(SEEDS[m])]
    groups = [np.arange(seed * m, (seed + 1) * m) for seed in range(SEEDS[m])]
    snapshots = np.concatenate([x[:n] for x in full], axis=1).astype(dtype)
    return full, snapshots, kc.Partition.groups(SEEDS[m] * m, groups)


@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_as_good_as_orthogonal_least_squares(kind, dtype, model):
    """Wherever least squares predicts to 10 %: its error times 1.2, or 1e-4 of the movement.

    That bound is on the median of a case's trajectories. Of single predictions, all but one in
    a hundred stay within three times their error or 1e-3, and all of the first three
    trajectories: near the rank threshold, rounding decides which columns are kept.
    """
    missed, compared = [], 0
    alone = dict.fromkeys(WHOLE, 0)
    for m in SIZES:
        for n in WINDOWS[model == "affine" :]:
            full, snapshots, part = side_by_side(kind, m, n, dtype)
            oracle = np.stack(
                [
                    relative_errors(
                        least_squares(x[:n].astype(dtype).astype(float), model == "affine"), x, n
                    )
                    for x in full
                ]
            )  # (SEEDS, n_horizons)
            usable = oracle < 0.1
            floor = UNRESOLVED.get((kind, dtype, model, m, n), 1e-4)
            compared += int(usable.sum())
            for backend in WHOLE:
                ops = kc.fit(snapshots, part, model=model, backend=backend)
                predicted = ops.predict(HORIZONS)
                assert np.isfinite(predicted).all()
                ours = np.stack(
                    [
                        relative_errors(predicted[:, part.indices(s)], full[s], n)
                        for s in range(SEEDS[m])
                    ]
                )
                typical = np.median(ours, axis=0) > np.maximum(
                    1.2 * np.median(oracle, axis=0), floor
                )
                single = ours > np.maximum(3.0 * oracle, 1e-3)
                alone[backend] += int((single & usable).sum())
                apart = (single & usable)[:NONE_APART].any()
                if apart or (typical & (np.median(oracle, axis=0) < 0.1)).any():
                    missed.append((backend, m, n, oracle.round(9).tolist(), ours.round(9).tolist()))
    assert compared > 20, "the motion is too hard for the oracle: nothing was compared"
    assert not missed, "\n".join(map(str, missed))
    assert max(alone.values()) <= compared / 100, (alone, compared)


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
