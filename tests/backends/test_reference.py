"""The stages on the snapshot side against longdouble sums, lstsq, pinv and stepping: all backends.

The bounds: u = 2⁻⁵³; a sum of m products errs by at most about m·u·Σ|ab|; a Gram matrix squares the
condition number κ of its columns, so a solution errs by a small multiple of κ²·u.
"""

import numpy as np
import pytest
from trajectories import NAMES, basis_of, columns, generic, smooth

from koopcore.backends import backend_for
from koopcore.backends.protocol import Snapshots, packed_size, unpack
from koopcore.backends.reference import Reference, power_of_two_scale
from koopcore.partition.partition import Partition

reference = Reference()


U = 2.0**-53
RAGGED = Partition.groups(60, [[3], [7, 5, 9], range(10, 40, 2), [0, 1, 2, 50], [59]])


def in_order(x):
    return Snapshots(x, np.arange(len(x)))


def rotated(x, by):
    """The same window in a ring buffer whose oldest row is ``by``."""
    order = (np.arange(len(x)) + by) % len(x)
    ring = np.empty_like(x)
    ring[order] = x
    return Snapshots(ring, order)


def packed_gram(x):
    basis = basis_of(x)
    full = (basis.T @ basis).astype(np.float64)
    return full[np.tril_indices(len(full))]


