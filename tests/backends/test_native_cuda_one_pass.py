"""The CUDA kernel for all stages in one pass, run by the host emulation, against reference."""

from __future__ import annotations

import emulated_cuda
import numpy as np
import pytest
from backend_cases import REFERENCE, pieced, side_by_side, walks
from trajectories import generic, smooth

import koopcore as kc
from koopcore.backends.native_cuda import cost
from koopcore.backends.native_cuda import launch as native_cuda_launch
from koopcore.backends.native_cuda import plan as native_cuda_plan
from koopcore.backends.native_cuda.launch import Launch, divided
from koopcore.backends.native_cuda.plan import shares, tile_columns
from koopcore.backends.native_cuda.queue import queue_one_pass
from koopcore.backends.protocol import Ahead, Snapshots
from koopcore.partition.partition import Partition

pytestmark = pytest.mark.skipif(emulated_cuda.COMPILER is None, reason="needs g++")
MODELS = pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])


@pytest.fixture
def launches(native, monkeypatch):
    """The names of what was launched; one pass is for groups of any size here."""
    emulated_cuda.one_pass_for_all(monkeypatch)
    names = []
    real = native._cuda

    class Counting:
        def __getattr__(self, name):
            names.append(name)
            return getattr(real, name)

    monkeypatch.setattr(native, "_cuda", Counting())
    return names


def predicted(part, ring, order, affine, horizons):
    model = "affine" if affine else "linear"
    return kc.fit(ring[order], part, model, backend="reference").predict(horizons)


