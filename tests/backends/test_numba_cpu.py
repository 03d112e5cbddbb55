"""numba_cpu against reference, stage by stage: shapes, strides, poisoned outputs, thread counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from koopcore.backends.numba.backend import NumbaCpu
from koopcore.backends.numba.simd import WIDTH
from koopcore.backends.protocol import Projection, Snapshots
from koopcore.backends.reference import Reference
from koopcore.partition.partition import Partition

numba_cpu = NumbaCpu()


reference = Reference()


ROUNDING = 1e-13  # sums of thousands of float64 products, relative to the largest of their kind
SOLVED = 1e-6  # condition numbers up to 1e4 here, squared in the Gram matrix: 1e8 times 1e-16,
#                and a hundredfold for the triangular solves and the rollout


def trajectory(n: int, size: int, seed: int, dtype: Any = np.float64) -> np.ndarray:
    """Decaying, oscillating and noisy parameters: full rank, and cond(F) of some thousands."""
    random = np.random.default_rng(seed)
    t = np.arange(n)[:, None]
    x = random.standard_normal(size) + 1e-2 * random.standard_normal((n, size))
    for rate in (0.05, 0.2, 0.5):
        x = x + random.standard_normal(size) * np.exp(-rate * t)
    return (x + random.standard_normal(size) * np.cos(0.3 * t)).astype(dtype)


def ragged(sizes: list[int], seed: int) -> Partition:
    """Groups of the given sizes: contiguous, cut in two, strided, or scattered, with gaps."""
    random = np.random.default_rng(seed)
    groups: list[Any] = []
    at = 3
    for i, m in enumerate(sizes):
        span = np.arange(at, at + 2 * m + 2)
        kinds = [
            span[:m],
            np.concatenate([span[: m // 2], span[m // 2 + 2 : m + 2]]),
            span[: 2 * m : 2],
            random.permutation(span)[:m],
        ]
        groups.append(kinds[i % len(kinds)])
        at += 2 * m + 2
    return Partition.groups(at + 5, groups)


def equal(groups: int, m: int) -> Partition:
    """Contiguous groups of one size."""
    return Partition.groups(groups * m, [slice(g * m, (g + 1) * m) for g in range(groups)])


def close(actual: Any, expected: Any, tolerance: float) -> None:
    """Equal to ``tolerance`` of the largest finite entry, and not finite at the same places."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    scale = np.abs(expected[finite]).max(initial=0.0)
    np.testing.assert_allclose(actual[finite], expected[finite], rtol=0, atol=tolerance * scale)


def rounded(dtype: Any, n: int) -> float:
    """A prediction is rounded to dtype once, after a float64 sum of n terms of both signs."""
    return float(4 * np.finfo(dtype).eps + 4 * n * np.finfo(np.float64).eps)


SIZES = [1, 2, 7, 8, 9, 65, 1, 300, 33, 64, 2500, 12, 5]
WINDOWS = [2, 3, 4, 5, 8, 16, 17, 33, 64]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [*WINDOWS, 201])
def test_gram_equals_the_reference_on_ragged_parts(n: int, dtype: Any) -> None:
    part = ragged(SIZES, n)
    snapshots = Snapshots(trajectory(n, part.size, n, dtype), np.arange(n))
    actual, expected = numba_cpu.gram(snapshots, part), reference.gram(snapshots, part)
    for group in range(part.n_groups):
        close(actual[group], expected[group], ROUNDING)


def _plain(x: np.ndarray) -> np.ndarray:
    return x.copy()


def _padded(x: np.ndarray) -> np.ndarray:
    ring = np.full((x.shape[0], x.shape[1] + 13), np.nan, x.dtype)
    ring[:, 5:-8] = x
    return ring[:, 5:-8]


def _columns(x: np.ndarray) -> np.ndarray:
    return np.asfortranarray(x)


def _every_third(x: np.ndarray) -> np.ndarray:
    wide = np.full((x.shape[0], 3 * x.shape[1]), np.nan, x.dtype)
    wide[:, ::3] = x
    return wide[:, ::3]


def _backwards(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]


