"""native_cpu against the reference: companion stages, instruction sets, threads, odd inputs."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from koopcore.backends.native_cpu import NativeCpu
from koopcore.backends.protocol import Snapshots, packed_size, unpack
from koopcore.backends.reference import Reference
from koopcore.partition.partition import Partition

reference = Reference()


_cpu = pytest.importorskip(
    "koopcore._native._cpu", reason="the C++ module is not built", exc_type=ImportError
)
native = NativeCpu(_cpu)

ISAS = _cpu.supported_isas()
WINDOWS = [2, 3, 4, 5, 8, 9, 16, 17, 24, 33, 64, 130]
RAGGED = [1, 2, 3, 7, 8, 9, 31, 64, 65, 100, 257, 1100]


@pytest.fixture(params=ISAS)
def isa(request):
    _cpu.force_isa(request.param)
    yield request.param
    _cpu.force_isa("")


@pytest.fixture
def threads():
    yield _cpu.set_num_threads
    _cpu.set_num_threads(0)


def walks(rng, n, size, dtype, spare=2):
    """Random walks with an offset, in a ring with `spare` more slots, turned by some."""
    steps = rng.normal(size=(n + spare, size))
    array = (np.cumsum(steps, axis=0) + 3.0 * rng.normal(size=size)).astype(dtype)
    return Snapshots(array, (np.arange(n) + 1) % (n + spare))


def ragged(rng, sizes, size=None):
    """Groups of the given sizes: contiguous ones, strided ones and scattered ones in turn."""
    need = 3 * sum(sizes) + 10
    groups, at = [], 2
    for i, m in enumerate(sizes):
        if i % 3 == 0:
            groups.append(np.arange(at, at + m))
        elif i % 3 == 1:
            groups.append(np.arange(at, at + 3 * m, 3))
        else:
            groups.append(np.sort(rng.choice(np.arange(at, at + 3 * m), m, replace=False)))
        at += 3 * m
    return Partition.groups(need if size is None else size, groups)


def gram_error(got, expected, n):
    """Largest error of an entry over the norms of its two vectors: what rounding is relative to."""
    full = unpack(expected, n)
    norm = np.sqrt(np.diagonal(full, axis1=1, axis2=2))
    rows, columns = np.tril_indices(n)
    scale = norm[:, rows] * norm[:, columns]
    return np.max(np.abs(got - expected) / np.where(scale > 0.0, scale, 1.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", WINDOWS)
def test_gram_of_ragged_groups(isa, n, dtype):
    rng = np.random.default_rng(n)
    part = ragged(rng, RAGGED)
    snapshots = walks(rng, n, part.size, dtype)
    expected = reference.gram(snapshots, part)
    # Sums of m terms in another order: an error of m·u at most, and in practice far below.
    assert gram_error(native.gram(snapshots, part), expected, n) < 1100 * 2.0**-53


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("n", [n for n in WINDOWS if n > 2])
def test_solve_of_the_same_gram(isa, n, affine):
    rng = np.random.default_rng(n)
    part = ragged(rng, RAGGED)
    gram = reference.gram(walks(rng, n, part.size, np.float32), part)
    columns = n - 1 - affine
    holdout = max(1, n // 5)
    got, expected = (b.solve(gram, n, affine, holdout) for b in (native, reference))
    clear = part.sizes > n + 5  # near m = n the smallest pivot is a matter of rounding
    full = expected.rank == columns
    assert np.array_equal((got.rank == columns)[clear], full[clear])
    both = full & (got.rank == columns)
    assert np.isinf(got.condition[~both & (got.rank < columns)]).all()
    assert (got.coefficients[got.rank < columns] == 0.0).all()
    assert np.isnan(got.hindcast[got.rank < columns]).all()
    for i in np.flatnonzero(both & clear):
        # Backward stable on a Gram matrix: errors of cond² n u.
        bound = 4.0 * n * 2.0**-53 * expected.condition[i] ** 2
        size = np.abs(expected.coefficients[i]).max()
        assert np.abs(got.coefficients[i] - expected.coefficients[i]).max() <= bound * size
        assert got.condition[i] == pytest.approx(expected.condition[i], rel=bound)
        square = expected.residual[i] ** 2
        assert got.residual[i] ** 2 == pytest.approx(square, abs=bound * gram[i, -1])
        assert got.hindcast[i] == pytest.approx(expected.hindcast[i], rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("n", [4, 16, 24, 33])
def test_gram_solve_is_solve_of_gram(isa, n, affine):
    rng = np.random.default_rng(n)
    part = ragged(rng, [max(m, n + 10) for m in RAGGED])
    snapshots = walks(rng, n, part.size, np.float32)
    fused = native.gram_solve(snapshots, part, affine, 2)
    staged = native.solve(native.gram(snapshots, part), n, affine, 2)
    for got, expected in zip(fused, staged, strict=True):
        assert np.array_equal(got, expected, equal_nan=True)  # the same arithmetic: bit for bit


def test_a_group_that_breaks_down_leaves_its_neighbours_alone(isa):
    rng = np.random.default_rng(0)
    part = ragged(rng, [40] * 19)
    snapshots = walks(rng, 12, part.size, np.float64)
    alone = native.gram_solve(snapshots, part, True, 3)
    snapshots.array[:, part.indices(4)] = 1.5  # constant: its Gram matrix is zero
    snapshots.array[:, part.indices(9)] = np.nan
    snapshots.array[3, part.indices(13)[0]] = np.inf
    mixed = native.gram_solve(snapshots, part, True, 3)
    others = np.setdiff1d(np.arange(19), [4, 9, 13])
    for got, expected in zip(mixed, alone, strict=True):
        assert np.array_equal(got[others], expected[others], equal_nan=True)
    assert (mixed.rank[[4, 9, 13]] < 10).all()
    assert np.isfinite(mixed.coefficients).all()


HORIZONS = {
    "one": [100],
    "first": [1],
    "trajectory": list(range(1, 60)),
    "unsorted, repeated": [50, 3, 50, 1, 700],
    "through the buffer": [250, 251, 256, 257, 300, 520, 1024],
    "squared": [1025, 5000, 5003, 10**6],
}


@pytest.mark.parametrize("horizons", HORIZONS.values(), ids=HORIZONS.keys())
@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("columns", [1, 2, 3, 7, 14, 31])
def test_rollout(isa, columns, affine, horizons):
    rng = np.random.default_rng(columns)
    groups = 13
    # Recurrences with roots inside the unit circle: neither growth nor underflow hides errors.
    a = np.empty((groups, columns))
    for g in range(groups):
        radius = rng.uniform(0.3, 0.999, size=columns // 2 + 1)
        roots = radius * np.exp(1j * rng.uniform(0.1, 3.0, size=radius.size))
        roots = np.concatenate([roots, roots.conj()])[: columns - columns % 2]
        roots = np.array([r for pair in zip(roots, roots.conj(), strict=True) for r in pair])
        roots = np.append(roots[: columns - columns % 2], [0.9] * (columns % 2))
        a[g] = -np.poly(roots).real[:0:-1]
    tame = np.abs(a).sum(axis=1) < 50  # many random roots make unruly coefficients
    a[~tame] = rng.uniform(-1, 1, size=(int((~tame).sum()), columns)) / (columns + 1)
    weights, growth = native.rollout(a, affine, horizons)
    expected, growths = reference.rollout(a, affine, horizons)
    # The recurrence amplifies rounding by at most the sum of its impulse response, about 1e3 here.
    scale = np.abs(expected).max(axis=2, keepdims=True) + np.abs(a).max()
    assert np.max(np.abs(weights - expected) / scale) < 1e-9
    alive = growths > 1e-9
    assert growth[alive] == pytest.approx(growths[alive], rel=1e-6)


@pytest.mark.parametrize("horizons", [[500], [5000], [2, 400]])
def test_a_divergent_rollout_keeps_the_last_snapshot(isa, horizons):
    a = np.array([[0.5, 0.4], [3.0, 0.1], [0.0, 1e200]])
    weights, growth = native.rollout(a, False, horizons)
    expected, growths = reference.rollout(a, False, horizons)
    assert (weights[-1, 1:] == 1.0).all()
    assert np.isinf(growth[-1, 1:]).all()
    assert weights == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert np.array_equal(np.isinf(growth), np.isinf(growths))


@pytest.mark.parametrize("out_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_horizons", [1, 2, 3, 7, 8, 21])
def test_combine_writes_the_groups_and_nothing_else(isa, n_horizons, dtype, out_dtype):
    rng = np.random.default_rng(n_horizons)
    n = 9
    part = ragged(rng, RAGGED)
    snapshots = walks(rng, n, part.size, dtype)
    weights = rng.normal(size=(n_horizons, part.n_groups, n))
    got = np.full((n_horizons, part.size), np.nan, out_dtype)
    expected = got.copy()
    native.combine(snapshots, part, weights, got)
    reference.combine(snapshots, part, weights, expected)
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    # n terms of size |w|·|d|, summed in another order, and one rounding to the output.
    bound = 200 * np.finfo(out_dtype).eps
    assert np.nanmax(np.abs(got - expected)) < bound


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("horizons", [[3], [9, 2], [1, 2, 3], list(range(40, 0, -1)), [7] * 9])
def test_the_fused_endpoint_is_rollout_and_combine(isa, horizons, affine):
    """Bit by bit: small groups W at a time, and a group that is cut into parts."""
    rng = np.random.default_rng(len(horizons))
    part = ragged(rng, [1, 70_000, 2, 65, 65, 64, 8, 9, 300, 17, 1])
    snapshots = walks(rng, 6, part.size, np.float32)
    coefficients = rng.normal(size=(part.n_groups, 5 - affine)) / 5
    got, expected = np.full((2, len(horizons), part.size), np.nan, np.float32)
    native.companion_endpoint(snapshots, part, coefficients, affine, horizons, got)
    weights, _ = native.rollout(coefficients, affine, horizons)
    native.combine(snapshots, part, weights, expected)
    np.testing.assert_array_equal(got, expected)


def test_combine_saturates(isa):
    array = np.array([[0.0, 1.0], [3e38, 2.0]], dtype=np.float32)
    part = Partition.groups(2, [[0], [1]])
    weights = np.array([[[1.0, 9.0], [1.0, 1.0]], [[1.0, -9.0], [1.0, 3.0]]])
    out = np.zeros((2, 2), dtype=np.float32)
    native.combine(Snapshots(array, np.arange(2)), part, weights, out)
    limit = np.finfo(np.float32).max
    assert out.tolist() == [[limit, 2.0], [-limit, 4.0]]


VIEWS = {
    "every third column": lambda x: np.repeat(x, 3, axis=1)[:, ::3],
    "columns reversed": lambda x: x[:, ::-1].copy()[:, ::-1],
    "rows reversed": lambda x: x[::-1].copy()[::-1],
    "Fortran order": np.asfortranarray,
    "unaligned": lambda x: _unaligned(x),
    "read-only": lambda x: _read_only(x),
}


def _unaligned(x):
    raw = np.empty(x.nbytes + 1, dtype=np.uint8)
    view = np.frombuffer(raw[1:].data, dtype=x.dtype).reshape(x.shape)
    view[...] = x
    return view


def _read_only(x):
    copy = x.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_strides_do_not_change_a_bit(isa, view, dtype):
    rng = np.random.default_rng(1)
    part = ragged(rng, [40, 65, 33])
    plain = walks(rng, 10, part.size, dtype)
    viewed = Snapshots(view(plain.array), plain.order)
    assert np.array_equal(native.gram(viewed, part), native.gram(plain, part))
    weights = rng.normal(size=(2, 3, 10))
    outs = [np.zeros((2, part.size), dtype) for _ in range(2)]
    native.combine(plain, part, weights, outs[0])
    wide = np.zeros((4, 2 * part.size), dtype)
    native.combine(viewed, part, weights, wide[::2, ::2])
    assert np.array_equal(outs[0], wide[::2, ::2])
    assert (wide[1::2] == 0).all()
    assert (wide[:, 1::2] == 0).all()


@pytest.mark.parametrize(
    "sizes",
    [[70_001], [300, 50_000, 7, 20_000, 65], [65] * 3000, [3] * 40],
    ids=["one large", "mixed", "many", "few small"],
)
def test_results_do_not_depend_on_the_number_of_threads(threads, sizes):
    rng = np.random.default_rng(2)
    part = ragged(rng, sizes)
    snapshots = walks(rng, 6, part.size, np.float32)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        fit = native.gram_solve(snapshots, part, True, 1)
        weights, growth = native.rollout(fit.coefficients, True, [5, 40])
        out = np.zeros((2, part.size), np.float32)
        native.combine(snapshots, part, weights, out)
        results.append([native.gram(snapshots, part), *fit, weights, growth, out])
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            assert np.array_equal(got, expected, equal_nan=True)
    error = gram_error(results[0][0], reference.gram(snapshots, part), 6)
    assert error < 70_001 * 2.0**-53


def test_a_large_group_in_many_pieces(isa):
    rng = np.random.default_rng(3)
    scattered = np.sort(rng.choice(60_000, 30_000, replace=False))
    part = Partition.groups(60_000, [scattered])
    snapshots = walks(rng, 5, part.size, np.float32)
    expected = reference.gram(snapshots, part)
    assert gram_error(native.gram(snapshots, part), expected, 5) < 30_000 * 2.0**-53


def test_calls_from_several_threads_at_once():
    rng = np.random.default_rng(4)
    part = ragged(rng, [65] * 400)
    snapshots = walks(rng, 12, part.size, np.float32)
    expected = native.gram_solve(snapshots, part, True, 2)
    found = []
    callers = [
        threading.Thread(target=lambda: found.append(native.gram_solve(snapshots, part, True, 2)))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 4
    for result in found:
        for got, wanted in zip(result, expected, strict=True):
            assert np.array_equal(got, wanted, equal_nan=True)


BAD = {
    "row that is not there": (lambda p, s: native.gram(s._replace(order=np.array([0, 9])), p), "9"),
    "negative row": (lambda p, s: native.gram(s._replace(order=np.array([0, -1])), p), "-1"),
    "too few columns": (lambda p, s: native.gram(s._replace(array=s.array[:, :50]), p), "50"),
    "integers": (lambda p, s: native.gram(s._replace(array=s.array.astype(int)), p), "int64"),
    "swapped bytes": (lambda p, s: native.gram(s._replace(array=s.array.astype(">f4")), p), ">f4"),
    "one row": (lambda p, s: native.gram(s._replace(array=s.array[0]), p), "two-dimensional"),
    "gram of another n": (lambda p, s: native.solve(np.ones((3, 5)), 3, True, 0), "6"),
    "holdout": (lambda p, s: native.solve(np.ones((3, 6)), 3, True, -1), "holdout"),
    "horizon 0": (lambda p, s: native.rollout(np.ones((2, 2)), True, [3, 0]), "horizon"),
    "weights of another n": (
        lambda p, s: native.combine(s, p, np.ones((1, p.n_groups, 7)), np.zeros((1, p.size))),
        "weights",
    ),
    "out of another size": (
        lambda p, s: native.combine(s, p, np.ones((1, p.n_groups, 3)), np.zeros((1, 7))),
        "out must",
    ),
    "read-only out": (
        lambda p, s: native.combine(
            s, p, np.ones((1, p.n_groups, 3)), _read_only(np.zeros((1, p.size)))
        ),
        "read-only",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments_are_refused_before_any_work(call, message):
    rng = np.random.default_rng(5)
    part = ragged(rng, [20, 20])
    with pytest.raises(ValueError, match=message):
        call(part, walks(rng, 3, part.size, np.float32, spare=0))


@pytest.mark.parametrize("start", [-1, 2**62, 95])
def test_segments_outside_a_snapshot_are_refused(start):
    one = np.ones(1, dtype=np.int64)
    part = Partition(100, np.array([0, 1]), one * start, one * 3, one * 4)
    snapshots = Snapshots(np.zeros((2, 100), np.float32), np.arange(2))
    with pytest.raises(ValueError, match="outside"):
        native.gram(snapshots, part)


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="accept portable"):
        _cpu.force_isa("mmx")


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_chooses_instruction_set_and_threads(isa):
    code = (
        "from koopcore.backends import backend_for\n"
        "from koopcore._native import _cpu\n"
        "print(_cpu.isa(), _cpu.num_threads(), backend_for('cpu').name)"
    )
    environment = {**os.environ, "KOOPCORE_ISA": isa, "KOOPCORE_NUM_THREADS": "3"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [isa, "3", "native_cpu"]


@pytest.mark.parametrize("count", ["0", "-2", "two", "1e9"])
def test_a_bad_number_of_threads_is_refused(monkeypatch, count):
    monkeypatch.setenv("KOOPCORE_NUM_THREADS", count)
    with pytest.raises(ValueError, match="KOOPCORE_NUM_THREADS"):
        _cpu.num_threads()


def test_gram_of_no_groups_is_empty():
    part = Partition.groups(5, [[0]]).subset([])
    snapshots = Snapshots(np.zeros((3, 5)), np.arange(3))
    assert native.gram(snapshots, part).shape == (0, packed_size(3))
    assert native.gram_solve(snapshots, part, True, 1).coefficients.shape == (0, 1)
