"""Fitted operators of many groups at once, one kind a file: how each predicts, and its spectrum.

Every kind has the members of `GroupFit` (its groups and their diagnostics) and, but for
`DeferredFit`, the methods ``write`` (predictions into an array), ``growth``, ``eigenvalues``,
``modes``, ``operator``.
"""

from koopcore.fitted.companion import CompanionFit
from koopcore.fitted.feature import DeferredFit, FeatureFit
from koopcore.fitted.projected import ProjectedFit
from koopcore.fitted.scaled import ScaledFit
from koopcore.fitted.trend import TrendFit

Fitted = CompanionFit | FeatureFit | ProjectedFit | ScaledFit | TrendFit

__all__ = [
    "CompanionFit",
    "DeferredFit",
    "FeatureFit",
    "Fitted",
    "ProjectedFit",
    "ScaledFit",
    "TrendFit",
]
