"""numba_cpu's fused stages against the stages that they fuse: fits, endpoints, neighbours, bits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from koopcore.backends.numba import backend as numba_backend
from koopcore.backends.numba import runtime, views
from koopcore.backends.numba.backend import NumbaCpu
from koopcore.backends.numba.simd import WIDTH
from koopcore.backends.protocol import Ahead, FeatureSolved, Projection, Snapshots
from koopcore.backends.reference import Reference
from koopcore.partition.partition import Partition

numba_cpu = NumbaCpu()


reference = Reference()


SOLVED = 1e-6  # condition numbers up to 1e4 here, squared in the moments: 1e8 times 1e-16, and a
#                hundredfold for the triangular solves and the rollout
HORIZONS = [[1], [100], [7, 1, 2, 3, 7], [1025, 20], list(range(1, 12)), [10**6]]


def window(n: int, part: Partition, seed: int = 0, dtype: Any = np.float32) -> Snapshots:
    """Decaying, oscillating and noisy parameters, float32 numbers, in a rotated ring."""
    random = np.random.default_rng(seed)
    t = np.arange(n)[:, None]
    x = random.standard_normal(part.size) + 1e-2 * random.standard_normal((n, part.size))
    for rate in (0.05, 0.2, 0.5):
        x = x + random.standard_normal(part.size) * np.exp(-rate * t)
    x = x + random.standard_normal(part.size) * np.cos(0.3 * t)
    order = np.roll(np.arange(n), 3)
    ring = np.empty((n, part.size), dtype)
    ring[order] = x.astype(np.float32)
    return Snapshots(ring, order)


def groups_of(groups: int, m: int) -> Partition:
    """Groups of m: contiguous, strided, or of two segments."""
    size = groups * 2 * m + 1
    spans = [np.arange(g * 2 * m, (g + 1) * 2 * m) for g in range(groups)]
    kinds = [
        lambda s: s[:m],
        lambda s: s[: 2 * m : 2],
        lambda s: np.concatenate([s[: m // 2], s[m + m // 2 :]]),
    ]
    return Partition.groups(size, [kinds[g % 3](span) for g, span in enumerate(spans)])


def apart(snapshots: Snapshots, part: Partition, affine: bool, holdout: int) -> FeatureSolved:
    """The definition: one reference stage after the other."""
    return reference.feature_fit(snapshots, part, affine, holdout)


def close(actual: Any, expected: Any, tolerance: float = SOLVED) -> None:
    """Equal to ``tolerance`` of the largest entry."""
    scale = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


SHAPES = [(1, 3), (1, 40), (2, 4), (3, 9), (4, 8), (5, 300), (11, 16), (12, 33), (30, 64)]


def invariants(projection: Projection, readout: Any) -> tuple[Any, Any, Any, Any]:
    """A⁺, U, V K Vᵀ and V z: the same for every V with V Vᵀ = A⁺."""
    v = projection.whitener
    across = v.transpose(0, 2, 1)
    rolled = v @ projection.operator @ across
    return v @ across, readout @ across, rolled, v @ projection.start[:, :, None]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_the_fused_fit_is_that_of_its_stages(m: int, n: int, affine: bool, dtype: Any) -> None:
    part = groups_of(WIDTH + 3, m)
    snapshots = window(n, part, m, dtype)
    holdout = max(1, (n - 1) // 4)
    solved = numba_cpu.feature_fit(snapshots, part, affine, holdout)
    expected = apart(snapshots, part, affine, holdout)
    np.testing.assert_array_equal(solved.rank, expected.rank)
    assert solved.projection is not None
    assert solved.readout is not None
    np.testing.assert_allclose(solved.residual, expected.residual, rtol=SOLVED, atol=SOLVED)
    np.testing.assert_allclose(solved.hindcast, expected.hindcast, rtol=SOLVED, atol=SOLVED)
    # V is one of many: what does not depend on the choice is A⁺ = V Vᵀ, and U, K and z through it.
    mine, theirs = invariants(*solved[4:]), invariants(*expected[4:])
    for got, wanted in zip(mine, theirs, strict=True):
        close(got, wanted)


@pytest.mark.parametrize("horizons", HORIZONS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("m", "n"), [(1, 8), (3, 9), (11, 16)])
def test_endpoints_ahead_are_those_of_the_fit(
    m: int, n: int, affine: bool, dtype: Any, horizons: list[int]
) -> None:
    part = groups_of(2 * WIDTH + 1, m)
    snapshots = window(n, part, m, dtype)
    expected = np.full((len(horizons), part.size), np.nan, dtype)
    out = np.full((part.size, len(horizons)), np.nan, dtype).T  # strided, and other than snapshots
    solved = numba_cpu.feature_fit(snapshots, part, affine, 2, Ahead(horizons, out))
    assert solved.projection is None
    reference.feature_fit(snapshots, part, affine, 2, Ahead(horizons, expected))
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
    covered = np.isfinite(expected[0])
    for i in range(len(horizons)):
        # a hundred steps of operators with roots near 1 carry SOLVED a hundredfold
        close(out[i, covered], expected[i, covered], 1e-4)


def mixed(n: int, m: int, groups: int) -> tuple[Snapshots, Partition]:
    """Every other group is deficient: still, with still or repeated parameters, or moving once."""
    part = groups_of(groups, m)
    snapshots = window(n, part, 5)
    x = snapshots.array[snapshots.order]
    for group in range(0, groups, 2):
        columns = part.indices(group)
        kind = group // 2 % 4
        if kind == 0:
            x[:, columns] = x[0, columns]
        elif kind == 1:
            x[:, columns[1]] = x[0, columns[1]]
        elif kind == 2:
            x[:, columns[1:]] = x[:, columns[:1]]
        else:
            x[1:, columns] = x[1, columns]
    snapshots.array[snapshots.order] = x
    return snapshots, part


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("m", "n"), [(3, 9), (11, 16)])
def test_deficient_groups_equal_the_reference_and_disturb_no_neighbour(
    m: int, n: int, affine: bool
) -> None:
    snapshots, part = mixed(n, m, 2 * WIDTH + 3)
    out = np.full((2, part.size), np.nan, np.float32)
    ahead = numba_cpu.feature_fit(snapshots, part, affine, 2, Ahead([1, 30], out))
    solved = numba_cpu.feature_fit(snapshots, part, affine, 2)
    expected = apart(snapshots, part, affine, 2)
    np.testing.assert_array_equal(solved.rank, expected.rank)
    assert len(set(expected.rank)) > 2  # the table holds what it promises
    wanted = np.full((2, part.size), np.nan, np.float32)
    reference.feature_fit(snapshots, part, affine, 2, Ahead([1, 30], wanted))
    close(out[:, part.indices(0)], wanted[:, part.indices(0)])
    covered = np.isfinite(wanted[0])
    close(out[:, covered], wanted[:, covered], 1e-4)
    for group in range(part.n_groups):  # alone in its vectors, and beside all the others
        own = part.subset(np.array([group]))
        single = np.full((2, part.size), np.nan, np.float32)
        alone = numba_cpu.feature_fit(snapshots, own, affine, 2, Ahead([1, 30], single))
        columns = part.indices(group)
        np.testing.assert_array_equal(single[:, columns], out[:, columns])
        for name in ("rank", "condition", "residual", "hindcast"):
            assert getattr(alone, name)[0] == getattr(ahead, name)[group]
            assert getattr(alone, name)[0] == getattr(solved, name)[group]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_group_that_is_not_finite_says_so_and_no_other(bad: float, affine: bool) -> None:
    part = groups_of(2 * WIDTH, 4)
    for k in (0, 5, 11):
        snapshots = window(12, part)
        snapshots.array[snapshots.order[k], part.indices(3)[1]] = bad
        solved = numba_cpu.feature_fit(snapshots, part, affine, 2)
        np.testing.assert_array_equal(np.isfinite(solved.residual), np.arange(part.n_groups) != 3)


@pytest.mark.parametrize("affine", [False, True])
def test_fused_results_do_not_depend_on_the_number_of_threads(
    affine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "SERIAL", 0)
    snapshots, part = mixed(9, 3, 90)
    results: list[list[Any]] = []
    for threads in ("1", "3"):
        monkeypatch.setenv("KOOPCORE_NUM_THREADS", threads)
        out = np.full((1, part.size), np.nan, np.float32)
        solved: FeatureSolved = numba_cpu.feature_fit(snapshots, part, affine, 2, Ahead([9], out))
        results.append([*solved[:4], out])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("pieces", [None, 64])
@pytest.mark.parametrize("horizons", [[1], [30, 2, 7, 9, 100]], ids=str)
def test_companion_endpoints_ahead_are_the_bits_of_the_stages(
    horizons: list[int], pieces: int | None, affine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "SERIAL", 0)
    monkeypatch.setattr(numba_backend, "CACHED", 3000)  # several blocks
    if pieces:  # the large group is shared by threads
        monkeypatch.setattr(views, "PIECE", pieces)
    ends = np.cumsum([21, 9, 300, 33, 64, 65] * 9)
    part = Partition.groups(
        int(ends[-1]) + 3, [slice(a, b) for a, b in itertools.pairwise([0, *ends.tolist()])]
    )
    snapshots = window(8, part)
    out, expected = (np.full((len(horizons), part.size), np.nan, np.float32) for _ in range(2))
    solved = numba_cpu.gram_solve(snapshots, part, affine, 2, Ahead(horizons, out))
    apart = numba_cpu.solve(numba_cpu.gram(snapshots, part), 8, affine, 2)
    weights, _ = numba_cpu.rollout(apart.coefficients, affine, horizons)
    numba_cpu.combine(snapshots, part, weights, expected)
    np.testing.assert_array_equal(out, expected)
    for one, other in zip(solved, apart, strict=True):
        np.testing.assert_array_equal(one, other)
