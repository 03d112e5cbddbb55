"""Small problems of full batches: what they are, and that every method is compared on them."""

import numpy as np
import pytest
import torch
from experiment_cells import computed

from koopcore.lab.experiments import end_to_end_small as experiment
from koopcore.lab.problems.full_batch import (
    Factorization,
    HenonHeiles,
    LogisticRegression,
    Regression,
)

SUMS_OF_SQUARES = (Factorization, Regression, HenonHeiles)


@pytest.mark.parametrize("problem", [LogisticRegression, *SUMS_OF_SQUARES])
def test_a_seed_makes_one_network_in_both_precisions(problem):
    narrow, wide = problem(3)().detach(), problem(3, torch.float64)().detach()
    assert (narrow.dtype, wide.dtype) == (torch.float32, torch.float64)
    assert float(narrow) == pytest.approx(float(wide), rel=1e-4)
    assert float(problem(4)().detach()) != float(narrow)


@pytest.mark.parametrize("problem", SUMS_OF_SQUARES)
def test_the_squares_of_residuals_are_the_loss(problem):
    model = problem(3, torch.float64)
    assert float((model.residuals().square().sum() - model()).detach()) == pytest.approx(
        0, abs=1e-12
    )


def test_the_trial_solution_of_the_chaotic_system_is_differentiated_in_time():
    """Its rates of change, written out, are the differences of its values."""
    model = HenonHeiles(3, torch.float64)
    values = []
    for shift in (0.0, 1e-6):
        times = model.times + shift
        hidden = torch.tanh(model.second(torch.tanh(model.first(times))))
        values.append(model.start - torch.expm1(-times) * model.last(hidden))
    x, y, p, q = values[0].unbind(1)
    slopes = (values[1] - values[0]).unbind(1)
    forces = (p, q, -x - 2 * x * y, -y - x * x + y * y)
    defects = torch.cat([s / 1e-6 - f for s, f in zip(slopes, forces, strict=True)])
    expected = defects / len(model.times) ** 0.5
    assert torch.allclose(model.residuals(), expected, atol=1e-6)


def test_every_method_of_one_case_is_compared(monkeypatch):
    name = "regression network"
    monkeypatch.setattr(experiment, "CASES", {name: experiment.CASES[name]})
    settings = experiment.settings(quick=True)
    settings |= {"networks": 1, "lengths": {name: 150}, "around_steps": 30}
    settings["rates"] = settings["jump_rates"] = settings["around"] = {name: [0.01]}
    settings["cosine"] = {name: [[0.03, 0.0, 150]]}
    results = computed(experiment, settings)
    plain = results[f"{name}/plain"]
    assert plain["steps"][0] == 150
    assert set(plain["averages"]) == {"EMA 0.9", "EMA 0.99", "LAWA"}
    assert results[f"{name}/cosine"]["rate"] == "0.03, cosine 150"
    for method in ("koopcore", "line", "residuals", "koopcore, cosine"):
        (run,) = results[f"{name}/{method}"]["runs"]
        assert np.isfinite(run["loss"])
    assert results[f"{name}/residuals"]["factors"][0] > 1.5
    assert results[f"{name}/L-BFGS float64"]["factors"][0] > 0
    assert experiment.table(results, settings) is not None
