"""Windows of many more snapshots than parameters, groups of one parameter, large groups alone."""

import subprocess
import sys

import numpy as np
import pytest

import koopcore as kc

native = pytest.importorskip(
    "koopcore._native._cpu", reason="the C++ module is not built", exc_type=ImportError
)
DTYPES = [np.float32, np.float64]


def pulled(rng, n, size):
    """Noise that is pulled back to a point: well conditioned, and nowhere at rest."""
    x = rng.normal(size=(n, size))
    for k in range(1, n):
        x[k] += 0.9 * x[k - 1]
    return x + rng.normal(size=size)


def equal_groups(count, m):
    return kc.Partition.nodes(kc.Layout.from_shapes([(count, m, False)]))


def agree(x, part, model, **tolerances):
    """Fits by native_cpu and by the reference, with operators and with endpoints ahead."""
    horizons = [1, 5, 30]
    got = kc.fit(x, part, model, backend="native_cpu")
    due = kc.fit(x, part, model, backend="reference")
    ahead = kc.fit(x, part, model, backend="native_cpu", horizon=horizons).predict(horizons)
    expected = due.predict(horizons)
    moved = np.abs(expected - x[-1]).max()
    loose = 1e-6 if x.dtype == np.float32 else 1e-9
    np.testing.assert_array_equal(got.rank, due.rank)
    np.testing.assert_allclose(ahead, expected, rtol=loose, atol=loose * moved)
    np.testing.assert_allclose(got.predict(horizons), expected, rtol=loose, atol=loose * moved)
    for name in ("hindcast_error", "residual"):
        a, b = getattr(got, name), getattr(due, name)
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * np.nanmax(np.abs(x)))
    return got, due


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("count", [1, 3, 8, 13], ids="{} groups".format)
def test_spans_of_rows_are_the_window(count, model, dtype):
    """Whatever the lanes stand for: groups, or parts of the rows with a rest that does not fit."""
    rng = np.random.default_rng(count)
    x = pulled(rng, 1501, count * 5 + count * 3).astype(dtype)
    groups = [np.arange(g, x.shape[1], count)[:5] for g in range(count)]
    groups += [np.arange(5 * count + 3 * g, 5 * count + 3 * g + 3) for g in range(count)]
    got, due = agree(x, kc.Partition.groups(x.shape[1], groups), model)
    np.testing.assert_allclose(got.operator(0), due.operator(0), atol=1e-9)
    assert np.all(got.condition < 100)


@pytest.mark.parametrize("model", ["linear", "affine"])
def test_rows_that_were_not_sampled_count(model):
    """A direction in which only a few steps move, and one that stands still."""
    rng = np.random.default_rng(0)
    x = pulled(rng, 4000, 12)
    x[:, 2] = np.where(np.arange(4000) == 2345, 50.0, 0.0) + 3.0
    x[:, 7] = x[0, 7]
    agree(x, equal_groups(2, 6), model)


def test_spans_do_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(3)
    x = pulled(rng, 3000, 5 * 7)
    results = []
    try:
        for threads in (1, 2, 5):
            native.set_num_threads(threads)
            ops = kc.fit(x, equal_groups(5, 7), backend="native_cpu")
            results.append((ops.predict(20), ops.residual, ops.hindcast_error))
    finally:
        native.set_num_threads(0)
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert (a == b).all()


@pytest.mark.parametrize("at", [0, 777, 1999])
def test_what_is_not_finite_is_named_wherever_it_is(at):
    x = pulled(np.random.default_rng(1), 2000, 8)
    x[at, 5] = np.nan
    with pytest.raises(ValueError, match=f"snapshot {at} .*parameter 5, in group 1"):
        kc.fit(x, equal_groups(2, 4), backend="native_cpu")


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_long_windows_in_any_unit(scale):
    x = pulled(np.random.default_rng(2), 1000, 8)
    part = equal_groups(2, 4)
    expected = kc.fit(x, part, backend="native_cpu").predict(3)
    got = kc.fit(scale * x, part, backend="native_cpu").predict(3)
    np.testing.assert_allclose(got / scale, expected, rtol=1e-9)


