"""`fit` and `KoopmanOperators`: snapshots of parameters in, predicted parameters out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore import arrays, checks
from koopcore.backends import backend_for
from koopcore.backends.protocol import Backend, Snapshots
from koopcore.backends.spread import Shares, Spread
from koopcore.fitted import DeferredFit, Fitted
from koopcore.fitted.fitting import Recipe, fit_groups
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray

GOOD, OUT_OF_RANGE = 0, 1
STATUS = {
    GOOD: "fitted; rank, condition and hindcast_error say how well",
    OUT_OF_RANGE: "no finite fit, not even in the group's own unit: it keeps its last snapshot",
}
"""The codes of `KoopmanOperators.status`."""


def fit(
    snapshots: Any,
    part: Partition | None = None,
    model: str = "affine",
    rank: int | None = None,
    ridge: float = 0.0,
    backend: str | None = None,
    *,
    order: Sequence[int] | None = None,
    horizon: int | Sequence[int] | None = None,
    shares: Shares | None = None,
) -> KoopmanOperators:
    """Fit one Koopman operator to every group of parameters, from a window of snapshots.

        linear  U = F'F⁺, F = [x_1 … x_{n-1}], F' = [x_2 … x_n]       x_{n+T} = U^T x_n
        affine  the same for differences d_k = x_{k+1} - x_k          x_{n+T} = x_n + Σ_j Aʲ d_{n-1}
        trend   x_{n+T} = x_n + T (x_n - x_1)/(n - 1)
        auto    each group's best of these, and of three ridges, by hindcast

    Args:
        snapshots: (n_snapshots, n_parameters) NumPy, torch or CuPy array of float32 or float64,
            any strides, one snapshot a row and the oldest first (papers and PyDMD use columns).
            It is neither copied nor written to, and predictions read it again: keep it
            unchanged until then. A memory map that memory cannot hold is read as a stream.
            Without ``part`` also (n_snapshots, n_groups, m), an operator for each group of m;
            results then end in (n_groups, m). It is copied unless its last two axes are
            contiguous.
        part: which parameters share an operator. Parameters in no group keep their last value.
            None: one operator for all, or for each group of a 3-D array.
        rank: keep the leading ``rank`` singular values of F (as in dynamic mode decomposition);
            None: the numerical rank. Groups of fewer parameters use what they have.
        ridge: Tikhonov parameter relative to the mean diagonal of the scaled Gram matrix, >= 0.
        backend: a name of `koopcore.available_backends()`; None takes the first that runs here.
        order: rows of ``snapshots`` in time order, for a ring buffer; None: all rows in turn.
        horizon: what `predict` will be asked first, if it is known. Small groups are then
            predicted while the fit has them in the cache, and the snapshots are read from
            memory once instead of twice; operators of groups of fewer parameters than snapshots
            are not even written.
        shares: where groups have parameters in other processes too: how to add up over them,
            and which columns this one counts. All call `fit` with the same groups, in the same
            order, and get the same operators; each predicts its own columns. Without
            ``horizon``.

    Returns `KoopmanOperators`. Raises TypeError or ValueError for input that cannot be fitted
    (shape, dtype, a partition of other parameters, NaN or infinite snapshots: which and where,
    unknown names) and MemoryError with the bytes needed. What fails numerically is a
    `KoopmanOperators.status` of its group, never an exception.

    Cost: one read of the snapshots, P n² flops for P parameters and n snapshots however they are
    grouped, then O(n³) per group; O(groups · n²) memory. Not for windows longer than the motion
    stays linear, nor for minibatch noise without averaging, which `attach` does.

    Source: Dogra & Redman, NeurIPS 2020, eq. 4 and Algorithm 1; differences and the Gram route:
    docs/mathematics.md.
    """
    seen = arrays.view(snapshots, "snapshots")
    if part is None:
        seen, part = _divided(seen)
    rows = checks.window_order(seen.array.shape, order)
    here = rank if shares is None else None  # the parameters elsewhere support more
    checks.check_fit(len(rows), seen.array.shape[1], part, model, here, ridge)
    on = backend_for(seen.device, backend)
    horizons = None if horizon is None else checks.check_horizons(horizon)[0]
    window = Snapshots(seen.array, rows)
    recipe = Recipe(model, None if rank is None else int(rank), float(ridge))
    if shares is not None:
        fits, _ = fit_groups(window, shares.counted, recipe, Spread(on, shares.total))
        for one in fits:
            one.part = part.subset(one.groups)
        return KoopmanOperators(window, part, fits, seen.restore, on)
    fits, endpoints = fit_groups(window, part, recipe, on, horizons)
    ahead = None if horizons is None else (horizons, endpoints)
    return KoopmanOperators(window, part, fits, seen.restore, on, ahead)


def _divided(seen: arrays.ArrayView) -> tuple[arrays.ArrayView, Partition]:
    """A plain matrix as one group, (n_snapshots, n_groups, m) as groups of m side by side."""
    array, shape = seen.array, tuple(int(size) for size in seen.array.shape)
    groups, m = (1, *shape[1:]) if len(shape) == 2 else shape[1:] if len(shape) == 3 else (1, 1)
    if len(shape) not in (2, 3) or groups * m == 0:
        raise ValueError(
            f"snapshots has shape {shape}; (n_snapshots, n_parameters), or (n_snapshots, n_groups, "
            "m) for an operator per group, is needed, with one parameter at least"
        )
    if len(shape) == 2:
        checks.warn_if_transposed(array, "snapshots")
        restore = seen.restore
    else:
        array = array.reshape(shape[0], groups * m)

        def restore(result: npt.NDArray[Any]) -> Any:
            return seen.restore(result.reshape(*result.shape[:-1], groups, m))

    index, one = np.arange(groups + 1), np.ones(groups, dtype=np.int64)
    part = Partition(
        groups * m, index, index[:-1] * m, m * one, one, "network" if groups == 1 else "groups"
    )
    return arrays.ArrayView(seen.device, array, restore), part


class KoopmanOperators:
    """One Koopman operator per group of a partition; made by `fit`.

    Attributes:
        status: (n_groups,) int, 0 good, else a key of `STATUS`.
        model: (n_groups,) str, what predicts the group.
        rank: (n_groups,) int.
        residual: (n_groups,), ‖F a - f'_last‖, the part of the newest column that the window does
            not span, in the parameters' unit; for groups of fewer parameters than snapshots the
            error of the newest step, ‖U f - f'‖.
        condition: (n_groups,), estimate of cond(F) with unit columns.
        hindcast_error: (n_groups,), error of predicting x_n from the window without its last
            quarter, divided by the true movement; NaN where the window is too short, or where a
            group that had moved stood still in that quarter.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        part: Partition,
        fits: list[Fitted | DeferredFit],
        restore: Callable[[npt.NDArray[Any]], Any],
        backend: Backend,
        ahead: tuple[list[int], Any] | None = None,
    ) -> None:
        self.partition = part
        self._snapshots = snapshots
        self._fits = fits
        self._restore = restore
        self._backend = backend
        self._ahead = ahead

    def predict(self, horizon: int | Sequence[int]) -> Any:
        """The parameters T snapshots after the last one: x_{n+T}.

        Args:
            horizon: T >= 1, in snapshots (T·stride optimizer steps), or a sequence of them.

        Returns (n_parameters,), or (len(horizon), n_parameters) for a sequence, in the kind and
        dtype of the snapshots. Values are always finite: a group whose rollout diverges keeps its
        last snapshot and has an infinite `growth`. Raises TypeError or ValueError for T < 1.

        Cost: O(T n) per group up to T = 1024, O(n² log T) beyond, and one read of the snapshots
        for all horizons together. Not for horizons far beyond the window: see `hindcast_error`.
        """
        horizons, single = checks.check_horizons(horizon)
        if self._ahead is not None and self._ahead[0] == horizons:
            out = self._ahead[1]
            self._ahead = None  # the array is the caller's from now on
            return self._restore(out[0] if single else out)
        array = self._snapshots.array
        out = arrays.empty((len(horizons), array.shape[1]), like=array)
        if not self._covered():
            out[:] = array[self._snapshots.order[-1]]
        for fit in self._operators():
            fit.write(self._snapshots, horizons, out, self._backend)
        return self._restore(out[0] if single else out)

    def trajectory(self, horizon: int) -> Any:
        """All of x_{n+1} … x_{n+T}: (T, n_parameters). Memory: T·n_parameters numbers."""
        last = checks.check_horizons(horizon)[0][0] if np.ndim(horizon) == 0 else None
        if last is None:
            raise TypeError(f"trajectory takes one horizon; got {horizon!r} (see predict)")
        return self.predict(range(1, last + 1))

    def growth(self, horizon: int | Sequence[int]) -> FloatArray:
        """Growth of the rollout, ‖c_T‖/‖c_1‖: (n_groups,), or (len(horizon), n_groups).

        Near 1: the motion goes on as it was. Far above: the operator is unstable, and at infinity
        `predict` has kept the last snapshot.
        """
        horizons, single = checks.check_horizons(horizon)
        growth = np.ones((len(horizons), self.partition.n_groups))
        for fit in self._operators():
            growth[:, fit.groups] = fit.growth(horizons, self._backend)
        growth[np.isnan(growth)] = 1.0  # 0/0: what starts at rest stays there
        return growth[0] if single else growth

    def eigenvalues(self) -> npt.NDArray[np.complex128]:
        """The nonzero eigenvalues of every operator: (n_groups, r), largest first, NaN-padded.

        For the affine model those of A, the operator of the increments (the eigenvalue 1 of the
        constant comes on top). Per snapshot: see `koopcore.spectrum` for rates and frequencies.
        """
        fits = self._operators()
        values = [fit.eigenvalues() for fit in fits]
        width = max((value.shape[1] for value in values), default=0)
        out = np.full((self.partition.n_groups, width), np.nan, dtype=np.complex128)
        for fit, value in zip(fits, values, strict=True):
            out[fit.groups, : value.shape[1]] = value
        return out

    def modes(self, group: int) -> npt.NDArray[np.complex128]:
        """Koopman modes (m, r) of one group, to unit norm, in the order of its eigenvalues."""
        fit, position = self._find(group)
        modes: npt.NDArray[np.complex128] = fit.modes(position, self._snapshots)
        return modes

    def operator(self, group: int) -> FloatArray:
        """U (or A, for the affine model) of one group as an (m, m) matrix: m² numbers."""
        fit, position = self._find(group)
        return fit.operator(position, self._snapshots)

    @property
    def status(self) -> IntArray:
        status = np.full(self.partition.n_groups, OUT_OF_RANGE)
        for fit in self._fits:
            status[fit.groups] = GOOD
        return status

    @property
    def model(self) -> npt.NDArray[np.str_]:
        names = np.full(self.partition.n_groups, "", dtype="<U6")
        for fit in self._fits:
            names[fit.groups] = fit.model
        return names

    @property
    def rank(self) -> IntArray:
        return self._gathered("rank", 0).astype(np.int64)

    @property
    def residual(self) -> FloatArray:
        return self._gathered("residual", np.nan)

    @property
    def condition(self) -> FloatArray:
        return self._gathered("condition", np.inf)

    @property
    def hindcast_error(self) -> FloatArray:
        values = self._gathered("hindcast", np.nan)
        for fit in self._fits:
            values[fit.groups[fit.resting(self._snapshots, self._backend)]] = np.nan
        return values

    def __repr__(self) -> str:
        n = len(self._snapshots.order)
        models = {
            str(name): int(count)
            for name, count in zip(*np.unique(self.model, return_counts=True), strict=True)
        }
        return f"KoopmanOperators({self.partition.n_groups} groups, {n} snapshots, models {models})"

    def _gathered(self, name: str, missing: float) -> FloatArray:
        values = np.full(self.partition.n_groups, missing, dtype=np.float64)
        for fit in self._fits:
            values[fit.groups] = getattr(fit, name)
        return values

    def _covered(self) -> bool:
        fitted = sum(len(fit.groups) for fit in self._fits)
        return (
            fitted == self.partition.n_groups and self.partition.n_parameters == self.partition.size
        )

    def _operators(self) -> list[Fitted]:
        """All fits with their operators, those made now that were not kept."""
        fits = [
            fit.fit(self._snapshots, self._backend) if isinstance(fit, DeferredFit) else fit
            for fit in self._fits
        ]
        self._fits = [*fits]
        return fits

    def _find(self, group: int) -> tuple[Fitted, int]:
        if isinstance(group, bool) or not isinstance(group, (int, np.integer)):
            raise TypeError(f"group is {group!r}; a group number is needed")
        if not 0 <= group < self.partition.n_groups:
            raise ValueError(f"group is {group}; groups 0..{self.partition.n_groups - 1} exist")
        for fit in self._operators():
            position = np.flatnonzero(fit.groups == group)
            if position.size:
                return fit, int(position[0])
        raise ValueError(f"group {group} has no operator: {STATUS[OUT_OF_RANGE]}")