@MODELS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [3, 4, 8, 9, 16, 17, 24, 25, 31, 32])
def test_fits_and_predictions(native, launches, n, dtype, affine):
    rng = np.random.default_rng(n)
    # One to four warps a group, in a turned ring.
    part = pieced([33, 40, 64, 65, 161] + [390] * (n < 20) + [1100] * (n < 9))
    snapshots = walks(rng, n, part.size, dtype)
    horizons, holdout = [7, 1], max(1, n // 5)
    out = np.full((2, part.size), 7.0, dtype=dtype)
    got = native.gram_solve(snapshots, part, affine, holdout, Ahead(horizons, out))
    assert "one_pass" in launches
    assert not {"gram", "solve", "rollout", "combine"} & set(launches)
    expected = REFERENCE.solve(REFERENCE.gram(snapshots, part), n, affine, holdout)
    assert np.array_equal(got.rank, expected.rank)
    size = np.abs(expected.coefficients).max()
    # Backward stable on a Gram matrix: errors of cond² n u, and cond is below 1e3 here.
    assert np.abs(np.asarray(got.coefficients) - expected.coefficients).max() < 1e-8 * size
    for made, due in zip(got[2:], expected[2:], strict=True):
        assert np.asarray(made) == pytest.approx(due, rel=1e-8, nan_ok=True)
    due = predicted(part, snapshots.array, snapshots.order, affine, horizons)
    inside = np.concatenate([part.indices(g) for g in range(part.n_groups)])
    rtol = 2e-6 if dtype is np.float32 else 1e-9
    scale = np.abs(due[:, inside]).max()
    np.testing.assert_allclose(out[:, inside], due[:, inside], rtol=rtol, atol=rtol * scale)
    assert (np.delete(out, inside, axis=1) == 7.0).all()  # parameters in no group are not touched


@pytest.mark.parametrize("misaligned", [0, 1, 3], ids=lambda k: f"from column {k}")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rings_of_any_alignment(native, launches, misaligned, dtype):
    rng = np.random.default_rng(3)
    part = Partition.groups(90, [range(37), range(38, 90)])
    array = rng.normal(size=(9, 97)).astype(dtype)[:, misaligned : misaligned + 90]
    for order in (np.arange(9), np.array([4, 0, 8, 2, 7])):
        out = np.zeros((1, 90), dtype=dtype)
        native.endpoint(Snapshots(array, order), part, True, [3], out)
        assert "one_pass" in launches
        due = predicted(part, array, order, True, [3])
        np.testing.assert_allclose(out[:, 38:], due[:, 38:], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(out[:, :37], due[:, :37], rtol=1e-5, atol=1e-5)


@MODELS
def test_deficient_and_wild_groups(native, launches, affine):
    n, groups = 8, [range(70), range(80, 150), range(150, 160), range(200, 400), range(400, 440)]
    part = Partition.groups(440, groups)
    ring = generic(n, 440).astype(np.float64)
    ring[:, 80:150] = smooth(n, 70, rates=(0.5, 0.9))  # of rank 2: deficient in a window of 8
    ring[:, 150:160] = np.nan
    ring[:, 400:440] = 1e3 ** np.arange(n)[:, None] * np.arange(1, 41)  # beyond every limit
    snapshots = Snapshots(ring, np.arange(n))
    ranks = np.asarray(native.gram_solve(snapshots, part, affine, 0).rank)
    apart = native.endpoint_in_one_pass(snapshots, part, affine, [2], np.zeros((1, 440)))
    assert np.array_equal(apart, ranks)
    columns = n - 1 - affine
    assert ranks[0] == ranks[3] == columns
    assert max(ranks[1], ranks[2], ranks[4]) < columns
    out = np.full((2, 440), 7.0)
    native.endpoint(snapshots, part, affine, [50, 2], out)
    assert "combine_deficient" in launches
    due = predicted(part, np.where(np.isfinite(ring), ring, 0.0), np.arange(n), affine, [50, 2])
    for group in (0, 1, 3):
        at = part.indices(group)
        # The deficient group lies in the plane of its motion up to cond² u; the others to n u.
        np.testing.assert_allclose(out[:, at], due[:, at], rtol=1e-5, atol=1e-6)
    assert np.isfinite(out[:, part.indices(4)]).all()
    assert (out[:, 70:80] == 7.0).all()


def test_a_rollout_beyond_every_limit_keeps_the_last_snapshot(native, launches):
    part = Partition.groups(20, [range(20)])
    rng = np.random.default_rng(0)
    ring = np.cumsum(rng.normal(size=(3, 20)) * 100.0 ** np.arange(3)[:, None], axis=0)
    out = np.zeros((1, 20))
    native.endpoint(Snapshots(ring, np.arange(3)), part, True, [150], out)
    assert "one_pass" in launches
    # d_2 = a d_1 with |a| > 1: a^1000 is beyond 1e30 or vanishes; here it is beyond.
    d = np.diff(ring, axis=0)
    assert abs(d[1] @ d[0] / (d[0] @ d[0])) > 2.0
    assert np.array_equal(out[0], ring[-1])


@MODELS
def test_one_pass_and_stages_side_by_side(native, launches, monkeypatch, affine):
    monkeypatch.setattr(native_cuda_launch, "_most_columns", lambda *of: 200)
    rng = np.random.default_rng(1)
    part = pieced([30, 300, 31, 65, 400, 33])
    snapshots = walks(rng, 9, part.size, np.float32)
    out = np.full((2, part.size), 7.0, dtype=np.float32)
    native.endpoint(snapshots, part, affine, [4, 2], out)
    assert {"one_pass", "gram", "combine"} <= set(launches)
    apart = np.full((2, part.size), 7.0, dtype=np.float32)
    native.endpoint_in_stages(snapshots, part, affine, [4, 2], apart)
    np.testing.assert_allclose(out, apart, rtol=1e-5, atol=1e-5)
    fitted = native.gram_solve(snapshots, part, affine, 2)  # fields of one kind: in stages
    due = REFERENCE.solve(REFERENCE.gram(snapshots, part), 9, affine, 2)
    assert np.asarray(fitted.hindcast) == pytest.approx(due.hindcast, rel=1e-8)


@pytest.mark.parametrize(
    ("n", "horizons"), [(33, [3]), (9, [1025]), (9, list(range(1, 66)))], ids=str
)
def test_what_goes_in_stages(native, launches, n, horizons):
    part = Partition.groups(100, [range(50), range(50, 100)])
    out = np.zeros((len(horizons), 100))
    native.endpoint(Snapshots(generic(n, 100), np.arange(n)), part, True, horizons, out)
    assert "one_pass" not in launches
    assert "combine" in launches


def for_one_pass(part, most=1000, n=16, steps=100, width=4):
    return native_cuda_plan.for_one_pass(part, most, n, steps, width).tolist()


def test_small_groups_go_in_stages():
    part = Partition.groups(400, [range(48), range(48, 176), range(176, 305)])
    assert for_one_pass(part) == [False, True, True]
    assert for_one_pass(part, most=100) == [False, False, False]
    assert not any(for_one_pass(side_by_side([100] * 40_000)))  # work takes longer than reading …
    assert all(for_one_pass(side_by_side([100] * 4_000)))  # … unless lanes wait for each other
    assert for_one_pass(side_by_side([100] * 40_000 + [160])) == [False] * 40_000 + [True]


def test_far_horizons_go_in_stages():
    part = side_by_side([257] * 40_000)
    assert all(for_one_pass(part, n=24, steps=100))
    assert not any(for_one_pass(part, n=24, steps=400))  # a warp's rollout waits for every step


def test_a_group_goes_its_own_way_beside_many_others():
    sizes = [60] * 40_000 + [300] * 10
    chosen = for_one_pass(side_by_side(sizes))
    assert not any(chosen[:40_000])
    assert all(chosen[40_000:])
    few = for_one_pass(side_by_side([300] * 40_000 + [60] * 10))  # these wait for each other alone
    assert all(few)


def test_parts_of_a_partition_are_the_same_for_all_steps_that_lead_to_them(native):
    part = pieced([30, 300, 31])
    on = Launch(native._cuda, Snapshots(generic(9, part.size), np.arange(9)), part)
    first, second = divided(on, [3]), divided(on, [4])
    assert first[0] is second[0]
    assert first[1] is second[1]
    assert first[0].n_groups == 1
    for steps in range(1, 200):
        divided(on, [steps])
    assert len(native_cuda_launch._divided[part]) <= native_cuda_launch.MOST_KNOWN + 2


def test_costs_are_recovered_from_timings():
    true = cost.Costs(3e-6, 2.5e-13, 5e-5, 4e-8, 2e-9, 3e-11)
    shapes = [(g, m, n, t, 4) for g in (500, 10_000, 60_000) for m, n, t in
              ((65, 16, 100), (257, 24, 400), (129, 8, 20))]  # fmt: skip
    timings = [
        cost.Timing(*shape, cost.stages(true, *shape), cost.one_pass(true, *shape))
        for shape in shapes
    ]
    found, misfit = cost.fitted(timings)
    assert found == pytest.approx(true, rel=1e-6)
    assert misfit < 1e-9
    shared = [timing._replace(one_pass=timing.stages / 3) for timing in timings]
    found, misfit = cost.fitted(shared)  # nothing of the model's kind, and nothing below zero
    assert min(found) >= 0.0
    assert misfit > 0.05


def test_groups_beyond_shared_memory_are_refused_by_one_pass(native):
    part = Partition.groups(6000, [range(3000), range(3000, 6000)])
    window = Snapshots(generic(9, 6000), np.arange(9))
    assert not native.fits_one_pass(window, part, [3])
    with pytest.raises(ValueError, match="not all groups fit one pass"):
        native.endpoint_in_one_pass(window, part, True, [3], np.zeros((1, 6000)))


def test_devices_with_slow_fp64_go_in_stages(native, launches, monkeypatch):
    monkeypatch.setattr(type(native._cuda), "fast_double", lambda self, device: False, False)
    out = np.zeros((1, 100))
    part = Partition.groups(100, [range(100)])
    native.endpoint(Snapshots(generic(9, 100), np.arange(9)), part, True, [3], out)
    assert "one_pass" not in launches


def test_code_without_fast_fp64_refuses_one_pass(native_two_float):
    """Its kernel is empty there: better an error than outputs that nobody has written."""
    part = Partition.groups(200, [range(200)])
    window, out = Snapshots(generic(9, 200), np.arange(9)), np.full((1, 200), 7.0)
    on = Launch(native_two_float._cuda, window, part)
    fields = (0, on.space(1), 0, 0, 0)
    with pytest.raises(ValueError, match=r"one pass needs fast fp64, .* compute capability 8\.6"):
        queue_one_pass(on, True, 0, [3], fields, 0, on.output(out, 1), ())
    assert (out == 7.0).all()


def test_every_group_has_the_columns_that_its_segments_take():
    part = Partition.groups(
        400, [range(3, 68), range(100, 200, 3), [210, 212, 300], range(320, 384)]
    )
    # Quads: (3 + 65) / 4; 34 strided ones; one each for 210 and 212 (a stride of 2) and 300.
    assert tile_columns(part).tolist() == [80, 48, 16, 64]


def test_shares_hold_every_group_once_and_little_more_columns_than_needed():
    rng = np.random.default_rng(0)
    columns = 16 * rng.integers(1, 90, 500)
    found = shares(columns)
    taken = np.concatenate([share.groups for share in found])
    assert np.array_equal(np.sort(taken), np.arange(500))
    for share in found:
        assert share.n_groups == len(share.groups)
        assert (columns[share.groups] <= share.columns).all()
        assert (columns[share.groups] * 1.25 >= share.columns).all()
    assert [share.groups for share in shares(np.full(9, 80))] == [None]


def test_scattered_groups_go_in_stages(native, launches):
    index = np.sort(np.random.default_rng(0).permutation(2000)[:400])
    part = Partition.groups(2000, [index])
    out = np.zeros((1, 2000))
    native.endpoint(Snapshots(generic(6, 2000), np.arange(6)), part, True, [3], out)
    assert "one_pass" not in launches
