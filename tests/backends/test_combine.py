"""combine, endpoints, gather and scatter of every backend: what is written, and nothing else."""

from functools import cache

import numpy as np
import pytest
from backend_cases import (
    DEVICE_VIEWS,
    DTYPES,
    ON_CPU,
    RAGGED,
    VIEWED,
    VIEWS,
    U,
    close,
    covered,
    in_order,
    pieced,
    ragged,
    same_bits,
    side_by_side,
    walks,
)
from trajectories import basis_of, generic

from koopcore.backends.protocol import Ahead
from koopcore.partition.partition import Partition

BOTH = pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
F32, F64 = DTYPES


@cache
def case(n, dtype, n_horizons):
    """Snapshots, groups, weights; the ends by longdouble sums and Σ|w||B|, (n_horizons, size)."""
    rng = np.random.default_rng(n)
    long = [] if n > 32 else [1100, 9000 if dtype is F32 else 12001]
    part = ragged(rng, [*RAGGED, 3, 8, 9, 33, 64, *long])
    snapshots = walks(rng, n, part.size, dtype)
    weights = rng.normal(size=(n_horizons, part.n_groups, n))
    x = snapshots.array[snapshots.order]
    ends, size = np.full((2, n_horizons, part.size), np.nan)
    for group in range(part.n_groups):
        mine = part.indices(group)
        basis = basis_of(x[:, mine])
        ends[:, mine] = (basis @ weights[:, group].T).T
        size[:, mine] = np.abs(x[-1, mine]) + (np.abs(basis) @ np.abs(weights[:, group] - 1).T).T
    return snapshots, part, weights, ends, size


@pytest.mark.parametrize(
    ("n", "n_horizons", "dtype", "out_dtype"),
    [
        (2, 1, F32, F32),
        (2, 3, F64, F64),
        (2, 9, F64, F32),
        (3, 1, F64, F64),
        (3, 4, F32, F64),
        (3, 3, F32, F32),
        (9, 1, F32, F64),
        (9, 2, F64, F64),
        (9, 3, F32, F32),
        (9, 7, F64, F32),
        (9, 8, F32, F32),
        (9, 8, F64, F64),
        (9, 13, F32, F64),
        (9, 21, F64, F64),
        (9, 21, F32, F32),
        (16, 1, F64, F32),
        (16, 3, F32, F32),
        (16, 4, F64, F64),
        (16, 9, F32, F64),
        (33, 1, F32, F32),
        (33, 3, F64, F64),
        (64, 1, F64, F64),
        (64, 4, F32, F32),
        (64, 9, F64, F32),
    ],
)
def test_combine_adds_weighted_differences_to_the_last_snapshot(
    backend, n, n_horizons, dtype, out_dtype
):
    snapshots, part, weights, ends, size = case(n, dtype, n_horizons)
    out = np.full((n_horizons, part.size), np.nan, dtype=out_dtype)
    backend.combine(snapshots, part, weights, out)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(ends))  # nothing else is written
    # n terms in float64, and one rounding of the result.
    bound = (n + 4) * 2 * U * size + np.finfo(out_dtype).eps * np.abs(ends)
    inside = covered(part)
    assert (np.abs(out - ends) <= bound)[:, inside].all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_one_give_the_last_snapshot_bit_by_bit(backend, dtype):
    x = generic(7, 33).astype(dtype)
    out = np.full((2, 33), np.nan, dtype=dtype)
    backend.combine(in_order(x), Partition.groups(33, [range(33)]), np.ones((2, 1, 7)), out)
    if backend.name == "cupy_cuda":  # adds up the differences: exact in float32 only
        np.testing.assert_allclose(out, [x[-1], x[-1]], rtol=1e-14 * (dtype is F64))
    else:
        np.testing.assert_array_equal(out, [x[-1], x[-1]])


def test_what_float32_cannot_hold_is_its_largest_number(backend):
    x = np.array([[1.0, -1.0, 0.0, 0.0, 1.0], [2.0, -2.0, 0.0, 3e38, 2.0]], dtype=np.float32)
    part = Partition.groups(5, [range(3), [3], [4]])
    weights = np.ones((3, 3, 2))
    weights[0, :2, 1], weights[1, 1, 1], weights[2, :, 1] = [1e39, 9.0], -9.0, [1e300, 1.0, 3.0]
    out = np.full((3, 5), np.nan, dtype=np.float32)
    backend.combine(in_order(x), part, weights, out)
    most, held = np.finfo(np.float32).max, np.float32(3e38)
    expected = [[most, -most, 0.0, most, 2.0], [2.0, -2.0, 0.0, -most, 2.0]]
    np.testing.assert_array_equal(out, [*expected, [most, -most, 0.0, held, 4.0]])


@pytest.mark.parametrize("backend", ON_CPU, indirect=True)
def test_weights_that_are_no_numbers_stay_so_and_reach_no_neighbour(backend):
    part = side_by_side([19] * 3)
    snapshots = walks(np.random.default_rng(0), 4, part.size, np.float32)
    weights = np.ones((1, 3, 4))
    weights[0, 0, 1], weights[0, 1] = 1e300, np.nan
    out = np.empty((1, part.size), np.float32)
    backend.combine(snapshots, part, weights, out)
    assert np.abs(out[0, :19]).min() == np.finfo(np.float32).max
    assert np.isnan(out[0, 19:38]).all()
    np.testing.assert_array_equal(out[0, 38:], snapshots.array[snapshots.order[-1], 38:])


