"""The oscillator's loss and gradient against automatic differentiation, and its initial states."""

import math

import numpy as np
import pytest
import torch

import koopcore as kc
from koopcore.lab.problems.oscillator import PARAMETERS, SHAPES, OscillatorBatch

PROBLEMS = {
    "as in the paper": {},
    "paper's interval": {"duration": 4 * math.pi},
    "harmonic": {"stiffness": 0.0},
    "stiff": {"stiffness": 2.5, "x0": -0.4, "p0": 0.7},
    "two points": {"points": 2, "duration": 1.0},
    "odd number of points": {"points": 37, "duration": 0.5},
}


def network(row):
    """The same network out of torch's own layers, which know nothing of flat vectors."""
    layers = [torch.nn.Linear(fan_in, fan_out) for fan_out, fan_in, _ in SHAPES]
    model = torch.nn.Sequential(
        layers[0], torch.nn.Sigmoid(), layers[1], torch.nn.Sigmoid(), layers[2]
    ).to(row.dtype)
    torch.nn.utils.vector_to_parameters(row, model.parameters())
    return model


def differentiated_twice(problem, row):
    """Loss and gradient of one network: autograd for d/dt, then autograd through that."""
    model = network(row)
    t = torch.linspace(0.0, problem.duration, problem.points, dtype=row.dtype)[:, None]
    t.requires_grad_(True)
    out = model(t)
    rise = 1 - torch.exp(-t[:, 0])
    x = problem.x0 + rise * out[:, 0]
    p = problem.p0 + rise * out[:, 1]
    dx = torch.autograd.grad(x.sum(), t, create_graph=True)[0][:, 0]
    dp = torch.autograd.grad(p.sum(), t, create_graph=True)[0][:, 0]
    loss = ((dx - p) ** 2).mean() + ((dp + x + problem.stiffness * x**3) ** 2).mean()
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    return loss.detach(), torch.cat([g.flatten() for g in gradient])


@pytest.mark.parametrize("options", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_loss_and_gradient_equal_double_backpropagation(options, scale):
    problem = OscillatorBatch(3, seed=4, dtype=torch.float64, **options)
    params = scale * problem.initial()
    loss, gradient = problem.loss_and_gradient(params)
    for k, row in enumerate(params):
        true_loss, true_gradient = differentiated_twice(problem, row)
        # Both in float64 with different orders of summation over at most 200 points.
        torch.testing.assert_close(loss[k], true_loss, rtol=1e-12, atol=1e-14)
        size = true_gradient.abs().max().item()
        torch.testing.assert_close(gradient[k], true_gradient, rtol=0, atol=1e-12 * max(size, 1))


def test_the_gradient_predicts_finite_differences_of_the_loss():
    problem = OscillatorBatch(2, dtype=torch.float64)
    params = problem.initial()
    _, gradient = problem.loss_and_gradient(params)
    direction = torch.randn(params.shape, dtype=torch.float64, generator=torch.manual_seed(1))
    h = 1e-5
    slope = (problem.loss(params + h * direction) - problem.loss(params - h * direction)) / (2 * h)
    # Central differences: h² truncation and u/h rounding, both near 1e-10 of the loss scale.
    torch.testing.assert_close(slope, (gradient * direction).sum(1), rtol=1e-7, atol=1e-8)


def test_float32_agrees_with_float64_to_single_precision():
    single = OscillatorBatch(5, dtype=torch.float32)
    double = OscillatorBatch(5, dtype=torch.float64)
    params = single.initial()
    assert params.dtype == torch.float32
    loss, gradient = single.loss_and_gradient(params)
    true_loss, true_gradient = double.loss_and_gradient(params.double())
    # 200 summands of one sign: a few units of 6e-8 in the loss; the gradient cancels somewhat.
    torch.testing.assert_close(loss.double(), true_loss, rtol=5e-6, atol=0)
    size = true_gradient.abs().amax().item()
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=0, atol=1e-5 * size)


def test_the_loss_is_differentiable_for_any_optimizer_loop():
    problem = OscillatorBatch(4, dtype=torch.float64)
    params = problem.initial().requires_grad_()
    weights = torch.tensor([1.0, 2.0, 0.0, -3.0], dtype=torch.float64)
    (problem.loss(params) * weights).sum().backward()
    _, gradient = problem.loss_and_gradient(params)
    torch.testing.assert_close(params.grad, weights[:, None] * gradient, rtol=0, atol=0)


