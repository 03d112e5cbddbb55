"""The tables of dictionaries of one size: what is compared, on what data, and how it is shown."""

import json

import numpy as np
import pytest

from koopcore.lab.experiment import run
from koopcore.lab.experiments import dictionaries

SETTINGS = dictionaries.settings(quick=True)


@pytest.mark.parametrize("name", dictionaries.PROBLEMS)
def test_methods_of_a_problem_have_equal_sizes_and_predict_what_is_held_out(name):
    problem = dictionaries.PROBLEMS[name]
    given = dictionaries.data(problem, SETTINGS, 3)
    n = given.true.shape[2]
    assert given.true.shape[1] == problem.horizon
    for method in dictionaries.METHODS:
        dictionary, depth = dictionaries._dictionary(method, problem, given, 3)
        assert dictionary.n_states == n * depth
        assert depth <= given.past.shape[1]
        # Delays and monomials come in steps; none has more features than the learned one, but for
        # one constant.
        assert problem.n_features - n <= dictionary.n_features <= problem.n_features
    rows = np.concatenate(given.train)
    for start in given.past[:, -1]:  # no start was learned from
        assert np.abs(rows - start).max(axis=1).min() > 0.0


def test_noise_is_on_what_is_seen_and_not_on_what_is_asked():
    clean, noisy = (
        dictionaries.data(dictionaries.PROBLEMS[name], SETTINGS, 0)
        for name in ("lorenz-63", "lorenz-63 noisy")
    )
    np.testing.assert_array_equal(noisy.true, clean.true)
    for seen, true in ((noisy.past, clean.past), (noisy.train[0], clean.train[0])):
        assert np.std(seen - true) == pytest.approx(0.02, rel=0.2)


def test_an_error_of_one_is_predicting_the_mean():
    true = np.random.default_rng(0).standard_normal((5, 7, 2))
    assert dictionaries.errors(np.zeros_like(true), true) == {"one_step": 1.0, "multi_step": 1.0}
    wild = np.full_like(true, np.inf)
    assert dictionaries.errors(wild, true)["multi_step"] == np.inf


def test_a_problem_and_the_objective_are_compared_and_printed(tmp_path, capsys):
    for only in ("van-der-pol/*", "objective/*"):
        path = run("dictionaries", quick=True, output=tmp_path, only=only)
    results = json.loads(path.read_text())["results"]
    row = results["van-der-pol/1000"]
    assert set(dictionaries.METHODS) <= set(row)
    # Measured: 0.028 and 0.091, after 24 iterations.
    assert row["learned"]["multi_step"] < 0.7 * row["random"]["multi_step"]
    found = results["objective/1000"]
    # How far it comes in the same time depends on what else runs.
    assert found["projection_in_the_end"] < 0.1 * found["alternating"]
    printed = capsys.readouterr().out
    assert "random W, one exact K" in printed
    assert "F on Duffing, 16 features" in printed
