"""What only numba_cpu has: threads, pieces of large groups, blocks of fused stages, a cache."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from backend_cases import REFERENCE, in_order, same_bits, side_by_side, walks

pytest.importorskip("numba")

import koopcore
from koopcore.backends.numba import backend as numba_backend
from koopcore.backends.numba import runtime, views
from koopcore.backends.numba.backend import NumbaCpu
from koopcore.backends.protocol import Ahead
from koopcore.backends.threads import thread_count
from koopcore.partition.partition import Partition

numba_cpu = NumbaCpu()


def window(n, size, dtype=np.float32):
    return walks(np.random.default_rng(n), n, size, dtype)


@pytest.fixture
def eager(monkeypatch):
    """Threads even for little work, pieces of 64 parameters, and several blocks."""
    monkeypatch.setattr(runtime, "SERIAL", 0)
    monkeypatch.setattr(views, "PIECE", 64)
    monkeypatch.setattr(numba_backend, "CACHED", 3000)


def everything(snapshots, part, small):
    """Results of every stage: ``part`` on the snapshot side, ``small`` on the feature side."""
    n = len(snapshots.order)
    gram = numba_cpu.gram(snapshots, part)
    solved = numba_cpu.solve(gram, n, True, 1)
    fused = numba_cpu.gram_solve(snapshots, part, True, 1)
    weights, growth = numba_cpu.rollout(solved.coefficients * 0.5, True, [1, 30, 2000])
    out = np.full((3, part.size), np.nan, np.float32)
    numba_cpu.combine(snapshots, part, weights, out)
    moments = numba_cpu.feature_gram(snapshots, small, False, [n])
    start = numba_cpu.gather(snapshots, small, [-1])[0]
    projection = numba_cpu.project(moments[0, :, 0], moments[0, :, 1], start, None, 0.0, False)
    states = numba_cpu.rollout_dense(projection.operator * 0.5, start, False, [10])
    results = [gram, *solved, *fused, weights, growth, out, moments, *projection, *states]
    for affine in (False, True):
        ends = np.full((1, part.size), np.nan, np.float32)
        fitted = numba_cpu.feature_fit(snapshots, small, affine, 1, Ahead([9], ends))
        results += [*fitted[:4], ends]
    return results


@pytest.mark.usefixtures("eager")
def test_results_are_the_same_bits_whatever_the_number_of_threads(monkeypatch):
    part = side_by_side([5, 700, 33, 64, 65, 1000, 7, 129, 40, 63] * 4)
    small = side_by_side([3] * (part.size // 3))
    snapshots = window(7, part.size)
    snapshots.array[:, 30:60] = snapshots.array[snapshots.order[0], 30:60]  # deficient ones
    results = []
    for threads in ("1", "2", "3", "8"):
        monkeypatch.setenv("KOOPCORE_NUM_THREADS", threads)
        results.append(everything(snapshots, part, small))
    for other in results[1:]:
        same_bits(other, results[0])


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", ["one", "mixed", "strided"])
def test_large_groups_are_summed_from_pieces(name):
    groups = {
        "one": [slice(0, 1000)],
        "mixed": [slice(0, 10), slice(10, 500), slice(500, 564), slice(564, 629), slice(700, 999)],
        "strided": [np.arange(0, 600, 2), np.arange(1, 600, 2), [700, 650, 900]],
    }
    part = Partition.groups(1000, groups[name])
    cut = views.pieces(part)
    assert views.piece_sizes(cut).max() <= 64
    assert len(cut.owner) > part.n_groups
    random = np.random.default_rng(6)
    snapshots = in_order(random.standard_normal((6, 1000)) + np.exp(-0.1 * np.arange(6))[:, None])
    actual, expected = numba_cpu.gram(snapshots, part), REFERENCE.gram(snapshots, part)
    np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-12)  # sums of 1000 products
    weights = random.standard_normal((2, part.n_groups, 6))
    out, wanted = (np.full((2, 1000), np.nan) for _ in range(2))
    numba_cpu.combine(snapshots, part, weights, out)
    REFERENCE.combine(snapshots, part, weights, wanted)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-13)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("piece", [64, 1 << 20])
@pytest.mark.parametrize("horizons", [[1], [30, 2, 7, 9, 100]], ids=str)
def test_companion_endpoints_ahead_are_the_bits_of_the_stages(horizons, piece, affine, monkeypatch):
    monkeypatch.setattr(views, "PIECE", piece)  # large groups are shared by threads, or are not
    part = side_by_side([21, 9, 300, 33, 64, 65] * 9)
    snapshots = window(8, part.size)
    out, expected = np.full((2, len(horizons), part.size), np.nan, np.float32)
    solved = numba_cpu.gram_solve(snapshots, part, affine, 2, Ahead(horizons, out))
    apart = numba_cpu.solve(numba_cpu.gram(snapshots, part), 8, affine, 2)
    weights, _ = numba_cpu.rollout(apart.coefficients, affine, horizons)
    numba_cpu.combine(snapshots, part, weights, expected)
    np.testing.assert_array_equal(out, expected)
    same_bits(solved, apart)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("model", ["linear", "affine"])
def test_long_windows_are_those_of_the_reference(model, dtype):
    """Batches take turns over rows; who is ill-conditioned, deficient or out of range, has others.

    Other groups of the same window are those whose sums resolve all that float64 tells apart.
    """
    rng = np.random.default_rng(3)
    n, m, groups = 701, 5, 203  # more batches than take turns, and lanes of the last without groups
    x = rng.normal(size=(n, groups, m))
    for k in range(1, n):
        x[k] += 0.9 * x[k - 1]
    x[:, 7, 4] = x[:, 7, 1] + 1e-4 * x[:, 7, 4]  # cond(F) of 10^4: sums lose half of float64
    x[:, 50, 2] = -2.0 * x[:, 50, 0]
    x[:, 111, :] = 0.0
    x[:, 130, 3] = 2.5
    x += 20.0 * rng.normal(size=(groups, m)) * (np.arange(groups) % 3 == 0)[:, None]
    if dtype == np.float64:
        x[:, 160] *= 1e-160
    x = x.astype(dtype).reshape(n, -1)
    part = side_by_side([m] * groups)
    due = koopcore.fit(x, part, model, backend="reference")
    got = koopcore.fit(x, part, model, backend="numba_cpu")
    np.testing.assert_array_equal(got.rank, due.rank)
    atol = (1e-6 if dtype == np.float32 else 1e-9) * np.abs(x[-1]).max()
    expected = due.predict([1, 30])
    np.testing.assert_allclose(got.predict([1, 30]), expected, rtol=0, atol=atol)
    ahead = koopcore.fit(x, part, model, backend="numba_cpu", horizon=[1, 30])
    np.testing.assert_allclose(ahead.predict([1, 30]), expected, rtol=0, atol=atol)
    np.testing.assert_allclose(got.hindcast_error, due.hindcast_error, rtol=1e-6, atol=1e-9)
    some = x[:, 10 * m : 11 * m]
    alone = koopcore.fit(some, None, model, backend="numba_cpu", horizon=[1, 30])
    beside = koopcore.fit(x, part, model, backend="numba_cpu", horizon=[1, 30]).predict([1, 30])
    np.testing.assert_array_equal(alone.predict([1, 30]), beside[:, 10 * m : 11 * m])


def test_concurrent_calls_do_not_disturb_each_other():
    part = side_by_side([65] * 3000)
    snapshots = window(16, part.size)
    expected = numba_cpu.gram(snapshots, part)
    results = []

    def call():
        results.append(numba_cpu.gram(snapshots, part))

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 6
    for result in results:
        np.testing.assert_array_equal(result, expected)


@pytest.mark.usefixtures("eager")
def test_an_error_in_any_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setenv("KOOPCORE_NUM_THREADS", "3")

    def work(low, high):
        if high == 100:
            raise ArithmeticError("the last range")

    with pytest.raises(ArithmeticError, match="the last range"):
        runtime.spread(work, runtime.equal_ends(100, 1))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("threads", ["1", "2", "5"])
@pytest.mark.parametrize(("items", "align"), [(0, 1), (1, 1), (100, 1), (37, 8), (9, 8), (1000, 8)])
def test_ranges_cover_every_item_once_and_begin_at_multiples(items, align, threads, monkeypatch):
    monkeypatch.setenv("KOOPCORE_NUM_THREADS", threads)
    ranges = []
    uneven = np.cumsum(np.arange(items, dtype=np.int64) % 7)
    runtime.spread(lambda low, high: ranges.append((low, high)), uneven, align)
    covered = np.zeros(items, dtype=int)
    for low, high in ranges:
        assert low % align == 0
        covered[low:high] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("given", ["0", "-2", "two", "1.5"])
def test_a_number_of_threads_that_is_none_is_an_error(given, monkeypatch):
    monkeypatch.setenv("KOOPCORE_NUM_THREADS", given)
    with pytest.raises(ValueError, match="whole number >= 1"):
        thread_count()


def test_the_number_of_threads_is_read_at_every_call(monkeypatch):
    monkeypatch.setenv("KOOPCORE_NUM_THREADS", " 3 ")
    assert thread_count() == 3
    monkeypatch.delenv("KOOPCORE_NUM_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert thread_count() == 7
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert thread_count() >= 1


def test_threads_are_as_many_as_torch_uses(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.delenv("KOOPCORE_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert thread_count() == threads
            fit_one_group()
            _cpu = pytest.importorskip("koopcore._native._cpu")
            assert _cpu.num_threads() == threads
    finally:
        torch.set_num_threads(before)


def fit_one_group():
    rows = np.random.default_rng(0).standard_normal((5, 64)).cumsum(0)
    koopcore.fit(rows, koopcore.Partition.groups(64, [slice(0, 64)]))


SCRIPT = """
import sys
import koopcore
assert "numba" not in sys.modules, "import koopcore must not import numba"
import numpy as np
from koopcore.backends import backend_for
from koopcore.backends.numba.gram import gram_range
from koopcore.backends.protocol import Snapshots
part = koopcore.Partition.groups(1, [[0]])
backend_for("cpu", "numba_cpu").gram(Snapshots(np.ones((2, 1)), np.arange(2)), part)
stats = gram_range.stats
print(sum(stats.cache_hits.values()) if stats.cache_path else "uncached")
"""


def run(cache, variable="NUMBA_CACHE_DIR"):
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment[variable] = str(cache)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    assert [run(tmp_path), run(tmp_path)] == ["0", "1"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="XDG_CACHE_HOME is Linux's")
def test_machine_code_lies_in_the_users_cache_and_not_in_the_package(tmp_path):
    package = Path(koopcore.__file__).parent / "backends/numba"
    before = set(package.glob("**/*.nb?"))  # an older version may have left some
    run(tmp_path, "XDG_CACHE_HOME")
    assert list(tmp_path.glob("koopcore/**/*.nbc"))
    assert set(package.glob("**/*.nb?")) == before


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() == 0, reason="the superuser can write everywhere"
)
def test_an_unwritable_cache_only_costs_the_compilation(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert run(tmp_path) in {"0", "uncached"}
