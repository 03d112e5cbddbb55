"""cupy_cuda with NumPy in CuPy's place: the same array operations, against the reference."""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from ragged_groups import RAGGED, gram_error, pieced, ragged, walks
from trajectories import PROJECTED, assert_predicts_as, generic, projected_groups

import koopcore as kc
from koopcore import operators
from koopcore.backends.protocol import Backend, Snapshots
from koopcore.backends.reference import Reference
from koopcore.partition.partition import Partition

reference = Reference()


FAMILY = ("backend", "device", "batches")


@pytest.fixture
def module(monkeypatch):
    """The backend's module on a stand-in that has CuPy's names and NumPy's functions."""
    stand_in = ModuleType("cupy")
    stand_in.__dict__.update({name: getattr(np, name) for name in np.__all__})
    stand_in.asnumpy = np.asarray
    runtime = SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError)
    device = lambda number=0: contextlib.nullcontext()  # noqa: E731
    stand_in.cuda = SimpleNamespace(runtime=runtime, Device=device)
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    for name in FAMILY:
        monkeypatch.delitem(sys.modules, f"koopcore.backends.cupy.{name}", raising=False)
    module = importlib.import_module("koopcore.backends.cupy.backend")
    monkeypatch.setattr(module, "opened", contextlib.nullcontext)
    monkeypatch.setattr(module, "group_columns", lambda part, groups: part.index_matrix(groups))
    yield module
    for name in FAMILY:
        sys.modules.pop(f"koopcore.backends.cupy.{name}", None)


@pytest.fixture
def cupy(module):
    return module.load()


def test_it_says_what_is_missing():
    if importlib.util.find_spec("cupy") is None:
        with pytest.raises(ImportError, match=r"pip install koopcore\[cuda12\]"):
            importlib.import_module("koopcore.backends.cupy.backend")


def test_it_has_every_stage(cupy):
    assert isinstance(cupy, Backend)


