"""Snapshots with known motion, definitions to compare with, and the backends to compare."""

import numpy as np

from koopcore.backends import available_backends

#: Names of the CPU backends that run here.
NAMES = [info.name for info in available_backends() if info.device == "cpu" and info.available]

#: Those of whole fits; what a user gets who names none is the first (test_backends.py).
WHOLE = NAMES


def smooth(n, m, seed=0, rates=(0.5, 0.8, 0.95), offset=1.0):
    """Decaying exponentials around a fixed point: (n, m) float64."""
    rng = np.random.default_rng(seed)
    powers = np.power.outer(np.asarray(rates), np.arange(n)).T  # (n, n_rates)
    return offset * rng.normal(size=m) + powers @ rng.normal(size=(len(rates), m))


def generic(n, m, seed=0):
    """A position and well-conditioned, linearly independent steps: (n, m) float64."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=m) + np.cumsum(rng.normal(size=(n, m)), axis=0)


def by_operator(operator, first, n, offset=0.0):
    """x_{k+1} = U x_k from ``first``, plus ``offset``: (n, m) float64."""
    rows = [np.asarray(first, dtype=np.float64)]
    for _ in range(n - 1):
        rows.append(operator @ rows[-1])
    return np.array(rows) + offset


def spiral(angle, radius, m, seed=0):
    """U (m, m): a rotation by ``angle`` a step, shrinking by ``radius``, in a random plane."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(m, m)))
    turn = np.zeros((m, m))
    c, s = np.cos(angle), np.sin(angle)
    turn[:2, :2] = radius * np.array([[c, -s], [s, c]])
    turn[range(2, m), range(2, m)] = 0.5 / np.arange(1, m - 1)
    return basis @ turn @ basis.T


def columns(x, affine=False):
    """F and F' of the model, (m, N) each, as the papers write them."""
    rows = np.diff(x, axis=0) if affine else x
    return rows[:-1].T, rows[1:].T


def basis_of(x):
    """B = [x_1, d_1, …, d_{n-1}] as (m, n) long doubles: differences without rounding."""
    x = np.asarray(x, dtype=np.longdouble)
    return np.vstack([x[:1], np.diff(x, axis=0)]).T


def operator_of(x, affine=False, rank=None):
    """F'F⁺ (m, m) by the singular value decomposition, truncated to ``rank`` as in DMD."""
    f, ahead = columns(np.asarray(x, dtype=np.float64), affine)
    left, sigma, right = np.linalg.svd(f, full_matrices=False)
    if rank is None:
        rank = int((sigma > 1e-12 * sigma[0]).sum())
    return ahead @ (right[:rank].T / sigma[:rank]) @ left[:, :rank].T


def prediction_of(x, horizon, affine=False, rank=None):
    """x_{n+T} (m,) by ``horizon`` products with `operator_of`."""
    u = operator_of(x, affine, rank)
    x = np.asarray(x, dtype=np.float64)
    if not affine:
        return np.linalg.matrix_power(u, horizon) @ x[-1]
    step, position = x[-1] - x[-2], x[-1]
    for _ in range(horizon):
        step = u @ step
        position = position + step
    return position


def movement(x):
    """‖x_n - x_1‖: what an error is to be compared with."""
    return float(np.linalg.norm(np.asarray(x[-1], np.float64) - np.asarray(x[0], np.float64)))