def test_the_loss_alone_records_nothing_for_a_backward_pass():
    problem = OscillatorBatch(2)
    assert not problem.loss(problem.initial()).requires_grad
    _, gradient = problem.loss_and_gradient(problem.initial().requires_grad_())
    assert not gradient.requires_grad


@pytest.mark.parametrize("rows", [1, 2, 7, 80])
def test_rows_do_not_influence_each_other(rows):
    problem = OscillatorBatch(rows, dtype=torch.float64)
    params = problem.initial()
    loss, gradient = problem.loss_and_gradient(params)
    alone_loss, alone_gradient = problem.loss_and_gradient(params[-1:])
    # A batched product may sum in another order than a single one: rounding of float64.
    torch.testing.assert_close(loss[-1:], alone_loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient[-1:], alone_gradient, rtol=0, atol=1e-12)
    disturbed = params.clone()
    disturbed[0] = math.nan
    if rows > 1:
        assert torch.equal(problem.loss(disturbed)[1:], loss[1:])


def test_strided_parameters_give_the_same_as_contiguous_ones():
    problem = OscillatorBatch(3, dtype=torch.float64)
    params = problem.initial()
    wide = torch.zeros(3, 2 * PARAMETERS, dtype=torch.float64)
    wide[:, ::2] = params
    for given in (wide[:, ::2], params.t().contiguous().t()):
        for got, expected in zip(
            problem.loss_and_gradient(given), problem.loss_and_gradient(params), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


def test_the_trial_solution_meets_the_initial_condition_whatever_the_weights():
    problem = OscillatorBatch(6, dtype=torch.float64)
    x, p = problem.solution(10 * problem.initial())
    assert x.shape == p.shape == (6, 200)
    assert torch.equal(x[:, 0], torch.full((6,), 1.3, dtype=torch.float64))
    assert torch.equal(p[:, 0], torch.full((6,), 1.0, dtype=torch.float64))


def test_an_exact_solution_has_no_loss():
    # With x0 = p0 = 0 the oscillator stays at rest, which a network of zeros reproduces.
    problem = OscillatorBatch(1, x0=0.0, p0=0.0, dtype=torch.float64)
    params = problem.initial()
    params[:, -22:] = 0  # output weights and biases
    loss, gradient = problem.loss_and_gradient(params)
    assert loss.item() == 0
    assert gradient.abs().max().item() == 0


def test_a_network_depends_on_its_number_and_the_seed_alone():
    three = OscillatorBatch(3, seed=7).initial()
    eight = OscillatorBatch(8, seed=7).initial()
    other = OscillatorBatch(3, seed=8).initial()
    assert torch.equal(three, eight[:3])
    assert not torch.equal(three, other)
    assert len({tuple(row.tolist()) for row in eight}) == 8


def test_initial_parameters_fill_the_range_of_torch_linear_layers():
    rows = OscillatorBatch(400, dtype=torch.float64).initial().numpy()
    layout = kc.Layout.from_shapes(SHAPES)
    assert rows.shape == (400, layout.size) == (400, PARAMETERS)
    for tensor, fan_in in zip(layout.tensors, (1, 1, 10, 10, 10, 10), strict=True):
        part = rows[:, tensor.offset : tensor.offset + tensor.size]
        bound = fan_in**-0.5
        assert np.abs(part).max() <= bound
        # Uniform: the variance is bound²/3; 800 values or more place it within 15 %.
        assert part.var() == pytest.approx(bound**2 / 3, rel=0.15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OscillatorBatch(0), "networks is 0"),
        (lambda: OscillatorBatch(1, points=1), "points is 1"),
        (lambda: OscillatorBatch(1).loss(torch.zeros(PARAMETERS)), r"\(152,\).*\(rows, 152\)"),
        (lambda: OscillatorBatch(1).loss(torch.zeros(2, 151)), r"\(2, 151\).*\(rows, 152\)"),
    ],
)
def test_misuse_is_refused_with_the_shape_that_is_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