def _unaligned(x: np.ndarray) -> np.ndarray:
    record = np.zeros(x.shape, np.dtype([("flag", np.int8), ("value", x.dtype)]))
    record["value"] = x
    return record["value"]


def _read_only(x: np.ndarray) -> np.ndarray:
    view = x.view()
    view.flags.writeable = False
    return view


STRIDES = [_plain, _padded, _columns, _every_third, _backwards, _unaligned, _read_only]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stored", STRIDES)
def test_snapshots_of_any_strides_and_any_order_give_the_same_bits(
    stored: Callable[[np.ndarray], np.ndarray], dtype: Any
) -> None:
    n, part = 9, ragged([11, 70, 4, 20], 1)
    x = trajectory(n, part.size, 5, dtype)
    expected = numba_cpu.gram(Snapshots(x, np.arange(n)), part)
    order = np.roll(np.arange(n), 4)
    rotated = np.empty_like(x)
    rotated[order] = x
    before = rotated.copy()
    snapshots = Snapshots(stored(rotated), order)
    # Where the columns are not contiguous the sums are the same, in the same order.
    np.testing.assert_array_equal(numba_cpu.gram(snapshots, part), expected)
    weights = np.random.default_rng(0).standard_normal((5, part.n_groups, n))
    out = np.full((5, part.size), np.nan, dtype)
    wanted = np.full((5, part.size), np.nan, dtype)
    numba_cpu.combine(snapshots, part, weights, out)
    reference.combine(Snapshots(x, np.arange(n)), part, weights, wanted)
    close(out, wanted, rounded(dtype, n))
    np.testing.assert_array_equal(rotated, before)


def full_rank_gram(groups: int, n: int) -> np.ndarray:
    part = equal(groups, 3 * n)
    return reference.gram(Snapshots(trajectory(n, part.size, n), np.arange(n)), part)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("n", [*WINDOWS[1:], 200])
