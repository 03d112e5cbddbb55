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


def altered(window, change):
    window = window.copy()
    change(window)
    return window


def steep(n, m):
    """A slow motion beside fast ones, of as many rates as fill the window: few digits are left."""
    return smooth(n, m, rates=np.linspace(0.05, 0.95, n))


#: Windows (8, 70) of deficient rank, or of which the Gram matrix cannot say: projected, and most
#: of them from a second pass. In float64.
PROJECTED = {
    "rank 2": smooth(8, 70, rates=(0.5, 0.9)),
    "rank 3": smooth(8, 70, rates=(0.5, 0.8, 0.95)),
    "repeated snapshot": altered(generic(8, 70), lambda x: np.copyto(x[4], x[3])),
    "paused step": altered(generic(8, 70), lambda x: np.copyto(x[-1], x[-2])),
    "three parameters move": altered(generic(8, 70), lambda x: np.copyto(x[:, 3:], x[0, 3:])),
    "nothing moves": np.tile(generic(8, 70)[0], (8, 1)),
    "all zero": np.zeros((8, 70)),
    "far from the origin": 1e8 * generic(1, 70, 1) + generic(8, 70),
    "farther": 1e10 * generic(1, 70, 1) + generic(8, 70),
    "far, rank 3": 1e6 * generic(1, 70, 1) + smooth(8, 70),
    "many rates": steep(8, 70),
    "falling by orders of magnitude": smooth(8, 70, rates=(0.01, 0.05, 0.1, 0.2, 0.3), offset=0.0),
    "squares underflow": np.ldexp(smooth(8, 70), -1000),
    "squares lose digits": np.ldexp(generic(8, 70), -520),
    "squares overflow": np.ldexp(smooth(8, 70), 600),
    "nearly as large as can be": np.ldexp(generic(8, 70), 1010),
    "small steps of large numbers": 2.0**700 + np.ldexp(np.round(1e4 * generic(8, 70)), 660),
}


def projected_groups(part):
    """Snapshots (8, part.size): PROJECTED in every second group of 70, good ones between them."""
    ring = np.full((8, part.size), 3.0)
    for group, window in enumerate(PROJECTED.values()):
        ring[:, part.indices(2 * group)] = window
        ring[:, part.indices(2 * group + 1)] = generic(8, 70, seed=5)
    return ring


def assert_predicts_as(got, expected, ring, part):
    """Predictions (n_horizons, size) of `projected_groups` agree as far as they are known."""
    for group in range(part.n_groups):
        at = part.indices(group)
        x, due = ring[-2:, at] / 2, expected[:, at] / 2  # halves: their differences are finite
        movement = np.abs(due - x[1]).max(axis=1, keepdims=True)
        # The columns are known to u of the snapshots, 1e-6 of the motion at an offset of 1e10, and
        # the farthest prediction is of 40 steps.
        allowed = 1e-3 * np.maximum(movement, np.abs(x[1] - x[0]).max())
        # Where nothing moves, rounding of 40 products is left: measured 2e-14 in the reference.
        allowed = allowed + 1e-12 * np.abs(x[1]).max()
        assert (np.abs(got[:, at] / 2 - due) <= allowed).all(), list(PROJECTED)[group // 2]
