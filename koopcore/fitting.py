"""From checked snapshots to fitted groups: which side, which model, and what has no full rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from koopcore.backends import find, stage
from koopcore.backends.stages import Companion, FloatArray, IntArray, Snapshots
from koopcore.checks import raise_non_finite
from koopcore.fitted import CompanionFit, FeatureFit, Fitted, ProjectedFit, TrendFit
from koopcore.fitted.base import holdout_of
from koopcore.fitted.feature import feature_stops
from koopcore.partition import Partition
from koopcore.selection import best_of, candidates


class Recipe(NamedTuple):
    """How to fit: the checked arguments of `koopcore.fit`."""

    model: str
    rank: int | None
    ridge: float
    on: str | None  # the forced backend

    @property
    def affine(self) -> bool:
        return self.model == "affine"

    @property
    def full_rank(self) -> bool:
        """Whether companion coefficients can answer, if the columns are independent."""
        return self.model in ("linear", "affine") and self.rank is None and self.ridge == 0.0


class Groups(NamedTuple):
    """Groups of the user's partition: as a partition of their own, and their numbers."""

    part: Partition
    numbers: IntArray

    def at(self, positions: IntArray) -> Groups:
        return Groups(self.part.subset(positions), self.numbers[positions])


def fit_groups(snapshots: Snapshots, part: Partition, recipe: Recipe) -> list[Fitted]:
    """Fits of all groups. A group whose Gram matrix overflows float64 is in none of them.

    Groups with m >= n - 1 are fitted on the snapshot side, smaller ones on the feature side.
    """
    n = len(snapshots.order)
    everything = Groups(part, part.numbers)

    def check() -> None:  # in the caller's partition: its group numbers, and its first snapshot
        raise_non_finite(snapshots, part)

    if part.smallest >= n - 1:
        return _snapshot_side(snapshots, everything, recipe, check)
    fits: list[Fitted] = []
    with np.errstate(over="ignore", invalid="ignore"):  # looked for and reported, not warned of
        wide = np.flatnonzero(part.sizes >= n - 1)
        if wide.size:
            fits += _snapshot_side(snapshots, everything.at(wide), recipe, check)
        for m in np.unique(part.sizes[part.sizes < n - 1]):
            same = np.flatnonzero(part.sizes == m)
            groups = everything if len(same) == part.n_groups else everything.at(same)
            fits += _feature_side(snapshots, groups, recipe, check)
    return fits


def _snapshot_side(
    snapshots: Snapshots, groups: Groups, recipe: Recipe, check: Callable[[], None]
) -> list[Fitted]:
    fused = find("gram_solve", backend=recipe.on)
    if fused is not None and recipe.full_rank:
        n = len(snapshots.order)
        solved: Companion = fused(snapshots, groups.part, recipe.affine, holdout_of(n))
        if math.isfinite(solved.coefficients.sum()):
            return _by_rank(snapshots, groups, recipe, solved, None, check)
    gram = stage("gram", backend=recipe.on)(snapshots, groups.part)
    groups, gram = _finite(check, groups, gram)
    if groups.part.n_groups == 0:
        return []
    if recipe.model == "auto":
        tried = [
            _from_gram(
                snapshots, groups, recipe._replace(model=c.model, ridge=c.ridge), gram, check
            )
            for c in candidates(len(snapshots.order), recipe.rank, recipe.ridge)
        ]
        return best_of(tried, groups.numbers)
    return _from_gram(snapshots, groups, recipe, gram, check)


def _from_gram(
    snapshots: Snapshots,
    groups: Groups,
    recipe: Recipe,
    gram: FloatArray,
    check: Callable[[], None],
) -> list[Fitted]:
    n = len(snapshots.order)
    if recipe.model == "trend":
        return [TrendFit.of_gram(*groups, gram, n, holdout_of(n))]
    if not recipe.full_rank:
        return [_projected(groups, recipe, gram, n)]
    solved: Companion = stage("solve", backend=recipe.on)(gram, n, recipe.affine, holdout_of(n))
    return _by_rank(snapshots, groups, recipe, solved, gram, check)


def _by_rank(
    snapshots: Snapshots,
    groups: Groups,
    recipe: Recipe,
    solved: Companion,
    gram: FloatArray | None,
    check: Callable[[], None],
) -> list[Fitted]:
    """Companion fits where the rank is full, projected ones elsewhere."""
    n = len(snapshots.order)
    columns = solved.coefficients.shape[1]
    fit = CompanionFit.of(*groups, recipe.affine, solved)
    if int(solved.rank.min()) == columns:
        return [fit]
    full = solved.rank == columns
    fits: list[Fitted] = [fit.select(np.flatnonzero(full))] if full.any() else []
    short = np.flatnonzero(~full)
    deficient = groups.at(short)
    if gram is None:
        own = stage("gram", backend=recipe.on)(snapshots, deficient.part)
        deficient, own = _finite(check, deficient, own)
    else:
        own = gram[short]
    return [*fits, _projected(deficient, recipe, own, n)] if len(own) else fits


def _projected(groups: Groups, recipe: Recipe, gram: FloatArray, n: int) -> ProjectedFit:
    return ProjectedFit.of(
        *groups, gram, n, recipe.affine, recipe.rank, recipe.ridge, holdout_of(n), recipe.on
    )


def _feature_side(
    snapshots: Snapshots, groups: Groups, recipe: Recipe, check: Callable[[], None]
) -> list[Fitted]:
    """Groups of one size m < n - 1."""
    n = len(snapshots.order)
    holdout = holdout_of(n)
    if recipe.full_rank and snapshots.array.dtype == np.float32:
        fit = FeatureFit.fused(snapshots, *groups, recipe.affine, holdout, recipe.on)
        if fit is not None:
            return [fit]

    def moments(affine: bool) -> FloatArray:
        stops = feature_stops(n, affine, holdout)
        result: FloatArray = stage("feature_gram", backend=recipe.on)(
            snapshots, groups.part, affine, stops
        )
        return result

    known = {recipe.affine: moments(recipe.affine)}
    if not math.isfinite(known[recipe.affine].sum()):
        by_group = np.moveaxis(known.pop(recipe.affine), 1, 0).reshape(groups.part.n_groups, -1)
        groups, _ = _finite(check, groups, by_group)
        if groups.part.n_groups == 0:
            return []

    def fitted(model: str, ridge: float) -> Fitted:
        if model == "trend":
            return TrendFit.of_values(snapshots, *groups, holdout, recipe.on)
        affine = model == "affine"
        if affine not in known:
            known[affine] = moments(affine)
        return FeatureFit.of(
            snapshots, *groups, affine, known[affine], recipe.rank, ridge, holdout, recipe.on
        )

    if recipe.model != "auto":
        return [fitted(recipe.model, recipe.ridge)]
    tried = [[fitted(c.model, c.ridge)] for c in candidates(n, recipe.rank, recipe.ridge)]
    return best_of(tried, groups.numbers)


def _finite(
    check: Callable[[], None], groups: Groups, moments: FloatArray
) -> tuple[Groups, FloatArray]:
    """The groups whose moments are finite; an error where a snapshot itself is not."""
    finite = np.isfinite(moments).all(axis=1)
    if finite.all():
        return groups, moments
    check()
    keep = np.flatnonzero(finite)
    return groups.at(keep), moments[keep]
