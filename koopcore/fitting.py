"""From checked snapshots to fitted groups: which side, which model, and what has no full rank."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from koopcore.backends import find, stage
from koopcore.backends.stages import Companion, FloatArray, IntArray, Snapshots
from koopcore.checks import raise_non_finite
from koopcore.fitted import CompanionFit, FeatureFit, Fitted, ProjectedFit, TrendFit
from koopcore.fitted.base import holdout_of
from koopcore.fitted.feature import feature_stops
from koopcore.partition import Partition
from koopcore.selection import best_of, candidates


def fit_groups(
    snapshots: Snapshots,
    part: Partition,
    model: str,
    rank: int | None,
    ridge: float,
    on: str | None,
) -> list[Fitted]:
    """Fits of all groups. A group whose Gram matrix overflows float64 is in none of them.

    Groups with m >= n - 1 are fitted on the snapshot side, smaller ones on the feature side.
    """
    n = len(snapshots.order)
    narrow = part.sizes < n - 1
    fits: list[Fitted] = []

    def check() -> None:  # in the caller's partition: its group numbers, and its first snapshot
        raise_non_finite(snapshots, part)

    with np.errstate(over="ignore", invalid="ignore"):  # looked for and reported, not warned of
        if not narrow.all():
            wide = part if not narrow.any() else part.subset(np.flatnonzero(~narrow))
            fits += _snapshot_side(
                snapshots, wide, np.flatnonzero(~narrow), model, rank, ridge, on, check
            )
        for m in np.unique(part.sizes[narrow]):
            groups = np.flatnonzero(part.sizes == m)
            same = part if len(groups) == part.n_groups else part.subset(groups)
            fits += _feature_side(snapshots, same, groups, model, rank, ridge, on, check)
    return fits


def _snapshot_side(
    snapshots: Snapshots,
    part: Partition,
    groups: IntArray,
    model: str,
    rank: int | None,
    ridge: float,
    on: str | None,
    check: Callable[[], None],
) -> list[Fitted]:
    n = len(snapshots.order)
    fused = find("gram_solve", backend=on)
    if fused is not None and model in ("linear", "affine") and rank is None and ridge == 0.0:
        solved = fused(snapshots, part, model == "affine", holdout_of(n))
        full = (solved.rank == n - 1 - (model == "affine")).all()
        if full and np.isfinite(solved.coefficients.sum()):
            return [CompanionFit.of(part, groups, model == "affine", solved)]
    gram = stage("gram", backend=on)(snapshots, part)
    part, groups, gram = _finite(check, part, groups, gram)
    if model == "auto":
        tried = [
            _from_gram(snapshots, part, groups, gram, c.model, rank, c.ridge, on)
            for c in candidates(n, rank, ridge)
        ]
        return best_of(tried, groups)
    return _from_gram(snapshots, part, groups, gram, model, rank, ridge, on)


def _from_gram(
    snapshots: Snapshots,
    part: Partition,
    groups: IntArray,
    gram: FloatArray,
    model: str,
    rank: int | None,
    ridge: float,
    on: str | None,
) -> list[Fitted]:
    """Fits from Gram matrices: companion where the rank is full, projected elsewhere."""
    n, affine = len(snapshots.order), model == "affine"
    holdout = holdout_of(n)
    if part.n_groups == 0:
        return []
    if model == "trend":
        return [TrendFit.of_gram(part, groups, gram, n, holdout)]
    if rank is not None or ridge > 0.0:
        return [ProjectedFit.of(part, groups, gram, n, affine, rank, ridge, holdout, on)]
    solved: Companion = stage("solve", backend=on)(gram, n, affine, holdout)
    full = solved.rank == n - 1 - affine
    fits: list[Fitted] = []
    if full.any():
        fit = CompanionFit.of(part, groups, affine, solved)
        fits.append(fit.select(np.flatnonzero(full)))
    if not full.all():
        short = np.flatnonzero(~full)
        fits.append(
            ProjectedFit.of(
                part.subset(short), groups[short], gram[short], n, affine, None, 0.0, holdout, on
            )
        )
    return fits


def _feature_side(
    snapshots: Snapshots,
    part: Partition,
    groups: IntArray,
    model: str,
    rank: int | None,
    ridge: float,
    on: str | None,
    check: Callable[[], None],
) -> list[Fitted]:
    n = len(snapshots.order)
    holdout = holdout_of(n)

    def moments(affine: bool) -> FloatArray:
        gram: FloatArray = stage("feature_gram", backend=on)(
            snapshots, part, affine, feature_stops(n, affine, holdout)
        )
        return gram

    known = {model == "affine": moments(model == "affine")}
    if not np.isfinite(known[model == "affine"].sum()):
        flat = np.moveaxis(known[model == "affine"], 1, 0).reshape(part.n_groups, -1)
        part, groups, _ = _finite(check, part, groups, flat)
        if part.n_groups == 0:
            return []
        known.clear()

    def fitted(name: str, ridge: float) -> Fitted:
        if name == "trend":
            return TrendFit.of_values(snapshots, part, groups, holdout)
        affine = name == "affine"
        if affine not in known:
            known[affine] = moments(affine)
        return FeatureFit.of(
            snapshots, part, groups, affine, known[affine], rank, ridge, holdout, on
        )

    if model != "auto":
        return [fitted(model, ridge)]
    return best_of([[fitted(c.model, c.ridge)] for c in candidates(n, rank, ridge)], groups)


def _finite(
    check: Callable[[], None], part: Partition, groups: IntArray, moments: FloatArray
) -> tuple[Partition, IntArray, FloatArray]:
    """The groups whose moments are finite; an error where a snapshot itself is not."""
    finite = np.isfinite(moments).all(axis=1)
    if finite.all():
        return part, groups, moments
    check()
    keep = np.flatnonzero(finite)
    return part.subset(keep), groups[keep], moments[keep]
