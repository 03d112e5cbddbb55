"""koopcore as a torch operator: registration, gradients, compilation, and what it agrees with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.library import opcheck
from trajectories import generic

import koopcore as kc
from koopcore.torch_ops.endpoint import Endpoint, endpoint

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
    opcheck(endpoint, (x, module.number, [1, 3], model == "affine"), atol=1e-3, rtol=1e-3)


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


def test_equal_partitions_share_a_number():
    again = kc.Partition.groups(30, [range(12), range(12, 24), range(24, 27)])
    assert Endpoint(PART, 1).number == Endpoint(again, 2).number
    assert Endpoint(kc.Partition.groups(30, [range(30)]), 1).number != Endpoint(PART, 1).number


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
