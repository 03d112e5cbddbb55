"""End to end on the oscillator: a race counts what it took, methods are compared at their best."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from experiment_cells import computed

from koopcore.lab.experiments import end_to_end
from koopcore.lab.problems.descent import Descent, Pace
from koopcore.lab.problems.oscillator import OscillatorBatch


def test_a_race_stops_at_its_target_and_counts_what_it_took():
    problem = OscillatorBatch(1, 7, duration=2 * math.pi)
    plain = end_to_end.OscillatorNetwork(problem, 0)
    stepper = torch.optim.Adagrad(plain.parameters(), lr=0.1)
    _, _, target = end_to_end.descend(plain, stepper, -math.inf, 600)
    network = partial(end_to_end.OscillatorNetwork, problem, 0)
    run = end_to_end.race(network, "adagrad", Pace(0.1), target, 600, {}, probe=10)
    assert run.reached
    assert run.loss <= target
    assert 0 < run.steps < 400  # measured: a third of plain training and less
    assert run.accepted > 0
    assert run.seconds > 0
    never = end_to_end.race(network, "adagrad", Pace(0.1), 0.0, 20, {}, probe=1)
    assert (never.reached, never.steps) == (False, 20)


def test_end_to_end_compares_every_method_of_one_optimizer():
    settings = end_to_end.settings(quick=True) | {"steps": 500}
    settings |= {"rates": {"adagrad": [0.1, 0.2]}, "jump_rates": {"adagrad": [0.1]}}
    settings |= {"cosine": {"adagrad": [[0.2, 0.0, 500]]}}
    results = computed(end_to_end, settings)
    plain = results["adagrad/plain"]
    assert plain["rate"] == min(plain["medians"], key=plain["medians"].get)
    assert set(plain["averages"]) == {"EMA 0.9", "EMA 0.99", "LAWA"}
    own = results["adagrad/koopcore"]
    assert min(own["factors"]) > 1
    for factor, steps, run in zip(own["factors"], plain["steps"], own["runs"], strict=True):
        assert factor == pytest.approx(steps / run["steps"])
    assert 0 < results["adagrad/same time"]["ratios"]["0.3"][0] < 1
    assert results["adagrad/cosine"]["rate"] == "0.2, cosine 500"
    assert min(results["adagrad/koopcore, cosine"]["factors"]) > 1
    for cost, steps, run in zip(end_to_end.costs(own), plain["steps"], own["runs"], strict=True):
        assert cost == pytest.approx(steps / (run["steps"] + run["evaluations"] / 3))
    squares = results["adagrad/residuals"]
    assert min(squares["factors"]) > 1
    for precision in ("float32", "float64"):
        rival = results[f"adagrad/L-BFGS {precision}"]
        assert min(rival["factors"]) > 1
        assert rival["factors"][0] == pytest.approx(plain["steps"][0] / rival["evaluations"][0])
    assert end_to_end.table(results, settings) is not None


def test_a_pace_is_a_rate_or_a_rate_with_its_decay():
    found = end_to_end.paces([0.2, [0.06, 1e-4], [0.1, 0.0, 1000.0]])
    assert found == [(0.2, 0.0, 0), (0.06, 1e-4, 0), (0.1, 0.0, 1000)]
    assert [str(pace) for pace in found] == ["0.2", "0.06, decay 0.0001", "0.1, cosine 1,000"]
    assert [found[2].at(step) for step in (0, 500, 1000, 2000)] == pytest.approx([0.1, 0.05, 0, 0])


def test_a_decaying_run_takes_the_steps_of_a_descent_with_that_decay():
    problem = OscillatorBatch(1, 3, dtype=torch.float64)
    descent = Descent(problem, "adam", rate=0.05, decay=0.01)
    expected = descent.advance(30).losses[:, 0].tolist()
    model = end_to_end.OscillatorNetwork(problem, 0)
    stepper = torch.optim.Adam(model.parameters(), lr=0.05)
    reached, steps, loss = end_to_end.descend(model, stepper, -math.inf, 30, Pace(0.05, 0.01))
    assert (reached, steps) == (False, 30)
    assert loss == pytest.approx(expected[-1], rel=1e-9)  # the same operations in another batch


def test_where_an_average_reaches_its_target():
    curve = np.array([[3.0, 3.0], [2.0, 3.0], [1.0, 3.0]])
    found = end_to_end.first_below(curve, np.array([2.0, 2.0]), 10)
    assert found.tolist() == [20.0, math.inf]
    kept = end_to_end.lowest(np.array([[2.0], [np.nan], [1.0], [4.0]]))
    assert kept.ravel().tolist() == [2.0, 2.0, 1.0, 1.0]
