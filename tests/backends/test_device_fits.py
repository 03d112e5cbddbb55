"""Whole fits on the CUDA backends, each in the form in which it can run here."""

import numpy as np
import pytest
from backend_cases import pieced
from trajectories import PROJECTED, assert_predicts_as, generic, projected_groups

import koopcore as kc
from koopcore import arrays, operators
from koopcore.partition.partition import Partition

on_devices = pytest.mark.parametrize("backend", ["native_cuda", "cupy_cuda"], indirect=True)


@pytest.fixture
def predicted(backend, monkeypatch):
    """Predictions and ranks of a fit whose arrays stand for those of a device."""

    def run(x, part, model, horizons, **options):
        with monkeypatch.context() as patch:
            if backend.name == "native_cuda":
                real = arrays.view
                patch.setattr(arrays, "view", lambda *a: real(*a)._replace(device="cuda"))
            patch.setattr(operators, "backend_for", lambda device, name: backend)
            ops = kc.fit(x, part, model, **options)
            return ops.predict(horizons), ops.rank

    return run


@on_devices
@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"ridge": 1e-6}, {"ridge": 1e-6, "rank": 3}])
@pytest.mark.parametrize("model", ["linear", "affine"])
def test_projected_fits_are_the_references(predicted, model, options):
    part = pieced([70] * 2 * len(PROJECTED))
    ring, horizons = projected_groups(part), [1, 40, 5]
    got, rank = predicted(ring, part, model, horizons, **options)
    expected = kc.fit(ring, part, model, backend="reference", **options)
    assert_predicts_as(got, expected.predict(horizons), ring, part)
    assert np.array_equal(rank, expected.rank)


@on_devices
@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("offset", [0.0, 1e5, 1e9])
def test_small_groups_far_from_the_origin(predicted, model, offset):
    """The feature side, whose second pass gathers the snapshots of the groups that need it."""
    rng = np.random.default_rng(0)
    x = generic(12, 5 * 4) * 0.1 + offset * rng.normal(size=20)
    x[:, 5:7] = 0.0  # dead parameters
    part = Partition.groups(20, [range(5 * k, 5 * k + 5) for k in range(4)])
    got, rank = predicted(x, part, model, [1, 5])
    expected = kc.fit(x, part, model, backend="reference")
    # Known to u of the snapshots, which is 1e-7 of the motion at the largest offset, times cond.
    np.testing.assert_allclose(got, expected.predict([1, 5]), rtol=1e-9, atol=1e-4)
    assert np.array_equal(rank, expected.rank)
