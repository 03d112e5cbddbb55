"""The way of CUDA arrays through koopcore.dmd, with the kernels under the host emulation."""

import numpy as np
import pytest
import torch
from dmd_cases import farthest, waves
from sklearn.base import clone

from koopcore.dmd import DMD, OptimizedDMD, estimator, optimized, series


@pytest.mark.parametrize("kind", [DMD, OptimizedDMD])
def test_snapshots_are_read_by_the_kernels_of_the_device(native, monkeypatch, kind):
    x = waves(5, n=12, m=40, noise=0.01)[0]
    expected = kind(4, backend="reference").fit(x)  # composed by NumPy, as for a device
    asked = []

    def backend_for(device, name):
        asked.append(device)
        return native

    for module in (estimator, optimized):
        monkeypatch.setattr(module, "backend_for", backend_for)
    fitted = kind(4).fit(x)
    assert asked
    np.testing.assert_allclose(fitted.eigenvalues_, expected.eigenvalues_, atol=1e-9)
    # A mode's sign, and its phase, are free: its product with the amplitude is not.
    ours, theirs = (one.modes_ * one.amplitudes_[:, None] for one in (fitted, expected))
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("estimator_", [DMD(4), DMD(4, delays=2, modes="refit"), OptimizedDMD(4)])
def test_tensors_are_not_turned_into_numpy_arrays(estimator_, complex_, monkeypatch):
    # As on a device: the tensor itself is what is worked with. The small matrices are NumPy's.
    x = waves(3, n=40, m=9, noise=0.01)[0]
    x = torch.from_numpy(x + 0.5j * x[::-1] if complex_ else x)
    expected = answers(clone(estimator_).fit(x), x)
    kind = series.Kind("torch", str(x.dtype).removeprefix("torch."), "cpu", True)
    monkeypatch.setattr(series, "_plain", lambda value, name: (value, kind))
    fitted = clone(estimator_).fit(x)
    assert isinstance(fitted._dynamics.modes, torch.Tensor)
    torch.testing.assert_close(answers(fitted, x), expected)


def answers(fitted, x):
    """All that an estimator says, as tensors."""
    # A mode's phase is free: its product with the amplitude is not.
    numbers = fitted.eigenvalues_, fitted.modes_ * fitted.amplitudes_[:, None]
    states = fitted.reconstruct(), fitted.predict(x), fitted.predict(5), fitted.forecast(x, 3)
    return [*numbers, *states, torch.tensor(fitted.score(x))]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_tensors_on_a_gpu_stay_there(dtype):
    x = torch.from_numpy(waves(5, n=12, m=40, noise=0.01)[0]).to(dtype)
    for kind in (DMD, OptimizedDMD):
        here, there = kind(4).fit(x), kind(4).fit(x.cuda())
        assert there.modes_.is_cuda
        for mine, theirs in zip(here.eigenvalues_, there.eigenvalues_, strict=True):
            assert farthest(mine.numpy(), theirs.cpu().numpy()) < 1e-4
        ahead = there.forecast(horizon=3)
        assert ahead.is_cuda
        assert ahead.dtype == dtype
        torch.testing.assert_close(ahead.cpu(), here.forecast(horizon=3), rtol=1e-3, atol=1e-3)
