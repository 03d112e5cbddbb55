"""Koopman operators of nonlinear systems, learned together with their dictionary of observables.

After Liu, Ding, Chen, Yeung, Towards Scalable Koopman Operator Learning (ACC 2020): alternating
on one machine, distributed over workers that each see a part of the state, and asynchronous.
Torch is imported by `TorchDictionary`, `MinibatchLearner` and the ranks of `DistributedLearner`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from koopcore.learning.dictionaries.blocks import Blocks
from koopcore.learning.dictionaries.fixed import Monomials, RadialBasis
from koopcore.learning.dictionaries.layered import Layered
from koopcore.learning.dictionaries.one_layer import OneLayer
from koopcore.learning.dictionaries.protocol import Dictionary
from koopcore.learning.dictionaries.state_inclusive import StateInclusive
from koopcore.learning.learned_operator import LearnedOperator, PredictionErrors, prediction_errors
from koopcore.learning.learners.alternating import AlternatingLearner
from koopcore.learning.learners.divergence import DivergenceWarning
from koopcore.learning.learners.history import History
from koopcore.learning.learners.step_sizes import Diminishing, lemma_k, lemma_w, lipschitz_k
from koopcore.learning.learners.variable_projection import VariableProjectionLearner
from koopcore.learning.objective import simultaneous_step
from koopcore.learning.persistence import load, load_parts, save
from koopcore.learning.workers.asynchronous import AsynchronousLearner
from koopcore.learning.workers.distributed import DistributedLearner
from koopcore.learning.workers.supervisor import WorkerError

if TYPE_CHECKING:
    from koopcore.learning.dictionaries.torch import TorchDictionary as TorchDictionary
    from koopcore.learning.learners.minibatches import MinibatchLearner as MinibatchLearner

__all__ = [
    "AlternatingLearner",
    "AsynchronousLearner",
    "Blocks",
    "Dictionary",
    "Diminishing",
    "DistributedLearner",
    "DivergenceWarning",
    "History",
    "Layered",
    "LearnedOperator",
    "MinibatchLearner",
    "Monomials",
    "OneLayer",
    "PredictionErrors",
    "RadialBasis",
    "StateInclusive",
    "TorchDictionary",
    "VariableProjectionLearner",
    "WorkerError",
    "lemma_k",
    "lemma_w",
    "lipschitz_k",
    "load",
    "load_parts",
    "prediction_errors",
    "save",
    "simultaneous_step",
]

_TORCH = {
    "MinibatchLearner": "koopcore.learning.learners.minibatches",
    "TorchDictionary": "koopcore.learning.dictionaries.torch",
}


def __getattr__(name: str) -> Any:
    if name in _TORCH:
        return getattr(import_module(_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
