"""Data that learners take: pairs of several trajectories, units, and what is refused."""

import numpy as np
import pytest
from learning_cases import rotation

from koopcore.learning import AlternatingLearner, Monomials, OneLayer


def test_several_trajectories_are_never_paired_across_their_ends():
    x = rotation()
    jump = [x[:20], x[40:], x[10:12]]
    learner = AlternatingLearner(Monomials(2, 1), k_step="exact", n_iterations=1).fit(jump)
    angle = 0.3
    turn = 0.98 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # An exactly linear system: a pair across two trajectories would be far off.
    np.testing.assert_allclose(learner.operator_.operator, turn, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([rotation(), rotation()[:, :1]], "trajectory 1 has 1 states a row; .* takes 2"),
        (rotation()[:1], "trajectory 0 has 1 row; at least 2"),
        ([rotation(), rotation()[:0]], "trajectory 1 has 0 rows"),
        (
            np.where(rotation() > 0.9, np.nan, rotation()),
            "row 0, state 0 is nan; nothing was learned",
        ),
        ([rotation(), np.full((3, 2), np.inf)], "trajectory 1 is not finite"),
        (np.ones((9, 2)), "no trajectory ever changes"),
        ([], "no trajectory was given"),
        (np.ones((2, 2, 2, 2)), "shape"),
    ],
)
def test_data_that_cannot_be_learned_from_say_why(data, message):
    with pytest.raises(ValueError, match=message):
        AlternatingLearner(OneLayer(2, 3, bias=None)).fit(data)


def test_states_without_a_scale_cannot_be_standardized():
    data = np.hstack([rotation(), np.full((len(rotation()), 1), 3.0)])
    with pytest.raises(ValueError, match=r"states \[2\] never change"):
        AlternatingLearner(OneLayer(3, 3, bias=None), standardize=True).fit(data)