@pytest.mark.parametrize("groups", [1, WIDTH, 2 * WIDTH + 3])
def test_companion_fits_equal_the_reference(groups: int, n: int, affine: bool) -> None:
    if n == 200 and groups > WIDTH:
        groups = 2
    gram = full_rank_gram(groups, n)
    for holdout in {0, 1, n // 5}:
        actual = numba_cpu.solve(gram, n, affine, holdout)
        expected = reference.solve(gram, n, affine, holdout)
        np.testing.assert_array_equal(actual.rank, expected.rank)
        for name in ("coefficients", "residual", "condition", "hindcast"):
            close(getattr(actual, name), getattr(expected, name), SOLVED)


def deficient_grams(n: int) -> np.ndarray:
    """Groups whose Gram matrices break down at different columns, or hold nan and inf."""
    gram = full_rank_gram(2 * WIDTH + 1, n)
    random = np.random.default_rng(1)
    for group in range(0, len(gram) - 4, 2):
        basis = random.standard_normal((group % (n - 2) + 1, n))
        gram[group] = (basis.T @ basis)[np.tril_indices(n)]
    gram[-4] = 0.0
    gram[-3, 5] = np.nan
    gram[-2] = np.nan
    gram[-1, 2] = np.inf
    return gram


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("n", [6, 12, 25])
def test_deficient_groups_get_the_same_rank_and_disturb_no_neighbour(n: int, affine: bool) -> None:
    gram = deficient_grams(n)
    with np.errstate(invalid="ignore"):
        expected = reference.solve(gram, n, affine, 2)
    actual = numba_cpu.solve(gram, n, affine, 2)
    np.testing.assert_array_equal(actual.rank, expected.rank)
    assert len(set(expected.rank)) > 2  # the table holds what it promises
    for name in ("coefficients", "residual", "condition", "hindcast"):
        close(getattr(actual, name), getattr(expected, name), SOLVED)


@pytest.mark.parametrize("scale", [1e-110, 1e-30, 1.0, 1e30, 1e140])
def test_the_fit_does_not_depend_on_the_unit(scale: float) -> None:
    gram = full_rank_gram(3, 8)
    one, scaled = (numba_cpu.solve(g, 8, True, 1) for g in (gram, gram * scale**2))
    close(scaled.coefficients, one.coefficients, SOLVED)
    close(scaled.residual, one.residual * scale, SOLVED)
    np.testing.assert_array_equal(scaled.rank, one.rank)


HORIZONS = [[1], [100], [7, 1, 2, 3, 7], [1024, 1025], [5000, 3], list(range(1, 21))]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("horizons", HORIZONS, ids=str)
@pytest.mark.parametrize("columns", [1, 2, 6, 15, 40])
def test_rollouts_equal_the_reference(columns: int, horizons: list[int], affine: bool) -> None:
    random = np.random.default_rng(columns)
    # Roots inside the unit circle: the sum of |a_i| is below one.
    a = random.uniform(-1.0, 1.0, (WIDTH + 3, columns))
    a *= 0.97 / np.abs(a).sum(axis=1, keepdims=True)
    weights, growth = numba_cpu.rollout(a, affine, horizons)
    expected, expected_growth = reference.rollout(a, affine, horizons)
    for i, horizon in enumerate(horizons):
        # every step rounds anew, and errors decay no slower than the states they are compared to
        tolerance = ROUNDING * (1 + horizon)
        close(weights[i], expected[i], tolerance)
        np.testing.assert_allclose(growth[i], expected_growth[i], rtol=tolerance, atol=1e-15)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("horizons", [[50, 900], [4000]], ids=str)
def test_divergent_rollouts_keep_the_last_snapshot(horizons: list[int], affine: bool) -> None:
    a = np.zeros((4, 5))
    a[0, -1], a[1, -1], a[2, 0], a[3] = 1.5, 40.0, -3.0, np.nan
    weights, growth = numba_cpu.rollout(a, affine, horizons)
    expected, expected_growth = reference.rollout(a, affine, horizons)
    np.testing.assert_array_equal(np.isinf(growth), np.isinf(expected_growth))
    assert np.isinf(growth[-1]).all()
    close(weights, expected, ROUNDING * max(horizons))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("horizons", [1, 3, 4, 9])
@pytest.mark.parametrize("n", [2, 3, 16, 64])
def test_predictions_equal_the_reference_and_only_groups_are_written(
    n: int, horizons: int, dtype: Any
) -> None:
    part = ragged(SIZES, n)
    snapshots = Snapshots(trajectory(n, part.size, n, dtype), np.arange(n))
    weights = np.random.default_rng(n).standard_normal((horizons, part.n_groups, n))
    actual, expected = (np.full((horizons, part.size), np.nan, dtype) for _ in range(2))
    numba_cpu.combine(snapshots, part, weights, actual)
    reference.combine(snapshots, part, weights, expected)
    close(actual, expected, rounded(dtype, n))
    assert np.isnan(actual).sum() == horizons * (part.size - part.n_parameters)


def test_predictions_beyond_the_type_are_clipped_and_nan_is_kept() -> None:
    part = equal(3, 19)
    snapshots = Snapshots(trajectory(4, part.size, 0, np.float32), np.arange(4))
    weights = np.ones((1, 3, 4))
    weights[0, 0, 1], weights[0, 1] = 1e300, np.nan
    actual, expected = (np.empty((1, part.size), np.float32) for _ in range(2))
    numba_cpu.combine(snapshots, part, weights, actual)
    reference.combine(snapshots, part, weights, expected)
    assert np.abs(actual[0, :19]).min() == np.finfo(np.float32).max
    close(actual, expected, rounded(np.float32, 4))


@pytest.mark.parametrize("out", STRIDES[:5])
def test_outputs_may_have_any_strides(out: Callable[[np.ndarray], np.ndarray]) -> None:
    part = ragged([20, 9, 31], 2)
    snapshots = Snapshots(trajectory(5, part.size, 0), np.arange(5))
    weights = np.random.default_rng(0).standard_normal((5, 3, 5))
    expected = np.full((5, part.size), np.nan)
    actual = out(expected)
    numba_cpu.combine(snapshots, part, weights, actual)
    reference.combine(snapshots, part, weights, expected)
    close(actual, expected, ROUNDING)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("m", "n"), [(1, 3), (1, 40), (2, 300), (11, 16), (12, 33), (30, 64)])
