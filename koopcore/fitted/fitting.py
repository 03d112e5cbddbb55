"""From checked snapshots to fitted groups: which side, which model, and what has no full rank."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from koopcore.backends import find, stage
from koopcore.backends.protocol import Ahead, Companion, Snapshots
from koopcore.checks import raise_non_finite
from koopcore.fitted import CompanionFit, DeferredFit, FeatureFit, Fitted, ProjectedFit, TrendFit
from koopcore.fitted.base import holdout_of
from koopcore.fitted.feature import feature_stops
from koopcore.fitted.selection import best_of, candidates
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray


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
        """The groups at these ascending positions."""
        if len(positions) == self.part.n_groups:
            return self
        return Groups(self.part.subset(positions), self.numbers[positions])


def fit_groups(
    snapshots: Snapshots, part: Partition, recipe: Recipe, ahead: Ahead | None = None
) -> list[Fitted | DeferredFit]:
    """Fits of all groups. A group whose Gram matrix overflows float64 is in none of them.

    Groups with m >= n - 1 are fitted on the snapshot side, smaller ones on the feature side. With
    ``ahead`` the endpoints of all fitted groups are written, fused with the fit where a backend
    can.
    """
    fitting = _Fitting(snapshots, part, recipe, ahead)
    fits = fitting.fits()
    if ahead is not None:
        for fit in fits:
            if not any(fit is done for done in fitting.predicted):
                assert not isinstance(fit, DeferredFit)
                fit.write(snapshots, ahead.horizons, ahead.out, recipe.on)
    return fits


class _Fitting:
    """One call of `fit_groups`: what all its steps share."""

    def __init__(
        self, snapshots: Snapshots, part: Partition, recipe: Recipe, ahead: Ahead | None
    ) -> None:
        self.snapshots = snapshots
        self.part = part
        self.recipe = recipe
        self.ahead = ahead
        self.predicted: list[Fitted | DeferredFit] = []  # fits whose endpoints are written already
        self.n = len(snapshots.order)
        self.holdout = holdout_of(self.n)

    def fits(self) -> list[Fitted | DeferredFit]:
        fits: list[Fitted | DeferredFit] = []
        for numbers, part in self.part.by_size(self.n - 1):
            groups = Groups(part, numbers)
            if part.smallest >= self.n - 1:
                fits += self.snapshot_side(groups)
                continue
            with np.errstate(over="ignore", invalid="ignore"):  # looked for and reported
                fits += self.feature_side(groups)
        return fits

    def snapshot_side(self, groups: Groups) -> list[Fitted]:
        fused = find("gram_solve", backend=self.recipe.on)
        if fused is not None and self.recipe.full_rank:
            solved: Companion = fused(
                self.snapshots, groups.part, self.recipe.affine, self.holdout, self.ahead
            )
            if math.isfinite(solved.coefficients.sum()):
                return self.by_rank(groups, self.recipe, solved, None)
        gram = stage("gram", backend=self.recipe.on)(self.snapshots, groups.part)
        groups, gram = self.finite(groups, gram)
        if groups.part.n_groups == 0:
            return []
        if self.recipe.model != "auto":
            return self.from_gram(groups, self.recipe, gram)
        tried = [
            self.from_gram(groups, self.recipe._replace(model=c.model, ridge=c.ridge), gram)
            for c in candidates(self.n, self.recipe.rank, self.recipe.ridge)
        ]
        return best_of(tried, groups.numbers)

    def from_gram(self, groups: Groups, recipe: Recipe, gram: FloatArray) -> list[Fitted]:
        if recipe.model == "trend":
            return [TrendFit.of_gram(*groups, gram, self.n, self.holdout)]
        if not recipe.full_rank:
            return [self.projected(groups, recipe, gram)]
        solved: Companion = stage("solve", backend=recipe.on)(
            gram, self.n, recipe.affine, self.holdout
        )
        return self.by_rank(groups, recipe, solved, gram)

    def by_rank(
        self, groups: Groups, recipe: Recipe, solved: Companion, gram: FloatArray | None
    ) -> list[Fitted]:
        """Companion fits where the rank is full, projected ones elsewhere.

        Without ``gram`` the fit was fused, and has written its endpoints.
        """
        columns = solved.coefficients.shape[1]
        fit = CompanionFit.of(*groups, recipe.affine, solved)
        if int(solved.rank.min()) == columns:
            if gram is None:
                self.predicted.append(fit)
            return [fit]
        full = solved.rank == columns
        fits: list[Fitted] = [fit.select(np.flatnonzero(full))] if full.any() else []
        if gram is None:
            self.predicted += fits
        short = np.flatnonzero(~full)
        deficient = groups.at(short)
        if gram is None:
            own = stage("gram", backend=recipe.on)(self.snapshots, deficient.part)
            deficient, own = self.finite(deficient, own)
        else:
            own = gram[short]
        return [*fits, self.projected(deficient, recipe, own)] if len(own) else fits

    def projected(self, groups: Groups, recipe: Recipe, gram: FloatArray) -> ProjectedFit:
        return ProjectedFit.of(
            *groups,
            gram,
            self.n,
            recipe.affine,
            recipe.rank,
            recipe.ridge,
            self.holdout,
            recipe.on,
        )

    def feature_side(self, groups: Groups) -> list[Fitted | DeferredFit]:
        """Groups of one size m < n - 1."""
        recipe = self.recipe
        fused = find("feature_fit", backend=recipe.on)
        if fused is not None and recipe.full_rank and self.snapshots.array.dtype == np.float32:
            options = recipe.affine, self.holdout
            solved = fused(self.snapshots, groups.part, *options, self.ahead)
            if math.isfinite(solved.residual.sum()):
                if self.ahead is None:
                    return [FeatureFit.of_solved(*groups, recipe.affine, solved)]
                deferred = DeferredFit.of(*groups, recipe.affine, solved, self.holdout)
                self.predicted.append(deferred)
                return [deferred]

        known = {recipe.affine: self.moments(groups, recipe.affine)}
        if not math.isfinite(known[recipe.affine].sum()):
            by_group = np.moveaxis(known.pop(recipe.affine), 1, 0).reshape(groups.part.n_groups, -1)
            groups, _ = self.finite(groups, by_group)
            if groups.part.n_groups == 0:
                return []

        def fitted(model: str, ridge: float) -> Fitted:
            if model == "trend":
                return TrendFit.of_values(self.snapshots, *groups, self.holdout, recipe.on)
            affine = model == "affine"
            if affine not in known:
                known[affine] = self.moments(groups, affine)
            return FeatureFit.of(
                self.snapshots,
                *groups,
                affine,
                known[affine],
                recipe.rank,
                ridge,
                self.holdout,
                recipe.on,
            )

        if recipe.model != "auto":
            return [fitted(recipe.model, recipe.ridge)]
        tried = [[fitted(c.model, c.ridge)] for c in candidates(self.n, recipe.rank, recipe.ridge)]
        return [*best_of(tried, groups.numbers)]

    def moments(self, groups: Groups, affine: bool) -> FloatArray:
        stops = feature_stops(self.n, affine, self.holdout)
        result: FloatArray = stage("feature_gram", backend=self.recipe.on)(
            self.snapshots, groups.part, affine, stops
        )
        return result

    def finite(self, groups: Groups, moments: FloatArray) -> tuple[Groups, FloatArray]:
        """The groups whose moments are finite; an error where a snapshot itself is not."""
        finite = np.isfinite(moments).all(axis=1)
        if finite.all():
            return groups, moments
        # In the caller's partition: its group numbers, and its first snapshot.
        raise_non_finite(self.snapshots, self.part)
        keep = np.flatnonzero(finite)
        return groups.at(keep), moments[keep]
