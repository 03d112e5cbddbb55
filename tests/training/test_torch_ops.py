"""koopcore as a torch operator: registration, gradients, compilation, and what it agrees with."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.library import opcheck
from trajectories import generic

import koopcore as kc
from koopcore.backends import backend_for
from koopcore.torch_ops import Endpoint, _partition_of, segments_of

# m >= n - 1 (snapshot side), m < n - 1 (feature side), and parameters in no group.
PART = kc.Partition.groups(30, [range(12), range(12, 24), range(24, 27)])
MODELS = pytest.mark.parametrize("model", ["linear", "affine"])


def window(n=7, seed=0, dtype=torch.float64):
    return torch.from_numpy(generic(n, 30, seed)).to(dtype)


@MODELS
@pytest.mark.parametrize("horizons", [1, [3, 1, 8]], ids=["one", "several"])
def test_it_predicts_what_fit_predicts(model, horizons):
    x = window()
    got = Endpoint(PART, horizons, model)(x)
    expected = kc.fit(x, PART, model).predict(horizons)
    assert torch.equal(got, expected.reshape(got.shape))


@MODELS
def test_gradients(model):
    module = Endpoint(PART, [1, 3], model)
    x = window(5).requires_grad_()
    assert torch.autograd.gradcheck(module, (x,), eps=1e-6, atol=1e-5, rtol=1e-4)


@MODELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_registration(model, dtype):
    module = Endpoint(PART, [1, 3], model)
    x = window(5, dtype=dtype).requires_grad_()
    # Float32 steps of the finite differences inside would say nothing; opcheck compares dispatch.
    arguments = (x, module.segments, module.size, [1, 3], model == "affine", None)
    opcheck(torch.ops.koopcore.endpoint.default, arguments, atol=1e-3, rtol=1e-3)


@MODELS
def test_it_stays_in_one_compiled_graph(model):
    module = Endpoint(PART, [2], model)
    compiled = torch.compile(lambda x: (2.0 * module(x)).sum(), fullgraph=True, backend="aot_eager")
    x, y = window(5).requires_grad_(), window(5).requires_grad_()
    compiled(x).backward()
    (2.0 * module(y)).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert x.grad.abs().max() > 0


def test_parameters_in_no_group_keep_their_last_value_and_its_gradient():
    x = window().requires_grad_()
    out = Endpoint(PART, [5])(x)
    assert torch.equal(out[0, 27:], x[-1, 27:])
    (gradient,) = torch.autograd.grad(out[0, 27:].sum(), x)
    expected = torch.zeros_like(gradient)
    expected[-1, 27:] = 1.0
    torch.testing.assert_close(gradient, expected)


@MODELS
def test_copies_and_exported_programs_predict_the_same(model, tmp_path):
    module = Endpoint(PART, [2, 5], model)
    x = window()
    expected = module(x)
    assert torch.equal(copy.deepcopy(module)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), expected)
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "endpoint.pt2")
    again = torch.export.load(tmp_path / "endpoint.pt2").module()
    assert torch.equal(again(x), expected)


def test_a_partition_comes_back_from_its_segments():
    part = kc.Partition.groups(30, [[3, 1, 7], range(10, 20), [0], range(21, 29, 2)])
    copied = segments_of(part).clone()
    assert _partition_of(copied, 30) == part
    assert _partition_of(copied, 30) is _partition_of(copied, 30)


@pytest.mark.parametrize("by_name", [False, True])
def test_the_backend_that_is_named_or_forced_runs(by_name, monkeypatch):
    reference = type(backend_for("cpu", "reference"))
    gram, calls = reference.gram, []

    def counted(self, *arguments):
        calls.append(arguments)
        return gram(self, *arguments)

    monkeypatch.setattr(reference, "gram", counted)
    monkeypatch.delenv("KOOPCORE_BACKEND", raising=False)
    Endpoint(PART, 3, backend="numba_cpu")(window())
    assert not calls
    if not by_name:
        monkeypatch.setenv("KOOPCORE_BACKEND", "reference")
    Endpoint(PART, 3, backend="reference" if by_name else None)(window())
    assert calls


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="backend 'numpy' does not run on cpu; native_cpu"):
        Endpoint(PART, 3, backend="numpy")(window())


@pytest.mark.parametrize(
    ("horizons", "model", "message"),
    [
        ([], "affine", "give whole numbers of snapshots >= 1"),
        (0, "affine", "give whole numbers of snapshots >= 1"),
        (1, "trend", "'affine' and 'linear' are differentiable"),
    ],
)
def test_misuse(horizons, model, message):
    with pytest.raises(ValueError, match=message):
        Endpoint(PART, horizons, model)


def test_snapshots_of_another_width():
    with pytest.raises(ValueError, match="29 parameters a row"):
        Endpoint(PART, 1)(window()[:, :29])
    assert np.isfinite(window().numpy()).all()