def same(backend, view, out, expected, inside):
    dtype = out.dtype.type
    if backend.name == "numba_cpu" and not (dtype is F32 and view in DEVICE_VIEWS):
        # It fuses products and additions only where columns lie side by side: n terms in float64,
        # and one rounding.
        close(out[:, inside], expected[:, inside], 4 * np.finfo(dtype).eps + 8 * 9 * U)
    else:
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("backend", "view"), VIEWED, indirect=["backend"])
def test_combine_reads_and_writes_any_strides(backend, view, dtype):
    rng = np.random.default_rng(0)
    part = pieced([20, 9, 31, 70])
    plain = walks(rng, 9, part.size, dtype)
    viewed = VIEWS[view](plain.array)
    weights, inside = rng.normal(size=(5, 4, 9)), covered(part)
    expected = np.full((5, part.size), np.nan, dtype=dtype)
    backend.combine(plain, part, weights, expected)
    out = VIEWS[view](np.full((5, part.size), np.nan, dtype=dtype))
    around = None if out.base is None else np.array(out.base)
    if backend.name == "numba_cpu" and view in {"unaligned", "in records"}:
        with pytest.raises(ValueError, match="out is not aligned to its items"):
            backend.combine(plain, part, weights, out)
        around, out = None, np.full_like(expected, np.nan)
    backend.combine(plain, part, weights, out)
    same(backend, view, out, expected, inside)
    if around is not None and out.base.dtype == dtype:  # what lies between is not touched
        again, out[...] = out.copy(), np.nan
        np.testing.assert_array_equal(out.base, around)
        out[...] = again
    backend.combine(plain._replace(array=viewed), part, weights, out)
    same(backend, view, out, expected, inside)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
    np.testing.assert_array_equal(viewed, plain.array)


# -- rollout and combine in one -------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "horizons", [[3], [9, 2], [1, 2, 3], list(range(40, 0, -1)), [7] * 9], ids=len
)
def test_the_fused_endpoint_is_rollout_and_combine(backend, horizons, affine):
    """Bit by bit: small groups W at a time, and a group that is cut into parts."""
    rng = np.random.default_rng(len(horizons))
    large = 70_000 if backend.device == "cpu" else 9_000
    part = ragged(rng, [1, large, 2, 65, 65, 64, 8, 9, 300, 17, 1])
    snapshots = walks(rng, 6, part.size, np.float32)
    coefficients = rng.normal(size=(part.n_groups, 5 - affine)) / 5
    got, expected = np.full((2, len(horizons), part.size), np.nan, np.float32)
    backend.companion_endpoint(snapshots, part, coefficients, affine, horizons, got)
    weights, _ = backend.rollout(coefficients, affine, horizons)
    backend.combine(snapshots, part, weights, expected)
    np.testing.assert_array_equal(got, expected)


@BOTH
@pytest.mark.parametrize("horizons", [[1], [30, 2, 7, 9, 100]], ids=str)
def test_endpoints_ahead_are_the_bits_of_the_stages(backend, horizons, affine):
    part = side_by_side([21, 9, 300, 33, 64, 65] * 9)
    snapshots = walks(np.random.default_rng(0), 8, part.size, np.float32)
    out, expected = np.full((2, len(horizons), part.size), np.nan, np.float32)
    fit = backend.gram_solve(snapshots, part, affine, 2, Ahead(horizons, out))
    apart = backend.solve(backend.gram(snapshots, part), 8, affine, 2)
    weights, _ = backend.rollout(apart.coefficients, affine, horizons)
    backend.combine(snapshots, part, weights, expected)
    if backend.name == "native_cuda":  # in one pass: sums in another order, rounded to float32
        np.testing.assert_allclose(out, expected, rtol=2e-6, atol=2e-6)
    else:
        np.testing.assert_array_equal(out, expected)
        same_bits(fit, apart)


# -- gather and scatter ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_and_scatter_are_indexing(backend, dtype):
    rng = np.random.default_rng(1)
    part = ragged(rng, [6] * 11)
    snapshots = walks(rng, 9, part.size, dtype)
    values = backend.gather(snapshots, part, [0, -1, 4])
    assert values.dtype == np.float64
    index = part.index_matrix(part.numbers)
    expected = snapshots.array[snapshots.order][[0, -1, 4]][:, index]
    assert np.array_equal(values, expected)
    out = np.full((3, part.size), np.nan, dtype)
    backend.scatter(part, values, out)
    assert np.array_equal(out[:, index], expected)
    assert np.isnan(out).sum() == 3 * (part.size - index.size)
    limit = float(np.finfo(dtype).max)
    huge = np.clip(values, -1.0, 1.0) * 1e308
    backend.scatter(part, huge, out)
    assert np.array_equal(out[:, index], np.clip(huge, -limit, limit).astype(dtype))
    assert np.isnan(out).sum() == 3 * (part.size - index.size)
