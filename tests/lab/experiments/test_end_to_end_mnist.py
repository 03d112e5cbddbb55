"""MNIST end to end: the runs are the same but for the jumps, and are scored by what they reach."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from koopcore.lab.experiment import Context
from koopcore.lab.experiments import end_to_end_mnist as experiment
from koopcore.lab.problems import mnist


@pytest.fixture(scope="module")
def digits():
    return mnist.load()


def small(**changes):
    """Settings of runs that take a second."""
    chosen = experiment.settings(quick=True)
    chosen |= {"steps": 60, "judge": 200, "check": 200, "seeds": [1], "tuning": [2], "probe": 5}
    chosen |= {"problem": "mnist", "batch": 64, "lawa": [[2, 20]]}
    chosen["problems"] = {"mnist": {"rates": {"sgd": [0.1, 0.2]}}}
    chosen["attach"]["line"] |= {"window": 4, "stride": 10}
    return chosen | changes


def test_the_yardstick_judges_by_digits_that_nothing_decides_by(digits):
    model = mnist.network(0)
    judge = experiment.Yardstick(digits, check=100, judge=50)
    validation, training = judge(model)
    assert validation == round(mnist.validation_loss(model, digits), 4)
    own = slice(100, 150)
    with torch.no_grad():
        output = model(digits.inputs[own])
    expected = float(torch.nn.functional.cross_entropy(output, digits.labels[own]))
    assert training == round(expected, 4)


def test_an_attachment_that_never_jumps_trains_like_plain_training(digits):
    chosen = small(lawa=[], ema=[0.9])
    plain, weights = experiment.plain_run(chosen, digits, "sgd", 0.2, 1)
    options = {"warmup": 10_000, "averages": 0.9}
    run, totals = experiment.jumping_run(chosen, digits, "sgd", 0.2, 1, options)
    assert run["weights"] == plain["plain"]
    assert totals["weights"] == weights
    assert (totals["jumps"], totals["accepted"]) == (0, 0)
    # A young average of a family forgets its beginning sooner, and then at the same pace.
    own, each_step = np.array(run["averaged"]), np.array(plain["EMA 0.9"])
    np.testing.assert_allclose(own[1:], each_step[1:], rtol=0.15)
    assert np.all(np.diff(totals["seconds_at"]) > 0)


def test_averages_are_those_of_the_weights_seen(digits):
    chosen = small(steps=40, ema=[0.0])
    run, weights = experiment.plain_run(chosen, digits, "adam", 0.004, 3)
    assert set(run) == {"plain", "EMA 0", "LAWA 2 x 20"}
    assert run["EMA 0"] == run["plain"]  # no memory
    assert run["LAWA 2 x 20"][0] == run["plain"][0]  # one snapshot so far
    assert run["LAWA 2 x 20"][1] != run["plain"][1]
    alone, same = experiment.plain_run(chosen, digits, "adam", 0.004, 3, averages=False)
    assert set(alone) == {"plain"}
    assert same == weights
    _, other = experiment.plain_run(chosen, digits, "adam", 0.004, 4, averages=False)
    assert other != weights


def test_the_first_step_at_which_a_target_is_reached():
    curves = [[[3.0, 9.0], [1.0, 8.0], [2.0, 7.0]], [[5.0, 5.0], [5.0, 5.0], [math.nan, 5.0]]]
    targets = np.array([[1.5, 7.0], [1.0, 5.0]])
    assert experiment.first_steps(curves, targets, 20).tolist() == [[40.0, 60.0], [math.inf, 20.0]]


def test_in_the_same_time_a_dearer_run_comes_less_far():
    losses = np.linspace(1.0, 0.5, 20)[:, None].repeat(2, 1)
    curves = {"plain": losses[None], experiment.BESIDE: 0.9 * losses[None]}
    (free,) = experiment._same_time(curves, [0.99])
    assert free == pytest.approx([0.9, 0.9])
    (dear,) = experiment._same_time(curves, [1.25])
    assert dear == pytest.approx([0.9 * losses[14:16].mean() / losses[18:].mean()] * 2)


def test_every_method_of_one_optimizer_is_compared():
    settings = small(steps=200)
    results = {}
    ticks = []
    for cell in experiment.cells(settings):
        ticks.clear()
        results[cell.name] = cell.work(Context(lambda: ticks.append(1), results, Path()))
        assert 0 < len(ticks) <= cell.ticks
    plain = results["mnist/sgd/plain"]
    for rate, beside in plain["beside"].items():
        assert beside["identical"] == [True], rate
        assert np.shape(beside["ratio"]) == (1, len(experiment.LOSSES))
    for loss in experiment.LOSSES:
        own = plain[loss]
        assert own["rivals"]["plain"]["factors"] == [1.0]
        assert len(own["rivals"][experiment.BESIDE]["factors"]) == 1
        assert str(own["rate"]) == min(own["medians"], key=own["medians"].get)
        for method in experiment.METHODS:
            scores = results[f"mnist/sgd/{method}"][loss]
            assert scores["rate"] in settings["problems"]["mnist"]["rates"]["sgd"]
            (factor,), (clock,) = scores["factors"], scores["seconds_factors"]
            assert (factor > 0) == (clock > 0)
            if factor:
                assert own["steps"][0] / factor % 20 == 0  # a whole number of evaluations
    assert experiment.table(results, settings) is not None
    assert len(experiment.picture(results, settings).axes) == 1
