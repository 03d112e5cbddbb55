"""Hindcast selection: which model and ridge would have predicted the end of the window best."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from koopcore.backends.protocol import Backend, Snapshots
from koopcore.fitted import Fitted
from koopcore.types import IntArray

ROUNDING = 1e-8
"""Hindcast errors below this, √u, are rounding (they are roots of float64 differences): equal."""


CREDIBLE_GROWTH = 2.0**53
"""1/u: a mode that grows by more over the window was below rounding when the window began.

Nothing in the snapshots tells it from rounding. In windows of 10,000 snapshots that is an
eigenvalue of 1.004, in windows of 16 one of 10.
"""


class Candidate(NamedTuple):
    """One way to fit: a model of `koopcore.fit`, and its ridge."""

    model: str
    ridge: float


def candidates(n: int, rank: int | None, ridge: float) -> list[Candidate]:
    """What ``model="auto"`` tries on a window of n snapshots; a rank or ridge given stays fixed.

    Simplest first, as ties go to the earlier: a straight line is no operator's to explain, and the
    affine model has the eigenvalue 1 exactly where the linear one estimates it.

    Ridges bracket the noise of float32 snapshots (1e-9 and 1e-5 of the mean diagonal).
    """
    ridges = (0.0, 1e-9, 1e-5) if rank is None and ridge == 0.0 else (ridge,)
    models = ["affine"] * (n >= 3) + ["linear"] * (n >= 2)
    tried = [Candidate(model, value) for model in models for value in ridges]
    return [Candidate("trend", 0.0), *tried]


def best_of(
    tried: list[list[Fitted]],
    groups: IntArray,
    n: int,
    backend: Backend,
    snapshots: Snapshots,
) -> list[Fitted]:
    """Of fits of the same ``groups`` by several candidates, each group's best by hindcast.

    Those that grow beyond `CREDIBLE_GROWTH` over n snapshots come last. Ties to rounding, and
    windows too short for a hindcast, go to the earlier candidate. Groups that moved, but not in the
    ``snapshots`` held out, whose hindcast says nothing, go to the first that is no trend.
    """
    errors = np.full((len(tried), len(groups)), np.inf)
    for row, fits in enumerate(tried):
        for fit in fits:
            positions = np.searchsorted(groups, fit.groups)
            grows = fit.growth([n], backend)[0] > CREDIBLE_GROWTH  # NaN where nothing moves on
            known = ~np.isnan(fit.hindcast) & ~grows
            errors[row, positions] = np.where(known, fit.hindcast, np.inf)
            if fit.model == "trend":
                errors[row, positions[fit.resting(snapshots, backend)]] = np.inf
    best = np.maximum(errors, ROUNDING).argmin(axis=0)
    chosen = []
    for row, fits in enumerate(tried):
        for fit in fits:
            keep = np.flatnonzero(best[np.searchsorted(groups, fit.groups)] == row)
            if keep.size:
                chosen.append(fit.select(keep))
    return chosen
