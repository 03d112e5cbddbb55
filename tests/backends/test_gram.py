"""gram of every backend: longdouble sums of products, any strides, any order of rows.

The bounds: u = 2⁻⁵³; a sum of m products errs by at most about m·u·Σ|ab|.
"""

from functools import cache

import numpy as np
import pytest
from backend_cases import (
    DTYPES,
    ON_CPU,
    RAGGED,
    VIEWED,
    VIEWS,
    U,
    gram_error,
    in_order,
    packed_gram,
    ragged,
    rotated,
    side_by_side,
    walks,
)
from trajectories import basis_of, generic

from koopcore.backends.protocol import Snapshots, packed_size, unpack
from koopcore.partition.partition import Partition

WINDOWS = [2, 3, 4, 5, 8, 9, 16, 17, 24, 25, 32, 33, 64, 70, 130, 201]


@cache
def case(n, dtype):
    """Snapshots, groups of many sizes, their Gram matrices and the bounds of each entry."""
    rng = np.random.default_rng(n)
    if n > 32:
        sizes = [5, 40, 130, 1, 8, 9, 1100 if n < 100 else 65]
    else:  # the last ones are of several pieces each
        sizes = [*RAGGED, 3, 8, 9, 33, 64, 100, 1100, 2500, 9000 if dtype is np.float32 else 12001]
    part = ragged(rng, sizes)
    snapshots = walks(rng, n, part.size, dtype)
    x = snapshots.array[snapshots.order]
    lower = np.tril_indices(n)
    exact, bound = [], []
    for group in range(part.n_groups):
        basis = basis_of(x[:, part.indices(group)])
        exact.append((basis.T @ basis)[lower])
        # m products, and one rounding of each float64 difference: 2 u more a product.
        bound.append((len(basis) + 4) * U * (np.abs(basis).T @ np.abs(basis))[lower])
    return snapshots, part, np.array(exact), np.array(bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", WINDOWS)
def test_gram_is_the_sum_of_products_of_differences(backend, n, dtype):
    snapshots, part, exact, bound = case(n, dtype)
    got = backend.gram(snapshots, part)
    assert got.shape == (part.n_groups, packed_size(n))
    assert got.dtype == np.float64
    assert (np.abs(got - exact) <= bound).all()
    # In practice far below, for large groups too.
    assert gram_error(got, exact.astype(np.float64), n) < 1e-13


@pytest.mark.parametrize("backend", ON_CPU, indirect=True)
def test_gram_of_large_groups_does_not_lose_digits(backend):
    x = generic(5, 160_003, seed=1).astype(np.float32)
    scattered = np.sort(np.random.default_rng(3).choice(60_000, 30_000, replace=False))
    part = Partition.groups(160_003, [range(60_000, 160_003), scattered])
    got = backend.gram(in_order(x), part)
    expected = np.stack([packed_gram(x[:, part.indices(group)]) for group in range(2)])
    # 100,000 float32 numbers added in float64: far below float32's own 6e-8.
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-11)
    assert gram_error(got, expected, 5) < 30_000 * U


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("backend", "view"), VIEWED, indirect=["backend"])
def test_gram_reads_any_strides_and_writes_nothing(backend, view, dtype):
    rng = np.random.default_rng(1)
    part = ragged(rng, [40, 65, 33, 11, 4])
    plain = walks(rng, 10, part.size, dtype)
    viewed = VIEWS[view](plain.array)
    got, expected = (backend.gram(plain._replace(array=x), part) for x in (viewed, plain.array))
    assert gram_error(got, expected, 10) < 1e-13
    if backend.device == "cpu":
        np.testing.assert_array_equal(got, expected)  # the same sums, in the same order
    np.testing.assert_array_equal(viewed, plain.array)


@pytest.mark.parametrize(
    "order", [[4, 0, 8, 2, 7], [7, 8, 0, 1], [*range(9), *range(9), 0]], ids=str
)
def test_rows_in_any_order_and_repeated(backend, order):
    x = np.random.default_rng(3).normal(size=(9, 90)).astype(np.float32)
    part = Partition.groups(90, [range(64), range(66, 90)])
    got = backend.gram(Snapshots(x, np.array(order)), part)
    np.testing.assert_array_equal(got, backend.gram(in_order(x[order]), part))
    np.testing.assert_array_equal(got, backend.gram(rotated(x[order], 2), part))
    expected = np.stack([packed_gram(x[order][:, part.indices(group)]) for group in range(2)])
    assert gram_error(got, expected, len(order)) < 1e-13


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", ON_CPU, indirect=True)
def test_squares_that_overflow_are_infinite_without_a_warning(backend):
    x = generic(5, 40)
    x[:, :20] *= 1e200
    got = backend.gram(in_order(x), side_by_side([20, 20]))
    assert not np.isfinite(got[0]).all()
    assert np.isfinite(got[1]).all()


def test_unpack_mirrors_the_lower_triangle():
    packed = np.array([[1.0, 2, 3, 4, 5, 6]])
    assert unpack(packed, 3).tolist() == [[[1, 2, 4], [2, 3, 5], [4, 5, 6]]]