@pytest.mark.parametrize("n", [2, 9, 24])
def test_gram(cupy, module, monkeypatch, n):
    monkeypatch.setattr(module, "BLOCK", 500)  # several blocks
    part = ragged(np.random.default_rng(n), [*RAGGED, 7, 7, 7])
    snapshots = walks(np.random.default_rng(n), n, part.size, np.float32)
    expected = reference.gram(snapshots, part)
    assert gram_error(cupy.gram(snapshots, part), expected, n) < 300 * 2.0**-53


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("n", [4, 17])
def test_solve_and_rollout(cupy, n, affine):
    part = ragged(np.random.default_rng(n), [n + 10, n + 20, 60])
    gram = reference.gram(walks(np.random.default_rng(n), n, part.size, np.float32), part)
    expected = reference.solve(gram, n, affine, max(1, n // 5))
    got = cupy.solve(gram, n, affine, max(1, n // 5))
    for made, due in zip(got, expected, strict=True):
        # cond² n u, with cond below 1e3
        np.testing.assert_allclose(made, due, rtol=1e-8, atol=1e-10)
    for horizons in ([1], [5, 2], [1500]):
        made = cupy.rollout(expected.coefficients, affine, horizons)
        due = reference.rollout(expected.coefficients, affine, horizons)
        scale = np.abs(due[0]).max()
        np.testing.assert_allclose(made[0], due[0], rtol=1e-6, atol=1e-9 * scale)
        assert np.array_equal(np.isfinite(made[1]), np.isfinite(due[1]))


def test_a_window_without_full_rank(cupy):
    x = np.outer(0.5 ** np.arange(6.0), np.arange(1.0, 9.0))
    part = Partition.groups(8, [range(8)])
    gram = reference.gram(Snapshots(x, np.arange(6)), part)
    got, expected = (b.solve(gram, 6, False, 1) for b in (cupy, reference))
    assert got.rank == expected.rank
    assert (got.coefficients == 0.0).all()
    assert np.isnan(got.hindcast).all()
    assert np.isinf(got.condition).all()


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize(
    ("rank", "ridge", "raw"), [(None, 0.0, False), (None, 1e-3, False), (2, 0.0, True)]
)
def test_dense_stages(cupy, affine, rank, ridge, raw):
    part = ragged(np.random.default_rng(1), [5] * 6)
    snapshots = walks(np.random.default_rng(1), 14, part.size, np.float64)
    moments = reference.feature_gram(snapshots, part, affine, [14, 11])
    np.testing.assert_allclose(
        cupy.feature_gram(snapshots, part, affine, [14, 11]), moments, rtol=1e-9, atol=1e-9
    )
    c, e, g = moments[0, :, 0], moments[0, :, 1], moments[0, :, 0, 0]
    got, expected = (b.project(c, e, g, rank, ridge, raw) for b in (cupy, reference))
    assert np.array_equal(got.rank, expected.rank)
    made, due = (p.whitener @ p.whitener.transpose(0, 2, 1) for p in (got, expected))
    np.testing.assert_allclose(made, due, rtol=1e-6, atol=1e-9 * np.abs(due).max())
    for horizons in ([3, 1], [1100]):
        due = reference.rollout_dense(expected.operator, expected.start, affine, horizons)
        made = cupy.rollout_dense(expected.operator, expected.start, affine, horizons)
        np.testing.assert_allclose(made[0], due[0], rtol=1e-6, atol=1e-9)


def test_combine_gather_scatter(cupy):
    rng = np.random.default_rng(3)
    part = ragged(rng, [6, 6, 6])
    snapshots = walks(rng, 5, part.size, np.float32)
    weights = rng.normal(size=(2, 3, 5))
    got = np.zeros((2, part.size), dtype=np.float32)
    expected = got.copy()
    cupy.combine(snapshots, part, weights, got)
    reference.combine(snapshots, part, weights, expected)
    np.testing.assert_allclose(got, expected, rtol=2e-7, atol=1e-6)  # one rounding to float32
    values = cupy.gather(snapshots, part, [-1, 0])
    assert np.array_equal(values[0, 1], snapshots.array[snapshots.order[-1], part.indices(1)])
    cupy.scatter(part, values, got)
    assert np.array_equal(got[1, part.indices(2)], values[1, 2].astype(np.float32))


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"ridge": 1e-6}, {"ridge": 1e-6, "rank": 3}])
@pytest.mark.parametrize("model", ["linear", "affine"])
def test_projected_fits_are_the_references(cupy, monkeypatch, model, options):
    part = pieced([70] * 2 * len(PROJECTED))
    ring = projected_groups(part)
    monkeypatch.setattr(operators, "backend_for", lambda device, name: cupy)
    ops = kc.fit(ring, part, model, **options)
    got = ops.predict([1, 40, 5])
    monkeypatch.undo()
    expected = kc.fit(ring, part, model, backend="reference", **options)
    assert_predicts_as(got, expected.predict([1, 40, 5]), ring, part)
    assert np.array_equal(ops.rank, expected.rank)


@pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])
@pytest.mark.parametrize("offset", [0.0, 1e5, 1e9])
def test_small_groups_far_from_the_origin(cupy, monkeypatch, affine, offset):
    """The feature side, whose second pass gathers the snapshots of the groups that need it."""
    rng = np.random.default_rng(0)
    x = generic(12, 5 * 4) * 0.1 + offset * rng.normal(size=20)
    x[:, 5:7] = 0.0  # dead parameters
    part = Partition.groups(20, [range(5 * k, 5 * k + 5) for k in range(4)])
    model = "affine" if affine else "linear"
    monkeypatch.setattr(operators, "backend_for", lambda device, name: cupy)
    ops = kc.fit(x, part, model)
    got = ops.predict([1, 5])
    monkeypatch.undo()
    expected = kc.fit(x, part, model, backend="reference")
    # Known to u of the snapshots, which is 1e-7 of the motion at the largest offset, times cond.
    np.testing.assert_allclose(got, expected.predict([1, 5]), rtol=1e-9, atol=1e-4)
    assert np.array_equal(ops.rank, expected.rank)