def test_feature_moments_equal_the_reference(m: int, n: int, affine: bool) -> None:
    part = equal(WIDTH + 2, m)
    snapshots = Snapshots(trajectory(n, part.size, m, np.float32), np.roll(np.arange(n), 1))
    stops = [n, n - 1]
    actual = numba_cpu.feature_gram(snapshots, part, affine, stops)
    close(actual, reference.feature_gram(snapshots, part, affine, stops), ROUNDING)


def test_feature_moments_of_a_group_at_the_origin_are_not_reflected() -> None:
    x = trajectory(12, 6, 1)
    x[-1, :3] = 0.0
    snapshots, part = Snapshots(x, np.arange(12)), equal(2, 3)
    actual = numba_cpu.feature_gram(snapshots, part, False, [12])
    close(actual, reference.feature_gram(snapshots, part, False, [12]), ROUNDING)


def moments(groups: int, n: int, deficient: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, H and g of the difference basis; every third group of lower rank where asked for."""
    random = np.random.default_rng(n)
    basis = random.standard_normal((groups, n, 3 * n)) * np.logspace(0, -3, n)[:, None]
    if deficient:
        for group in range(0, groups, 3):
            basis[group, 1 + group % (n - 1) :] = basis[group, :1]
        basis[1] = 0.0
    ahead = random.standard_normal((groups, n, 3 * n))
    transposed = basis.transpose(0, 2, 1)
    a = basis @ transposed
    return a, basis @ ahead.transpose(0, 2, 1), (basis @ ahead[:, :1].transpose(0, 2, 1))[:, :, 0]


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("deficient", [False, True])
@pytest.mark.parametrize(("rank", "ridge"), [(None, 0.0), (None, 1e-6), (3, 0.0), (1, 1e-3)])
@pytest.mark.parametrize("n", [4, 11, 24])
def test_projections_equal_the_reference(
    n: int, rank: int | None, ridge: float, deficient: bool, raw: bool
) -> None:
    a, h, g = moments(2 * WIDTH + 3, n, deficient)
    actual = numba_cpu.project(a, h, g, rank, ridge, raw)
    expected = reference.project(a, h, g, rank, ridge, raw)
    np.testing.assert_array_equal(actual.rank, expected.rank)
    close(actual.condition, expected.condition, SOLVED)
    assert actual.operator.shape == expected.operator.shape
    # Singular vectors and pivots in ties may differ in sign and order; these products may not.
    for mine, theirs in zip(invariants(actual), invariants(expected), strict=True):
        close(mine, theirs, SOLVED)


def invariants(fit: Projection) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """V Vᵀ, V K Vᵀ and V z."""
    v = fit.whitener
    transposed = v.transpose(0, 2, 1)
    return v @ transposed, v @ fit.operator @ transposed, v @ fit.start[:, :, None]


def test_projections_take_views_and_no_groups() -> None:
    a, h, g = moments(5, 6, False)
    both = np.stack([a, h], axis=1)
    close(
        numba_cpu.project(both[:, 0], both[:, 1], g, None, 0.0, False).operator,
        numba_cpu.project(a, h, g, None, 0.0, False).operator,
        0.0,
    )
    assert numba_cpu.project(a[:0], h[:0], g[:0], None, 0.0, False).rank.shape == (0,)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("horizons", HORIZONS, ids=str)
@pytest.mark.parametrize("r", [1, 3, 4, 11])
def test_dense_rollouts_equal_the_reference(r: int, horizons: list[int], affine: bool) -> None:
    random = np.random.default_rng(r)
    operator = random.standard_normal((WIDTH + 1, r, r))
    operator /= np.abs(np.linalg.eigvals(operator)).max(axis=1)[:, None, None]
    start = random.standard_normal((WIDTH + 1, r))
    states, growth = numba_cpu.rollout_dense(operator, start, affine, horizons)
    expected, expected_growth = reference.rollout_dense(operator, start, affine, horizons)
    for i, horizon in enumerate(horizons):
        tolerance = ROUNDING * (1 + horizon) * 100  # non-normal operators amplify rounding
        close(states[i], expected[i], tolerance)
        close(growth[i], expected_growth[i], tolerance)
