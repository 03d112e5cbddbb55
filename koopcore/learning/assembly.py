"""From the iterate that was kept to a learned operator: last solve for K, and the read-out."""

from __future__ import annotations

from koopcore.learning.estimator import Learner
from koopcore.learning.exact_step import exact_operator
from koopcore.learning.learned_operator import LearnedOperator
from koopcore.learning.readout import check_readout, fit_readout
from koopcore.learning.trajectories import Scaled
from koopcore.types import FloatArray


def assemble(
    learner: Learner, scaled: Scaled, parameters: FloatArray, operator: FloatArray
) -> LearnedOperator:
    """The operator of an iterate (θ, K) under a learner's dictionary, read-out and polish."""
    dictionary, data = learner.dictionary, scaled.data
    features = dictionary.features(parameters, data.states)
    if learner.polish:
        operator = exact_operator(features, data, learner.ridge)
    kind = check_readout(learner.readout, dictionary)
    readout = fit_readout(dictionary, features, data.states, kind)
    return LearnedOperator(dictionary, parameters, operator, readout, scaled.shift, scaled.scale)
