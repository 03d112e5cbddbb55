"""From checked snapshots to fitted groups: which side, which model, and what has no full rank."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from koopcore import arrays
from koopcore.backends.composed import feature_stops
from koopcore.backends.protocol import (
    Ahead,
    Backend,
    Companion,
    FeatureSolved,
    Projection,
    Snapshots,
    WholeCompanion,
    out_of_range,
)
from koopcore.checks import raise_non_finite
from koopcore.fitted import CompanionFit, DeferredFit, FeatureFit, Fitted, ProjectedFit, TrendFit
from koopcore.fitted.base import holdout_of
from koopcore.fitted.scaled import ScaledFit, ScaledWindow
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

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are tried."""
        return ("affine", "linear") if self.model == "auto" else (self.model,)


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

    Groups with m >= n - 1 are fitted on the snapshot side, smaller ones on the feature side, and
    those whose squares leave float64 times a power of two. A group that has no finite fit even so
    is in none of them; what no fit predicts keeps its last snapshot.
    """
    ahead = None
    if horizons is not None:
        out = arrays.empty((len(horizons), part.size), like=snapshots.array)
        ahead = Ahead(horizons, out)
        if part.n_parameters < part.size:
            out[:] = snapshots.array[snapshots.order[-1]]
    n, solved, small = len(snapshots.order), None, None
    if recipe.full_rank and not backend.is_spread and part.n_groups:
        how = recipe.affine, holdout_of(n), ahead
        # Most calls are done by this; a small one is half of Python.
        if part.smallest >= n - 1:
            solved = backend.gram_solve(snapshots, part, *how)
            if isinstance(solved, WholeCompanion):
                whole = CompanionFit.of(part, part.numbers, recipe.affine, solved)
                return [whole], None if ahead is None else ahead.out
        elif ahead is not None and part.smallest == part.largest:
            small = backend.feature_fit(snapshots, part, *how)
            if small.projection is None and math.isfinite(small.residual.sum()):
                deferred = DeferredFit.of(part, part.numbers, recipe.affine, small, how[1])
                return [deferred], ahead.out
    fitting = _Fitting(snapshots, part, recipe, backend, ahead, solved=solved, small=small)
    fits: list[Fitted | DeferredFit] = []
    divisions = [(part.numbers, part)] if backend.is_spread else part.by_size(fitting.n - 1)
    for numbers, groups in divisions:
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
    covered = len(fits[0].groups) if len(fits) == 1 else sum(len(fit.groups) for fit in fits)
    if covered == part.n_groups:
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
        is_scaled: bool = False,
        solved: Companion | None = None,
        small: FeatureSolved | None = None,
    ) -> None:
        self.is_scaled = is_scaled
        self.solved, self.small = solved, small  # of all groups, where that is known
        self.snapshots = snapshots
        self.part = part
        self.recipe = recipe
        self.backend = backend
        self.ahead = ahead
        self.n = len(snapshots.order)
        self.holdout = holdout_of(self.n)

    def fits(self, groups: Groups) -> Sides:
        """Groups of one side: all of m >= n - 1, or all of one m below."""
        if self.backend.is_spread or groups.part.smallest >= self.n - 1:
            return self.snapshot_side(groups)
        with np.errstate(over="ignore", invalid="ignore"):  # looked for and reported
            return self.feature_side(groups)

    def snapshot_side(self, groups: Groups) -> Sides:
        recipe = self.recipe
        if recipe.full_rank:
            solved = self.solved or self.backend.gram_solve(
                self.snapshots, groups.part, recipe.affine, self.holdout, self.ahead
            )
            if isinstance(solved, WholeCompanion):
                return Sides([CompanionFit.of(*groups, recipe.affine, solved)], [])
            if math.isfinite(solved.coefficients.sum()):
                full, rest = self.by_rank(groups, recipe, solved)
                return Sides(full, self.without_full_rank(groups, rest))
        groups, gram, fits = self.in_range(groups)
        if groups.part.n_groups == 0:
            return Sides([], fits)
        if recipe.model != "auto":
            return Sides([], [*fits, *self.from_gram(groups, recipe, gram)])
        tried = [self.from_gram(groups, one, gram) for one in self.recipes()]
        return Sides([], [*fits, *self.best(tried, groups)])

    def best(self, tried: list[list[Fitted]], groups: Groups) -> list[Fitted]:
        """Of the fits by several recipes each group's best by hindcast."""
        return best_of(tried, groups.numbers, self.n, self.backend, self.snapshots)

    def in_range(self, groups: Groups) -> tuple[Groups, FloatArray, list[Fitted]]:
        """Groups whose squares are in range, their Gram matrices, and fits of the others."""
        gram = self.backend.gram(self.snapshots, groups.part)
        if not self.may_leave_range:
            return *self.finite(groups, gram), []
        squares = gram[:, np.arange(self.n) * (np.arange(self.n) + 3) // 2]
        columns = {"linear": slice(0, -1), "affine": slice(1, -1), "trend": slice(1, None)}
        far = out_of_range(squares)
        for model in self.recipe.models:  # columns of F alone may be too small
            far |= out_of_range(squares[:, columns[model]])
        near = np.flatnonzero(~far)
        return groups.at(near), gram[near], self.scaled(groups.at(np.flatnonzero(far)))

    @property
    def may_leave_range(self) -> bool:
        """Squares of float32 numbers are in the range of float64, whatever they are.

        A group spread over processes has no unit of its own; out of range it has no fit.
        """
        wide = arrays.dtype_name(self.snapshots.array) == "float64"
        return wide and not self.is_scaled and not self.backend.is_spread

    def scaled(self, groups: Groups) -> list[Fitted]:
        """Fits of groups whose squares are out of range; an error where a snapshot is not finite.

        Each model is tried of a copy in its own unit.
        """
        if groups.part.n_groups == 0:
            return []
        # In the caller's partition: its group numbers, and its first snapshot.
        raise_non_finite(self.snapshots, self.part)
        tried: list[list[Fitted]] = []
        windows = {
            affine: ScaledWindow.of(self.snapshots, groups.part, affine)
            for affine in {model != "linear" for model in self.recipe.models}
        }
        for recipe in self.recipes():
            window = windows[recipe.model != "linear"]
            fitting = _Fitting(window.snapshots, window.part, recipe, self.backend, None, True)
            fits: list[Fitted] = []
            for numbers, part in window.part.by_size(self.n - 1):
                for inner in itertools.chain(*fitting.fits(Groups(part, numbers))):
                    assert not isinstance(inner, DeferredFit)
                    fits.append(ScaledFit.of(*groups, inner, window))
            tried.append(fits)
        return tried[0] if len(tried) == 1 else self.best(tried, groups)

    def recipes(self) -> list[Recipe]:
        """This call's recipe, or those that ``model="auto"`` tries."""
        recipe = self.recipe
        if recipe.model != "auto":
            return [recipe]
        tried = candidates(self.n, recipe.rank, recipe.ridge)
        return [recipe._replace(model=c.model, ridge=c.ridge) for c in tried]

    def from_gram(self, groups: Groups, recipe: Recipe, gram: FloatArray) -> list[Fitted]:
        if recipe.model == "trend":
            return [TrendFit.of_gram(*groups, gram, self.n, self.holdout)]
        if not recipe.full_rank:
            return self.projected(groups, recipe, gram)
        solved = self.backend.solve(gram, self.n, recipe.affine, self.holdout)
        full, rest = self.by_rank(groups, recipe, solved)
        if rest is None:
            return full
        return [*full, *self.projected(groups.at(rest), recipe, gram[rest])]

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
        groups, gram, fits = self.in_range(groups.at(positions))
        return [*fits, *self.projected(groups, self.recipe, gram)] if len(gram) else fits

    def projected(self, groups: Groups, recipe: Recipe, gram: FloatArray) -> list[Fitted]:
        fit = ProjectedFit.of(
            self.snapshots,
            *groups,
            gram,
            recipe.affine,
            recipe.rank,
            recipe.ridge,
            self.holdout,
            self.backend,
        )
        return _finite(fit, fit.projection)

    def feature_side(self, groups: Groups) -> Sides:
        """Groups of one size m < n - 1."""
        recipe = self.recipe
        written: list[Fitted | DeferredFit] = []
        unwritten: list[Fitted] = []
        if recipe.full_rank:
            how = recipe.affine, self.holdout
            solved = self.small or self.backend.feature_fit(
                self.snapshots, groups.part, *how, self.ahead
            )
            near = np.isfinite(solved.residual)
            whole = math.isfinite(solved.residual.sum())  # faster than to look at all of `near`
            keep = groups.part.numbers if whole or near.all() else np.flatnonzero(near)
            if solved.projection is None and keep.size:
                deferred = DeferredFit.of(*groups, recipe.affine, solved, self.holdout)
                written.append(deferred.select(keep))
            elif keep.size:
                fit = FeatureFit.of(*groups, recipe.affine, solved).select(keep)
                (unwritten if self.ahead is None else written).append(fit)
            if len(keep) == len(near):
                return Sides(written, unwritten)
            groups = groups.at(np.flatnonzero(~near))
        kinds = {model != "linear" for model in recipe.models}
        known = {affine: self.moments(groups, affine) for affine in kinds}
        groups, fits = self.moments_in_range(groups, known)
        unwritten += fits
        if groups.part.n_groups == 0:
            return Sides(written, unwritten)

        def fitted(model: str, ridge: float) -> list[Fitted]:
            if model == "trend":
                return [TrendFit.of_values(self.snapshots, *groups, self.holdout, self.backend)]
            affine = model == "affine"
            solved = self.backend.feature_solve(
                self.snapshots, groups.part, affine, self.holdout, known[affine], recipe.rank, ridge
            )
            fit = FeatureFit.of(*groups, affine, solved)
            return _finite(fit, fit.projection)

        if recipe.model != "auto":
            return Sides(written, [*unwritten, *fitted(recipe.model, recipe.ridge)])
        tried = [fitted(one.model, one.ridge) for one in self.recipes()]
        return Sides(written, [*unwritten, *self.best(tried, groups)])

    def moments_in_range(
        self, groups: Groups, known: dict[bool, FloatArray]
    ) -> tuple[Groups, list[Fitted]]:
        """Groups whose moments are in range, which alone stay in ``known``, and fits of others."""
        far = np.zeros(groups.part.n_groups, dtype=np.bool_)
        for moments in known.values():
            squares = np.einsum("gii->gi", moments[0, :, 0])
            if self.may_leave_range:
                far |= out_of_range(squares)
            far |= ~np.isfinite(moments).all(axis=(0, 2, 3, 4))
        if not far.any():
            return groups, []
        near = np.flatnonzero(~far)
        for affine, moments in known.items():
            known[affine] = np.ascontiguousarray(moments[:, near])
        beyond = groups.at(np.flatnonzero(far))
        if self.may_leave_range:
            return groups.at(near), self.scaled(beyond)
        raise_non_finite(self.snapshots, self.part)
        return groups.at(near), []

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


def _finite(fit: ProjectedFit | FeatureFit, projection: Projection) -> list[Fitted]:
    """The fit of those groups whose operators are numbers, if there are any."""
    size = len(projection.rank)
    numbers = [projection.operator.reshape(size, -1), projection.whitener.reshape(size, -1)]
    finite = np.isfinite(np.concatenate(numbers, axis=1).sum(axis=1))
    return [fit.select(np.flatnonzero(finite))] if finite.any() else []