def test_a_memory_map_is_a_window_without_a_copy(tmp_path):
    x = pulled(np.random.default_rng(4), 2000, 20)
    np.save(tmp_path / "window.npy", x)
    mapped = np.load(tmp_path / "window.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    part = equal_groups(5, 4)
    ops = kc.fit(mapped, part, backend="native_cpu")
    assert np.shares_memory(ops._snapshots.array, mapped)
    got = ops.predict([2, 9])
    assert type(got) is np.ndarray
    assert (got == kc.fit(x, part, backend="native_cpu").predict([2, 9])).all()


STREAMED = """
import resource, sys
from pathlib import Path
import numpy as np
import koopcore as kc

backend, room = sys.argv[1], int(sys.argv[2])
nodes = kc.Partition.nodes(kc.Layout.from_shapes([(50, 8, False)]))
wide = kc.Partition.nodes(kc.Layout.from_shapes([(8, 150_000, False)]))

def fits(numbers):  # groups of fewer parameters than snapshots, and of more
    yield numbers.reshape(-1, nodes.size), nodes, "linear"
    yield numbers.reshape(-1, nodes.size), nodes, "affine"
    yield numbers.reshape(-1, wide.size), wide, "affine"

for path in sys.argv[3:]:  # compiled before the limit
    for rows, part, model in fits(np.fromfile(path, Path(path).name, count=4 * wide.size)):
        kc.fit(rows, part, model, backend=backend, horizon=9).predict(9)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
used = int(status["VmData"].split()[0]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + room, used + room))
for path in sys.argv[3:]:
    mapped = np.memmap(path, Path(path).name, mode="r")
    assert mapped.nbytes > 2 * room
    for rows, part, model in fits(mapped):
        kc.fit(rows, part, model, backend=backend, horizon=9).predict(9)
        kc.fit(rows, part, model, backend=backend).predict([1, 9])
    try:
        np.array(mapped)
    except MemoryError:
        continue
    raise SystemExit("the limit is none")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit private memory")
@pytest.mark.parametrize("backend", ["native_cpu", "numba_cpu"])
def test_a_window_that_memory_cannot_hold_is_read_as_a_stream(backend, tmp_path):
    """Files of 96 MB, float32 and float64, where a process may have 40 MB more than it has."""
    if backend == "numba_cpu":
        pytest.importorskip("numba")
    rng, paths = np.random.default_rng(4), []
    for dtype in map(np.dtype, DTYPES):
        paths.append(tmp_path / dtype.name)
        rng.standard_normal(96_000_000 // dtype.itemsize, dtype=dtype).tofile(paths[-1])
    command = [sys.executable, "-c", STREAMED, backend, str(40_000_000), *map(str, paths)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("n", [4, 16, 300])
def test_groups_of_one_parameter(n, model, dtype):
    """In closed form; some stand still, some only until the last step, one is zero throughout."""
    rng = np.random.default_rng(n)
    x = pulled(rng, n, 41)
    x[:, 5] = x[0, 5]
    x[:-1, 11] = x[0, 11]
    x[:, 23] = 0.0
    part = equal_groups(41, 1)
    agree(x.astype(dtype), part, model)
    some = kc.Partition.groups(41, [[40], [3], [12], [5]])  # not side by side
    got, due = agree(x.astype(dtype), some, model)
    for group in range(4):
        np.testing.assert_allclose(got.operator(group), due.operator(group), atol=1e-12)
    np.testing.assert_allclose(got.growth(9), due.growth(9), rtol=1e-9)
    agree(x.astype(dtype), kc.Partition.groups(41, [[7]]), model)


def test_a_parameter_that_runs_away_keeps_its_last_value():
    x = np.cumsum(np.power.outer(2.0, np.arange(12.0)), axis=0)[:, None] * [1.0, -1.0]
    ops = kc.fit(x, equal_groups(2, 1), backend="native_cpu", horizon=[2, 500])
    near, far = ops.predict([2, 500])
    assert (np.abs(near) > np.abs(x[-1])).all()
    assert (far == x[-1]).all()
    assert np.isinf(ops.growth(500)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("spread", [0.0, 4.0], ids=["one pass", "two passes"])
def test_large_groups_alone(spread, model, dtype):
    """Columns of very different sizes, mixed, need the second pass in float64."""
    rng = np.random.default_rng(5)
    x = pulled(rng, 300, 70) * 10.0 ** np.linspace(-spread / 2, spread / 2, 70)
    x = x @ np.linalg.qr(rng.normal(size=(70, 70)))[0]
    got, due = agree(x.astype(dtype), equal_groups(1, 70), model)
    # One pass, all that float32 is given, loses u·cond² = 1e-8 of columns 1e4 times the smallest.
    atol = 1e-3 if spread and dtype == np.float32 else 1e-6
    np.testing.assert_allclose(got.operator(0), due.operator(0), atol=atol)


def test_a_few_large_groups():
    """One after the other, like one alone."""
    x = pulled(np.random.default_rng(8), 230, 4 * 90)
    got, due = agree(x, equal_groups(4, 90), "linear")
    np.testing.assert_allclose(got.operator(3), due.operator(3), atol=1e-9)


def test_a_large_group_of_deficient_rank_is_fitted_as_any_other():
    x = pulled(np.random.default_rng(6), 300, 70)
    x[:, 9] = x[:, 3] + x[:, 4]
    got, _ = agree(x, equal_groups(1, 70), "linear")
    assert got.rank.tolist() == [69]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", ["linear", "affine"])
def test_large_groups_of_scattered_parameters(model, dtype):
    """Several windows' spans; no register of parameters that stand side by side, and a last one."""
    x = pulled(np.random.default_rng(3), 600, 4 * 37).astype(dtype)
    groups = [np.arange(g, 4 * 37, 4) for g in range(4)]
    got, due = agree(x, kc.Partition.groups(4 * 37, groups), model)
    np.testing.assert_allclose(got.operator(2), due.operator(2), atol=1e-9)
    np.testing.assert_allclose(got.growth(9), due.growth(9), rtol=1e-7)


@pytest.mark.parametrize("spread", [0.0, 5.0], ids=["one pass", "two passes"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_group_has_the_same_bits_alone_and_beside_others(spread, threads, monkeypatch):
    """Whether threads share its sums or take a group each; one beside it is deficient."""
    monkeypatch.setenv("KOOPCORE_NUM_THREADS", str(threads))
    x = pulled(np.random.default_rng(9), 900, 5 * 40) * np.geomspace(1.0, 10.0**spread, 200)
    x[:, 7] = x[:, 8]
    horizons = [1, 7, 60]
    beside = kc.fit(x, equal_groups(5, 40), "linear", backend="native_cpu", horizon=horizons)
    alone = kc.fit(
        x[:, 80:120], equal_groups(1, 40), "linear", backend="native_cpu", horizon=horizons
    )
    assert beside.rank.tolist() == [39, 40, 40, 40, 40]
    np.testing.assert_array_equal(beside.predict(horizons)[:, 80:120], alone.predict(horizons))
    assert beside.residual[2] == alone.residual[0]
    assert beside.hindcast_error[2] == alone.hindcast_error[0]
    assert beside.condition[2] == alone.condition[0]


def test_squarings_of_a_very_large_group_are_divided():
    """Into tasks of some panels, of which the last has fewer; long horizons square the most."""
    x = pulled(np.random.default_rng(2), 700, 260)
    agree(x, equal_groups(1, 260), "affine")
    far = [400, 3000]
    got = kc.fit(x, equal_groups(1, 260), "affine", backend="native_cpu", horizon=far).predict(far)
    due = kc.fit(x, equal_groups(1, 260), "affine", backend="reference").predict(far)
    np.testing.assert_allclose(got, due, rtol=1e-8, atol=1e-8)
