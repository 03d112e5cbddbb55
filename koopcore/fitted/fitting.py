"""From checked snapshots to fitted groups: which side, which model, and what has no full rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from koopcore import arrays
from koopcore.backends.composed import feature_stops
from koopcore.backends.protocol import Ahead, Backend, Companion, Snapshots
from koopcore.checks import raise_non_finite
from koopcore.fitted import CompanionFit, DeferredFit, FeatureFit, Fitted, ProjectedFit, TrendFit
from koopcore.fitted.base import holdout_of
from koopcore.fitted.selection import best_of, candidates
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray


class Recipe(NamedTuple):
    """How to fit: the checked arguments of `koopcore.fit`."""

    model: str
    rank: int | None
    ridge: float

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


class Sides(NamedTuple):
    """Fits of some groups, by whether the backend has written their endpoints already."""

    written: Sequence[Fitted | DeferredFit]
    unwritten: Sequence[Fitted]


def fit_groups(
    snapshots: Snapshots,
    part: Partition,
    recipe: Recipe,
    backend: Backend,
    horizons: Sequence[int] | None = None,
) -> tuple[list[Fitted | DeferredFit], npt.NDArray[Any] | None]:
    """Fits of all groups, and with ``horizons`` their endpoints (n_horizons, size), else None.

    Groups with m >= n - 1 are fitted on the snapshot side, smaller ones on the feature side. A
    group whose Gram matrix overflows float64 is in none of the fits. What no fit predicts keeps
    its last snapshot.
    """
    ahead = None
    if horizons is not None:
        out = arrays.empty((len(horizons), part.size), like=snapshots.array)
        ahead = Ahead(horizons, out)
        if part.n_parameters < part.size:
            out[:] = snapshots.array[snapshots.order[-1]]
    fitting = _Fitting(snapshots, part, recipe, backend, ahead)
    fits: list[Fitted | DeferredFit] = []
    for numbers, groups in part.by_size(fitting.n - 1):
        sides = fitting.fits(Groups(groups, numbers))
        fits += [*sides.written, *sides.unwritten]
        if ahead is not None:
            for fit in sides.unwritten:
                fit.write(snapshots, ahead.horizons, ahead.out, backend)
    if ahead is None:
        return fits, None
    _keep_last_snapshot(snapshots, part, fits, ahead.out)
    return fits, ahead.out


def _keep_last_snapshot(
    snapshots: Snapshots,
    part: Partition,
    fits: Sequence[Fitted | DeferredFit],
    out: npt.NDArray[Any],
) -> None:
    """The last snapshot in the columns of groups without a fit."""
    if sum(len(fit.groups) for fit in fits) == part.n_groups:
        return
    last = snapshots.array[snapshots.order[-1]]
    missing = np.ones(part.n_groups, dtype=np.bool_)
    for fit in fits:
        missing[fit.groups] = False
    for group in np.flatnonzero(missing):
        columns = part.indices(int(group))
        out[:, columns] = last[columns]


class _Fitting:
    """One call of `fit_groups`: what all its steps share."""

    def __init__(
        self,
        snapshots: Snapshots,
        part: Partition,
        recipe: Recipe,
        backend: Backend,
        ahead: Ahead | None,
    ) -> None:
        self.snapshots = snapshots
        self.part = part
        self.recipe = recipe
        self.backend = backend
        self.ahead = ahead
        self.n = len(snapshots.order)
        self.holdout = holdout_of(self.n)

    def fits(self, groups: Groups) -> Sides:
        """Groups of one side: all of m >= n - 1, or all of one m below."""
        if groups.part.smallest >= self.n - 1:
            return self.snapshot_side(groups)
        with np.errstate(over="ignore", invalid="ignore"):  # looked for and reported
            return self.feature_side(groups)

    def snapshot_side(self, groups: Groups) -> Sides:
        recipe = self.recipe
        if recipe.full_rank:
            solved = self.backend.gram_solve(
                self.snapshots, groups.part, recipe.affine, self.holdout, self.ahead
            )
            if math.isfinite(solved.coefficients.sum()):
                full, rest = self.by_rank(groups, recipe, solved)
                return Sides(full, self.without_full_rank(groups, rest))
        gram = self.backend.gram(self.snapshots, groups.part)
        groups, gram = self.finite(groups, gram)
        if groups.part.n_groups == 0:
            return Sides([], [])
        if recipe.model != "auto":
            return Sides([], self.from_gram(groups, recipe, gram))
        tried = [
            self.from_gram(groups, recipe._replace(model=c.model, ridge=c.ridge), gram)
            for c in candidates(self.n, recipe.rank, recipe.ridge)
        ]
        return Sides([], best_of(tried, groups.numbers))

    def from_gram(self, groups: Groups, recipe: Recipe, gram: FloatArray) -> list[Fitted]:
        if recipe.model == "trend":
            return [TrendFit.of_gram(*groups, gram, self.n, self.holdout)]
        if not recipe.full_rank:
            return [self.projected(groups, recipe, gram)]
        solved = self.backend.solve(gram, self.n, recipe.affine, self.holdout)
        full, rest = self.by_rank(groups, recipe, solved)
        if rest is None:
            return full
        return [*full, self.projected(groups.at(rest), recipe, gram[rest])]

    def by_rank(
        self, groups: Groups, recipe: Recipe, solved: Companion
    ) -> tuple[list[Fitted], IntArray | None]:
        """Companion fits where the rank is full, and the positions of the other groups, if any."""
        columns = solved.coefficients.shape[1]
        fit = CompanionFit.of(*groups, recipe.affine, solved)
        if int(solved.rank.min()) == columns:
            return [fit], None
        full = solved.rank == columns
        fits: list[Fitted] = [fit.select(np.flatnonzero(full))] if full.any() else []
        return fits, np.flatnonzero(~full)

    def without_full_rank(self, groups: Groups, positions: IntArray | None) -> list[Fitted]:
        """Projected fits of the groups at ``positions``, whose Gram matrices nobody has."""
        if positions is None:
            return []
        groups = groups.at(positions)
        groups, gram = self.finite(groups, self.backend.gram(self.snapshots, groups.part))
        return [self.projected(groups, self.recipe, gram)] if len(gram) else []

    def projected(self, groups: Groups, recipe: Recipe, gram: FloatArray) -> ProjectedFit:
        return ProjectedFit.of(
            self.snapshots,
            *groups,
            gram,
            recipe.affine,
            recipe.rank,
            recipe.ridge,
            self.holdout,
            self.backend,
        )

    def feature_side(self, groups: Groups) -> Sides:
        """Groups of one size m < n - 1."""
        recipe = self.recipe
        if recipe.full_rank:
            how = recipe.affine, self.holdout
            solved = self.backend.feature_fit(self.snapshots, groups.part, *how, self.ahead)
            if math.isfinite(solved.residual.sum()):
                if solved.projection is None:
                    return Sides([DeferredFit.of(*groups, recipe.affine, solved, self.holdout)], [])
                fit = FeatureFit.of(*groups, recipe.affine, solved)
                return Sides([fit], []) if self.ahead is not None else Sides([], [fit])
        known = {recipe.affine: self.moments(groups, recipe.affine)}
        if not math.isfinite(known[recipe.affine].sum()):
            by_group = np.moveaxis(known.pop(recipe.affine), 1, 0)
            groups, _ = self.finite(groups, by_group.reshape(groups.part.n_groups, -1))
            if groups.part.n_groups == 0:
                return Sides([], [])

        def fitted(model: str, ridge: float) -> Fitted:
            if model == "trend":
                return TrendFit.of_values(self.snapshots, *groups, self.holdout, self.backend)
            affine = model == "affine"
            if affine not in known:
                known[affine] = self.moments(groups, affine)
            solved = self.backend.feature_solve(
                self.snapshots,
                groups.part,
                affine,
                self.holdout,
                known[affine],
                recipe.rank,
                ridge,
            )
            return FeatureFit.of(*groups, affine, solved)

        if recipe.model != "auto":
            return Sides([], [fitted(recipe.model, recipe.ridge)])
        tried = [[fitted(c.model, c.ridge)] for c in candidates(self.n, recipe.rank, recipe.ridge)]
        return Sides([], best_of(tried, groups.numbers))

    def moments(self, groups: Groups, affine: bool) -> FloatArray:
        stops = feature_stops(self.n, affine, self.holdout)
        return self.backend.feature_gram(self.snapshots, groups.part, affine, stops)

    def finite(self, groups: Groups, moments: FloatArray) -> tuple[Groups, FloatArray]:
        """The groups whose moments are finite; an error where a snapshot itself is not."""
        finite = np.isfinite(moments).all(axis=1)
        if finite.all():
            return groups, moments
        # In the caller's partition: its group numbers, and its first snapshot.
        raise_non_finite(self.snapshots, self.part)
        keep = np.flatnonzero(finite)
        return groups.at(keep), moments[keep]
