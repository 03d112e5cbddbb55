"""From the iterate that was kept to a learned operator: last solve for K, and the read-out."""

from __future__ import annotations

from typing import Any

from koopcore.backends.stages import FloatArray
from koopcore.learning.exact_step import exact_operator
from koopcore.learning.history import Tracker
from koopcore.learning.learned_operator import LearnedOperator
from koopcore.learning.readout import check_readout, fit_readout
from koopcore.learning.trajectories import Pairs


def assemble(
    learner: Any, data: Pairs, kept: Tracker, shift: FloatArray, scale: FloatArray
) -> LearnedOperator:
    """The operator of a tracker's iterate under a learner's dictionary, read-out and polish."""
    parameters, operator = kept.parameters, kept.operator
    if parameters is None or operator is None:
        raise ValueError("there is no iterate to assemble an operator from")
    dictionary = learner.dictionary
    features = dictionary.features(parameters, data.states)
    if learner.polish:
        operator = exact_operator(features, data, learner.ridge)
    kind = check_readout(learner.readout, dictionary)
    readout = fit_readout(dictionary, features, data.states, kind)
    return LearnedOperator(dictionary, parameters, operator, readout, shift, scale)
