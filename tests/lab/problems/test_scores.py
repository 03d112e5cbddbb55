"""Equivalent steps and error ratio on curves whose answer is known."""

import numpy as np
import pytest

from koopcore.lab.problems.scores import equivalent_steps, error_ratio

FALLING = [10.0, 8.0, 6.0, 4.0, 2.0]
DIPPING = [10.0, 4.0, 9.0, 3.0, 5.0]
CASES = {
    "the loss after 3 steps is worth 3": (FALLING, 4.0, 3.0),
    "between two steps is interpolated": (FALLING, 7.0, 1.5),
    "the end of the curve": (FALLING, 2.0, 4.0),
    "better than the end is a lower bound": (FALLING, 1.0, 4.0),
    "no better than the start is worth nothing": (FALLING, 10.0, 0.0),
    "worse than the start is worth nothing": (FALLING, 11.0, 0.0),
    "a little better than the start": (FALLING, 9.0, 0.5),
    "a prediction that blew up": (FALLING, np.inf, 0.0),
    "a prediction that is not a number": (FALLING, np.nan, 0.0),
    "the first crossing counts": (DIPPING, 4.0, 1.0),
    "below the first dip": (DIPPING, 3.0, 3.0),
}


@pytest.mark.parametrize(("curve", "reached", "steps"), CASES.values(), ids=CASES)
def test_equivalent_steps(curve, reached, steps):
    assert equivalent_steps(curve, reached).tolist() == pytest.approx([steps])


def test_networks_are_scored_independently():
    curves, reached, steps = zip(*CASES.values(), strict=True)
    got = equivalent_steps(np.array(curves).T, reached)
    assert got.tolist() == pytest.approx(list(steps))


def test_ordinary_training_scores_its_own_number_of_steps():
    curve = np.exp(-np.linspace(0, 3, 101))[:, None] * [1.0, 5.0]
    for step in (1, 50, 100):
        assert equivalent_steps(curve, curve[step]) == pytest.approx([step, step])


def test_curves_and_targets_must_be_of_as_many_networks():
    with pytest.raises(ValueError, match="losses has 2 networks and reached has 3"):
        equivalent_steps(np.ones((4, 2)), np.ones(3))


def test_error_ratio_is_relative_to_the_true_movement():
    before = np.zeros((2, 4))
    true = np.array([[1.0, 2.0, 4.0, 8.0], [1.0, 1.0, 1.0, 1.0]])
    assert error_ratio(true, true, before).tolist() == [0.0, 0.0]
    assert error_ratio(before, true, before).tolist() == [1.0, 1.0]  # predicting no motion
    assert error_ratio(1.1 * true, true, before) == pytest.approx([0.1, 0.1])
    assert error_ratio(true + 0.1, true, before)[0] == pytest.approx(0.0375)


def test_weights_that_did_not_move_are_left_out():
    before = np.array([[0.0, 0.0, 5.0]])
    true = np.array([[1.0, 1.0, 5.0]])
    predicted = np.array([[1.2, 1.2, 9.0]])
    assert error_ratio(predicted, true, before) == pytest.approx([0.2])
    assert np.isnan(error_ratio(predicted, before, before)).all()
