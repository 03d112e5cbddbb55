"""solve and gram_solve of every backend: least squares, diagnostics, breakdown, neighbours.

The bounds: u = 2⁻⁵³; a Gram matrix squares the condition number κ of its columns, so a solution
errs by a small multiple of κ²·u.
"""

from functools import cache

import numpy as np
import pytest
from backend_cases import (
    ON_CPU,
    OTHERS,
    REFERENCE,
    U,
    close,
    packed_gram,
    ragged,
    same_bits,
    side_by_side,
    walks,
)
from trajectories import basis_of, columns, generic, smooth

from koopcore.backends.reference import power_of_two_scale

BOTH = pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])


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


@pytest.mark.parametrize(("name", "x", "affine"), WINDOWS, ids=IDS)
def test_solve_is_least_squares_for_the_last_column(backend, name, x, affine):
    n = len(x)
    f, ahead = columns(x, affine)
    solved = backend.solve(packed_gram(x)[None], n, affine, 1)
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
    # Diagonal entries of a triangular factor lie between its singular values; power-of-two scales
    # leave a factor √2 between column norms, hence 2 in κ.
    assert 1.0 <= solved.condition[0] <= 2.0 * kappa * (1 + 1e-6)
    # No bound, but what makes it an estimate: within a factor of the number of columns.
    assert solved.condition[0] >= kappa / (10 * n)


@pytest.mark.parametrize("holdout", [1, 2, 4])
@BOTH
def test_hindcast_is_the_error_of_a_fit_to_the_shorter_window(backend, affine, holdout):
    n = 10
    x = np.stack([generic(n, 40, seed) for seed in range(3)])
    grams = np.stack([packed_gram(window) for window in x])
    solved = backend.solve(grams, n, affine, holdout)
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


@pytest.mark.parametrize(
    ("n", "affine", "holdout"),
    [(2, False, 1), (3, True, 1), (8, False, 0), (8, False, 7), (8, True, 6)],
)
def test_no_hindcast_where_nothing_is_left_to_fit(backend, n, affine, holdout):
    solved = backend.solve(packed_gram(generic(n, 9))[None], n, affine, holdout)
    assert np.isnan(solved.hindcast).all()
    assert solved.rank.tolist() == [n - 1 - affine]


