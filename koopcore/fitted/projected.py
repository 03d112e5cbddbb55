"""Rank-deficient, truncated or regularized operators on the snapshot side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.backends import second_pass
from koopcore.backends.protocol import Backend, Projection, Snapshots, diverged, unpack
from koopcore.fitted.base import (
    GroupFit,
    fit_bases,
    norms,
    operator_matrix,
    relative_error,
    sorted_eigenvalues,
    unit_modes,
)
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray


@dataclass
class ProjectedFit(GroupFit):
    """F⁺ = V VᵀFᵀ and the operator K = VᵀFᵀF'V on the r whitened coordinates.

    F stands in the basis [x_1, d_1 … d_{n-2}] (linear) or [d_1 … d_{n-2}] (affine), and F' one
    snapshot later: [x_2, d_2 … d_{n-1}] or [d_2 … d_{n-1}].
    """

    projection: Projection
    ridge: float
    vanishing: npt.NDArray[np.bool_]  # (n_groups,) the newest column is next to nothing

    @classmethod
    def of(
        cls,
        snapshots: Snapshots,
        part: Partition,
        groups: IntArray,
        gram: FloatArray,
        affine: bool,
        rank: int | None,
        ridge: float,
        holdout: int,
        backend: Backend,
    ) -> ProjectedFit:
        """Fit from packed Gram matrices (n_groups, n(n+1)/2), and where they do not do, again."""
        n = len(snapshots.order)
        full = unpack(gram, n)
        kept = n - holdout
        hindcasts = kept - 1 - affine >= 1
        projection = project_window(full, affine, rank, ridge, backend)
        if hindcasts:
            shorter = project_window(full[:, :kept, :kept], affine, rank, ridge, backend)
        newest = full[:, -1, -1] if affine else full.sum(axis=(1, 2))
        largest = np.einsum("gii->gi", full)[:, int(affine) :].max(axis=1)
        vanishing = newest <= second_pass.VANISHING * largest
        condition = projection.condition
        if rank is not None:  # what is cut off need not be resolved
            cut = projection.rank == min(rank, n - 1 - affine)
            condition = np.where(cut, _singular_range(projection, affine), condition)
        # What is lost of the largest column shows as a share of the newest step.
        step = np.maximum(full[:, -1, -1], second_pass.VANISHING * largest)
        reach = np.sqrt(np.maximum(largest / np.where(step > 0.0, step, 1.0), 1.0))
        fitted = condition * np.sqrt(reach), projection.rank
        unsure = second_pass.unsure(*fitted, n - 1 - affine, snapshots)
        unsure = np.union1d(unsure, np.flatnonzero(vanishing & (projection.rank > 0)))
        if unsure.size and (ridge == 0.0 or not affine):
            whitener = projection.whitener[unsure]
            if rank is not None and ridge == 0.0:  # which directions lead is to be seen, too
                whitener = project_window(full[unsure], affine, None, ridge, backend).whitener
            v = np.zeros((len(unsure), n, whitener.shape[2]))
            v[:, int(affine) : n - 1] = whitener
            own, ends = part.subset(unsure), [n - 1, kept - 1]
            products = second_pass.products(backend, snapshots, own, v, ends)
            if ridge == 0.0:
                factor, states = second_pass.triangular_factor(*products)
                again = second_pass.project_factor(factor, states[:, :, 0], affine, rank)
                projection = second_pass.patched(projection, unsure, again)
                if hindcasts:
                    shorter_factor = factor[:, :, :kept], states[:, :, 1]
                    again = second_pass.project_factor(*shorter_factor, affine, rank)
                    shorter = second_pass.patched(shorter, unsure, again)
            else:
                projection.start[unsure] = products[2][:, : projection.start.shape[1], 0]
        residual = norms(full, _residual_weights(projection, n, affine))
        hindcast = np.full(part.n_groups, np.nan)
        if hindcasts:
            states = backend.rollout_dense(shorter.operator, shorter.start, affine, [holdout])[0][0]
            error = np.full((part.n_groups, n), -1.0)
            error[:, :kept] += _weights(shorter, states, affine)
            hindcast = relative_error(full, error, holdout)
        return cls(
            part,
            groups,
            affine,
            projection.rank,
            residual,
            projection.condition,
            hindcast,
            projection,
            ridge,
            vanishing,
        )

    def write(
        self, snapshots: Snapshots, horizons: Sequence[int], out: npt.NDArray[Any], backend: Backend
    ) -> None:
        """Predictions at every horizon into the groups' columns of ``out`` (n_horizons, size)."""
        weights, _ = self._rollout(horizons, backend)
        backend.combine(snapshots, self.part, weights, out)
        self._write_vanishing(snapshots, horizons, out, backend)

    def _write_vanishing(
        self, snapshots: Snapshots, horizons: Sequence[int], out: npt.NDArray[Any], backend: Backend
    ) -> None:
        """Groups whose motion has come down to next to nothing, as far as they go on so.

        Weights near 1, with which `combine` starts from x_n, have no digits left for it.
        """
        if not self.vanishing.any():
            return
        states, _ = backend.rollout_dense(
            self.projection.operator, self.projection.start, self.affine, horizons
        )
        with np.errstate(over="ignore", invalid="ignore"):
            c = (self.projection.whitener @ states[..., None])[..., 0]
        small = (np.abs(c[..., :1] if not self.affine else c) < 0.5).all(axis=(0, 2))
        apart = np.flatnonzero(self.vanishing & small)
        for m in np.unique(self.part.sizes[apart]):
            same = apart[self.part.sizes[apart] == m]
            own = self.part.subset(same)
            rows = backend.gather(snapshots, own, range(len(snapshots.order))).transpose(1, 0, 2)
            ahead = np.diff(rows, axis=1)
            ahead = ahead[:, 1:] if self.affine else np.concatenate([rows[:, 1:2], ahead[:, 1:]], 1)
            values = c[:, same].transpose(1, 0, 2) @ ahead
            if self.affine:
                values = values + rows[:, -1:]
            backend.scatter(own, np.ascontiguousarray(values.transpose(1, 0, 2)), out)

    def growth(self, horizons: Sequence[int], backend: Backend) -> FloatArray:
        """‖c_T‖/‖c_1‖ (n_horizons, n_groups) of coefficients on the columns of F'.

        Infinite where the rollout diverged. The whitened state would not do: that of the linear
        model is the position, beside which a motion may grow unseen.
        """
        _, lost = self._rollout(horizons, backend)
        operator, start = self.projection.operator, self.projection.start
        powers, _ = backend.rollout_dense(operator, start, False, [1, *horizons])
        with np.errstate(over="ignore", invalid="ignore"):
            c = (self.projection.whitener @ powers[..., None])[..., 0]
            if not self.affine:  # from [x_2, d_2 …] to [x_2, x_3 …]
                c[..., :-1] -= c[..., 1:].copy()
            sizes = np.linalg.norm(c, axis=-1)
            growth: FloatArray = sizes[1:] / sizes[0]
        growth[lost] = np.inf
        return growth

    def eigenvalues(self) -> npt.NDArray[np.complex128]:
        """Eigenvalues of K, which are the nonzero eigenvalues of U = F'F⁺: (n_groups, r)."""
        return sorted_eigenvalues(self.projection.operator, self.rank)

    def modes(self, group: int, snapshots: Snapshots) -> npt.NDArray[Any]:
        """Eigenvectors of U: F'V v for every eigenvector v of K, to unit norm, (m, r)."""
        r = int(self.rank[group])
        values, vectors = np.linalg.eig(self.projection.operator[group, :r, :r])
        _, ahead = fit_bases(snapshots, self.part, group, self.affine)
        return unit_modes(values, ahead.T @ self.projection.whitener[group, :, :r] @ vectors, r)

    def operator(self, group: int, snapshots: Snapshots) -> FloatArray:
        """U = F'V VᵀFᵀ as an (m, m) matrix."""
        f, ahead = fit_bases(snapshots, self.part, group, self.affine)
        v = self.projection.whitener[group, :, : int(self.rank[group])]
        if self.ridge > 0.0:
            return (ahead.T @ v) @ (f.T @ v).T
        return operator_matrix(f, ahead, v)

    def _rollout(
        self, horizons: Sequence[int], backend: Backend
    ) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Weights on B (n_horizons, n_groups, n), and where they diverged: they are 1 there."""
        states, _ = backend.rollout_dense(
            self.projection.operator, self.projection.start, self.affine, horizons
        )
        with np.errstate(over="ignore", invalid="ignore"):
            weights = _weights(self.projection, states, self.affine)
        lost = diverged(weights)
        weights[lost] = 1.0
        return weights, lost


def project_window(
    full: FloatArray, affine: bool, rank: int | None, ridge: float, backend: Backend
) -> Projection:
    """`project` of the window whose Gram matrices (n_groups, n, n) are given."""
    n = full.shape[-1]
    if affine:
        a, h, g = full[:, 1:-1, 1:-1], full[:, 1:-1, 2:], full[:, 1:-1, -1]
    else:
        a, h, g = full[:, :-1, :-1], full[:, :-1, 1:].copy(), full[:, :-1].sum(axis=2)
        h[:, :, 0] += full[:, :-1, 0]
    if rank is not None:
        rank = min(rank, n - 1 - affine)
    a, h, g = map(np.ascontiguousarray, (a, h, g))
    return backend.project(a, h, g, rank, ridge, not affine)


def _singular_range(projection: Projection, affine: bool) -> FloatArray:
    """σ_1/σ_r of F (n_groups,), of a truncated fit: V holds singular vectors over their values."""
    v = projection.whitener
    if not affine:  # from [x_1, d_1 …] to [x_1, x_2 …]
        v = np.concatenate([v[:, :-1] - v[:, 1:], v[:, -1:]], axis=1)
    inverse = np.linalg.norm(v, axis=1)
    least = np.where(inverse > 0.0, inverse, np.inf).min(axis=1, initial=np.inf)
    return inverse.max(axis=1, initial=0.0) / least


def _weights(projection: Projection, states: FloatArray, affine: bool) -> FloatArray:
    """Weights on B (…, n_groups, n) of whitened states (…, n_groups, r)."""
    c = (projection.whitener @ states[..., None])[..., 0]
    if affine:
        ones = np.ones((*c.shape[:-1], 2))
        return np.concatenate([ones, 1.0 + c], axis=-1)
    return np.concatenate([c[..., :1], c], axis=-1)


def _residual_weights(projection: Projection, n: int, affine: bool) -> FloatArray:
    """Weights on B of F F⁺f'_last - f'_last (n_groups, n): one step predicted, not yet taken."""
    c = (projection.whitener @ projection.start[:, :, None])[:, :, 0]
    weights = np.zeros((len(c), n))
    weights[:, int(affine) : n - 1] = c
    weights[:, n - 1 if affine else 0 :] -= 1.0
    return weights
