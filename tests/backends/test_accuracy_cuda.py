"""The CUDA kernels, run by the host emulation, over the accuracy tables of the engine.

In one pass, in stages, and in stages as devices without fast fp64 have them: sums in pairs of
floats and a pivot tolerance to match. Up to m = 257: the emulation takes a function call for every
step of every thread. (m = 3073 passes too, in five more minutes.)
"""

from __future__ import annotations

from functools import partial

import emulated_cuda
import pytest
from accuracy_tables import HORIZONS, KINDS, check

import koopcore as kc
from koopcore import arrays, operators

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulated_cuda.COMPILER is None, reason="needs g++"),
]
SIZES = (1, 2, 11, 65, 257)


@pytest.fixture
def predict(monkeypatch):
    """Predictions of fits with a module of kernels; one pass for groups larger than ``least``."""
    real = arrays.view
    monkeypatch.setattr(arrays, "view", lambda *a: real(*a)._replace(device="cuda"))
    monkeypatch.setattr(arrays, "where", lambda array: "CUDA device 0")
    for name in ("memory", "any_memory"):
        monkeypatch.setattr(arrays, name, emulated_cuda.host_memory)

    def run(snapshots, part, model, module, least):
        emulated_cuda.one_pass_for_all(monkeypatch, least)
        monkeypatch.setattr(operators, "backend_for", lambda device, name: module)
        return kc.fit(snapshots, part, model=model, horizon=HORIZONS).predict(HORIZONS)

    return run


@pytest.mark.parametrize("model", ["linear", "affine"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_as_good_as_orthogonal_least_squares(
    predict,
    kernels,
    two_float,
    kind,
    dtype,
    model,
):
    fast, slow = map(emulated_cuda.backend, (kernels, two_float))
    fits = {
        "one pass": partial(predict, model=model, module=fast, least=0),
        "in stages": partial(predict, model=model, module=fast, least=10**9),
        "pairs of floats": partial(predict, model=model, module=slow, least=0),
    }
    check(kind, dtype, model, fits, SIZES)