@cache
def case(n, affine):
    """Snapshots and groups of more than n parameters, their Gram matrices and fits to those."""
    groups = 37 if n < 20 else 9 if n < 60 else 2  # 37: more than one batch, the last not full
    part = ragged(np.random.default_rng(n), [n + 10 + k for k in range(groups)])
    snapshots = walks(np.random.default_rng(n), n, part.size, np.float32)
    gram = REFERENCE.gram(snapshots, part)
    holdouts = sorted({0, 1, max(1, n // 5)}) if n < 60 else [n // 5]
    return snapshots, part, gram, {h: REFERENCE.solve(gram, n, affine, h) for h in holdouts}


@pytest.mark.parametrize(
    ("backend", "n"),
    [(b, n) for n in (3, 4, 5, 8, 9, 16, 17, 24, 33) for b in OTHERS]
    + [(b, n) for n in (64, 130, 200) for b in OTHERS if b in ON_CPU],
    indirect=["backend"],
)
@BOTH
def test_fits_of_many_groups_equal_the_reference(backend, n, affine):
    snapshots, part, gram, fits = case(n, affine)
    for holdout, expected in fits.items():
        got = backend.solve(gram, n, affine, holdout)
        # Backward stable on a Gram matrix: errors of cond² n u; cond is below 1e3 here.
        equals(got, expected, 4.0 * n * U * expected.condition**2)
        same_bits(backend.solve(gram[:1], n, affine, holdout), (field[:1] for field in got))
    fused = backend.gram_solve(snapshots, part, affine, holdout)
    equals(fused, expected, np.full(part.n_groups, 1e-8))  # and sums in another order


def equals(got, expected, bound):
    assert np.array_equal(got.rank, expected.rank)
    size = np.abs(expected.coefficients).max(axis=1)
    error = np.abs(np.asarray(got.coefficients) - expected.coefficients).max(axis=1)
    assert (error <= np.minimum(bound, 1e-8) * size).all()
    for name in ("condition", "residual", "hindcast"):
        due = pytest.approx(getattr(expected, name), rel=1e-8, nan_ok=True)
        assert np.asarray(getattr(got, name)) == due, name


@pytest.mark.parametrize("backend", OTHERS, indirect=True)
@BOTH
@pytest.mark.parametrize("n", [4, 16, 24])
def test_groups_of_about_as_many_parameters_as_columns(backend, n, affine):
    rng = np.random.default_rng(n)
    part = ragged(rng, [1, 2, 3, 7, 8, 9, n - 1, n + 6, n + 20, 31, 64, 65, 100])
    gram = REFERENCE.gram(walks(rng, n, part.size, np.float32), part)
    full = n - 1 - affine
    got, expected = (b.solve(gram, n, affine, max(1, n // 5)) for b in (backend, REFERENCE))
    clear = part.sizes > n + 5  # near m = n the smallest pivot is a matter of rounding
    assert np.array_equal((got.rank == full)[clear], (expected.rank == full)[clear])
    low = got.rank < full
    assert low.any()
    assert np.isinf(got.condition[low]).all()
    assert (got.coefficients[low] == 0.0).all()
    assert np.isnan(got.hindcast[low]).all()
    for name in ("coefficients", "residual", "condition", "hindcast"):
        close(getattr(got, name)[clear], getattr(expected, name)[clear], 1e-8)


# -- breakdown ------------------------------------------------------------------------------------


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
        (np.outer(0.5 ** np.arange(6), np.arange(1.0, 21.0)), False, 1),
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
        "one decaying mode",
        "m < n - 1",
        "m < n - 1, affine",
    ],
)
def test_solve_counts_the_columns_before_a_breakdown(backend, x, affine, rank):
    n = len(x)
    rows = np.stack([packed_gram(generic(n, 20)), packed_gram(x), packed_gram(generic(n, 30))])
    solved = backend.solve(rows, n, affine, 1)
    full = n - 1 - affine
    assert solved.rank.tolist() == [full, rank, full]  # neighbours are not touched
    assert solved.condition[1] == np.inf
    assert (solved.coefficients[1] == 0.0).all()
    assert np.isnan(solved.hindcast[1])
    assert np.isfinite(solved.coefficients).all()


def near_dependent(x, column, share):
    """Differences as given, but one of them ``share`` of its size."""
    steps = np.diff(x, axis=0, prepend=0.0)
    steps[column] *= share
    return np.cumsum(steps, axis=0)


def with_large_pivots(n):
    """No pivot is small, but the last column is nearly a sum of those before it, grown by 2ⁿ."""
    factor = 2.0 * np.eye(n) - np.triu(np.ones((n, n)))
    factor[0, 1:], factor[-2, -2] = 0.0, 0.25
    return (factor.T @ factor)[np.tril_indices(n)]


N = 32
UNSURE = {
    "a column near the cut-off": packed_gram(near_dependent(generic(N, 80), 5, 1e-13)),
    "squares that lose digits": np.ldexp(packed_gram(generic(N, 80)), -830),
    "squares near the largest": np.ldexp(packed_gram(generic(N, 80)), 1000),
    "a small eigenvalue behind large pivots": with_large_pivots(N),
}


@BOTH
@pytest.mark.parametrize("gram", UNSURE.values(), ids=UNSURE)
def test_a_group_that_is_not_sure_of_its_rank_is_left_to_project(backend, gram, affine):
    whole = packed_gram(generic(N, 50))
    solved = backend.solve(np.stack([whole, gram, whole]), N, affine, 1)
    full = N - 1 - affine
    assert solved.rank.tolist() == [full, full - 1, full]
    assert solved.condition[1] == np.inf
    assert (solved.coefficients[1] == 0.0).all()
    assert np.isfinite(solved.condition[[0, 2]]).all()


@pytest.mark.parametrize("backend", OTHERS, indirect=True)
@BOTH
@pytest.mark.parametrize("n", [6, 12, 25])
def test_groups_that_break_down_anywhere_or_are_not_finite(backend, n, affine):
    rng = np.random.default_rng(1)
    part = side_by_side([3 * n] * 17)
    gram = REFERENCE.gram(walks(rng, n, part.size, np.float64), part)
    for group in range(0, 13, 2):
        basis = rng.normal(size=(group % (n - 2) + 1, n))
        basis += 3.0 * np.eye(*basis.shape)  # its leading columns are well conditioned
        gram[group] = (basis.T @ basis)[np.tril_indices(n)]
    gram[-4] = 0.0
    gram[-3, 5] = np.nan
    gram[-2] = np.nan
    gram[-1, 2] = np.inf
    with np.errstate(invalid="ignore"):
        expected = REFERENCE.solve(gram, n, affine, 2)
        got = backend.solve(gram, n, affine, 2)
    np.testing.assert_array_equal(got.rank, expected.rank)
    assert len(set(expected.rank)) > 2  # the table holds what it promises
    for name in ("coefficients", "residual", "condition", "hindcast"):
        close(getattr(got, name), getattr(expected, name), 1e-6)


def test_a_group_that_breaks_down_leaves_its_neighbours_alone(backend):
    rng = np.random.default_rng(0)
    part = ragged(rng, [40] * 19)
    snapshots = walks(rng, 12, part.size, np.float64)
    alone = backend.gram_solve(snapshots, part, True, 3)
    snapshots.array[:, part.indices(4)] = 1.5  # constant: its Gram matrix is zero
    snapshots.array[:, part.indices(9)] = np.nan
    snapshots.array[3, part.indices(13)[0]] = np.inf
    mixed = backend.gram_solve(snapshots, part, True, 3)
    others = np.setdiff1d(np.arange(19), [4, 9, 13])
    same_bits(*([np.asarray(field)[others] for field in fit] for fit in (mixed, alone)))
    assert (np.asarray(mixed.rank)[[4, 9, 13]] < 10).all()
    assert np.isfinite(np.asarray(mixed.coefficients)).all()


@pytest.mark.parametrize("power", [-365, -100, -1, 100, 465])
def test_solve_is_exact_under_powers_of_two(backend, power):
    """Equilibration by powers of two commutes with scaling: the same bits come out."""
    gram = packed_gram(generic(9, 30))[None]
    one, scaled = (backend.solve(g, 9, False, 2) for g in (gram, np.ldexp(gram, 2 * power)))
    for name in ("coefficients", "rank", "condition", "hindcast"):
        np.testing.assert_array_equal(getattr(scaled, name), getattr(one, name), err_msg=name)
    np.testing.assert_array_equal(scaled.residual, np.ldexp(one.residual, power))


@pytest.mark.parametrize("value", [1.0, 3.0, 0.5, 1e300, 1e-300, 7e-320])
def test_scales_are_powers_of_two_that_bring_the_diagonal_near_one(value):
    scale = power_of_two_scale(np.array([value]))[0]
    assert np.frexp(scale)[0] == 0.5
    assert 0.5 <= value * scale * scale < 2.0
    assert power_of_two_scale(np.zeros(1))[0] == 1.0


# -- fused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ON_CPU, indirect=True)
@BOTH
@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (4, [14, 14, 14, 31, 65, 100, 257, 1100]),
        (9, [21]),
        (9, [21] * 7),
        (16, [26, 31, 64, 65, 100, 257, 1100]),
        (9, [21] * 64),
        (24, [34, 31, 65, 100, 257]),
        (9, [21] * 65),
        (33, [43, 64, 65, 100, 1100]),
        (9, [21] * 200),
    ],
    ids=lambda case: str(case) if isinstance(case, int) else f"{len(case)} groups",
)
def test_the_fused_fit_is_its_two_stages_bit_for_bit(backend, n, sizes, affine):
    part = ragged(np.random.default_rng(n), sizes)
    snapshots = walks(np.random.default_rng(n), n, part.size, np.float32)
    fused = backend.gram_solve(snapshots, part, affine, 2)
    same_bits(fused, backend.solve(backend.gram(snapshots, part), n, affine, 2))