# -- gram -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 3, 8, 17, 33])
def test_gram_is_the_sum_of_products_of_differences(backend, dtype, n):
    x = generic(n, 60, seed=n).astype(dtype)
    got = backend_for("cpu", backend).gram(rotated(x, n // 2), RAGGED)
    assert got.shape == (RAGGED.n_groups, packed_size(n))
    assert got.dtype == np.float64
    lower = np.tril_indices(n)
    for group in range(RAGGED.n_groups):
        basis = basis_of(x[:, RAGGED.indices(group)])
        # m products, and one rounding of each float64 difference: 2 u more a product.
        bound = (len(basis) + 4) * U * (np.abs(basis).T @ np.abs(basis))[lower]
        error = np.abs(got[group] - (basis.T @ basis)[lower])
        assert (error <= bound).all(), group


@pytest.mark.parametrize("backend", NAMES)
def test_gram_of_large_groups_does_not_lose_digits(backend):
    x = generic(5, 100_003, seed=1).astype(np.float32)
    whole = Partition.groups(100_003, [range(100_003)])
    got = backend_for("cpu", backend).gram(in_order(x), whole)[0]
    # 100,000 float32 numbers added in float64: far below float32's own 6e-8.
    np.testing.assert_allclose(got, packed_gram(x), rtol=1e-11)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(
    "made",
    [
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: np.repeat(x, 3, axis=1)[:, ::3],
        lambda x: x[::-1].copy()[::-1],
        lambda x: x[:, ::-1].copy()[:, ::-1],
    ],
    ids=["fortran", "every 2nd row", "every 3rd column", "rows backwards", "columns backwards"],
)
def test_gram_reads_any_strides(backend, made):
    x = generic(9, 60).astype(np.float32)
    run = backend_for("cpu", backend).gram
    expected = run(in_order(x), RAGGED)
    np.testing.assert_array_equal(run(in_order(made(x)), RAGGED), expected)


# -- solve ----------------------------------------------------------------------------------------


def condition_of(x, affine):
    """κ of the scaled difference basis that the Gram matrix is of."""
    basis = basis_of(x).astype(np.float64)[:, int(affine) : len(x) - 1]
    return float(np.linalg.cond(basis / np.linalg.norm(basis, axis=0)))


WINDOWS = [
    ("generic", generic(8, 40), False),
    ("generic", generic(8, 40), True),
    ("smooth, 4 motions", smooth(4, 65), False),
    ("smooth, 3 motions", smooth(5, 65), True),
    ("as many parameters as columns", generic(8, 7, seed=3), False),
    ("shortest linear", generic(2, 5), False),
    ("shortest affine", generic(3, 5), True),
    ("one parameter", generic(2, 1), False),
    ("long", generic(33, 200), False),
    ("long", generic(33, 200), True),
    ("far from the origin", generic(6, 30) + 1e4, False),
    ("far from the origin", generic(6, 30) + 1e4, True),
]
IDS = [f"{name}, {'affine' if affine else 'linear'}" for name, _, affine in WINDOWS]


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(("name", "x", "affine"), WINDOWS, ids=IDS)
def test_solve_is_least_squares_for_the_last_column(backend, name, x, affine):
    n = len(x)
    f, ahead = columns(x, affine)
    solved = backend_for("cpu", backend).solve(packed_gram(x)[None], n, affine, 1)
    expected, *_ = np.linalg.lstsq(f, ahead[:, -1], rcond=None)
    kappa = condition_of(x, affine)
    assert solved.rank.tolist() == [n - 1 - affine]
    # The fitted column, not the coefficients: those are ambiguous where F itself is nearly
    # singular, and lstsq on F loses more digits of them than the differences do.
    scale = np.linalg.norm(ahead[:, -1]) + np.linalg.norm(f @ expected)
    error = np.linalg.norm(f @ solved.coefficients[0] - f @ expected)
    assert error <= 100 * kappa**2 * U * scale + 1e-14 * np.linalg.cond(f) * scale
    residual = np.linalg.norm(f @ expected - ahead[:, -1])
    # The residual is the root of a difference of squares: √u of the column at the least.
    assert abs(solved.residual[0] - residual) <= 10 * kappa * np.sqrt(U) * scale


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(("name", "x", "affine"), WINDOWS, ids=IDS)
def test_condition_is_a_lower_estimate_of_the_condition_number(backend, name, x, affine):
    solved = backend_for("cpu", backend).solve(packed_gram(x)[None], len(x), affine, 1)
    kappa = condition_of(x, affine)
    # Diagonal entries of a triangular factor lie between its singular values; power-of-two scales
    # leave a factor √2 between column norms, hence 2 in κ.
    assert 1.0 <= solved.condition[0] <= 2.0 * kappa * (1 + 1e-6)
    # No bound, but what makes it an estimate: within a factor of the number of columns.
    assert solved.condition[0] >= kappa / (10 * len(x))


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("holdout", [1, 2, 4])
@pytest.mark.parametrize("affine", [False, True])
def test_hindcast_is_the_error_of_a_fit_to_the_shorter_window(backend, affine, holdout):
    n = 10
    x = np.stack([generic(n, 40, seed) for seed in range(3)])
    grams = np.stack([packed_gram(window) for window in x])
    solved = backend_for("cpu", backend).solve(grams, n, affine, holdout)
    for group, window in enumerate(x):
        kept = window[: n - holdout]
        f, ahead = columns(kept, affine)
        a, *_ = np.linalg.lstsq(f, ahead[:, -1], rcond=None)
        past = list(ahead.T)
        for _ in range(holdout):
            past.append(np.array(past[-len(a) :]).T @ a)
        end = kept[-1] + sum(past[-holdout:]) if affine else past[-1]
        expected = np.linalg.norm(end - window[-1]) / np.linalg.norm(window[-1] - kept[-1])
        # κ below 100 here, squared, times a few steps.
        np.testing.assert_allclose(solved.hindcast[group], expected, rtol=1e-9)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(
    ("n", "affine", "holdout"),
    [(2, False, 1), (3, True, 1), (8, False, 0), (8, False, 7), (8, True, 6)],
)
def test_no_hindcast_where_nothing_is_left_to_fit(backend, n, affine, holdout):
    solved = backend_for("cpu", backend).solve(packed_gram(generic(n, 9))[None], n, affine, holdout)
    assert np.isnan(solved.hindcast).all()
    assert solved.rank.tolist() == [n - 1 - affine]


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(
    ("x", "affine", "rank"),
    [
        (np.zeros((6, 20)), False, 0),
        (np.zeros((6, 20)), True, 0),
        (np.ones((6, 20)), False, 1),
        (np.ones((6, 20)), True, 0),
        (np.outer(np.arange(6), np.ones(20)), False, 0),  # x_1 = 0: the first column is nothing
        (np.outer(np.arange(1, 7), np.ones(20)), False, 1),
        (np.outer(np.arange(1, 7), np.ones(20)), True, 1),
        (np.outer(2.0 ** np.arange(6), np.ones(20)), True, 1),
        (generic(6, 3), False, 3),
        (generic(6, 3), True, 3),
    ],
    ids=[
        "zero",
        "zero, affine",
        "constant",
        "constant, affine",
        "line from the origin",
        "line",
        "line, affine",
        "one growing mode",
        "m < n - 1",
        "m < n - 1, affine",
    ],
)
def test_solve_counts_the_columns_before_a_breakdown(backend, x, affine, rank):
    n = len(x)
    rows = np.stack([packed_gram(generic(n, 20)), packed_gram(x), packed_gram(generic(n, 30))])
    solved = backend_for("cpu", backend).solve(rows, n, affine, 1)
    full = n - 1 - affine
    assert solved.rank.tolist() == [full, rank, full]  # neighbours are not touched
    assert solved.condition[1] == np.inf
    assert (solved.coefficients[1] == 0.0).all()
    assert np.isfinite(solved.coefficients).all()


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("power", [-300, -100, -1, 100, 300])
def test_solve_is_exact_under_powers_of_two(backend, power):
    """Equilibration by powers of two commutes with scaling: the same bits come out."""
    run = backend_for("cpu", backend).solve
    gram = packed_gram(generic(9, 30))[None]
    one, scaled = run(gram, 9, False, 2), run(np.ldexp(gram, 2 * power), 9, False, 2)
    for name in ("coefficients", "rank", "condition", "hindcast"):
        np.testing.assert_array_equal(getattr(scaled, name), getattr(one, name), err_msg=name)
    np.testing.assert_array_equal(scaled.residual, np.ldexp(one.residual, power))


# -- gram_solve, where a backend has it -----------------------------------------------------------


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("affine", [False, True])
def test_a_fused_fit_is_the_two_stages_in_one(backend, affine):
    x = generic(9, 60).astype(np.float32)
    wide = Partition.groups(60, [range(10), range(10, 60, 2), range(11, 60, 2)])
    window = rotated(x, 4)
    expected = reference.solve(reference.gram(window, wide), 9, affine, 2)
    if backend == "reference":
        gram = backend_for("cpu", backend).gram(window, wide)
        got = backend_for("cpu", backend).solve(gram, 9, affine, 2)
    else:
        got = backend_for("cpu", backend).gram_solve(window, wide, affine, 2)
    for name in expected._fields:
        # Sums in another order: κ² u with κ below 1e3.
        np.testing.assert_allclose(
            getattr(got, name), getattr(expected, name), rtol=1e-9, atol=1e-9, err_msg=name
        )


# -- packing --------------------------------------------------------------------------------------


def test_unpack_mirrors_the_lower_triangle():
    packed = np.array([[1.0, 2, 3, 4, 5, 6]])
    assert unpack(packed, 3).tolist() == [[[1, 2, 4], [2, 3, 5], [4, 5, 6]]]


@pytest.mark.parametrize("value", [1.0, 3.0, 0.5, 1e300, 1e-300, 7e-320])
def test_scales_are_powers_of_two_that_bring_the_diagonal_near_one(value):
    scale = power_of_two_scale(np.array([value]))[0]
    assert np.frexp(scale)[0] == 0.5
    assert 0.5 <= value * scale * scale < 2.0
    assert power_of_two_scale(np.zeros(1))[0] == 1.0
