"""The engine's stages on CUDA devices in CuPy: where the module _cuda was not built.

Mirrors backends/reference.py stage by stage, all groups of one size at a time through cuBLAS and
cuSOLVER. Snapshots are CuPy arrays, or CUDA tensors of torch without a copy; work is queued on the
caller's stream. Small matrices come and go as NumPy arrays, so that every stage waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.backends.composed import Composed
from koopcore.backends.cupy.batches import (
    cholesky,
    equilibrated,
    recurrences,
    rolled,
    sure_of_rank,
    whiten,
)
from koopcore.backends.cupy.device import available, group_columns, on_host, opened, xp
from koopcore.backends.protocol import (
    WEIGHT_LIMIT,
    Companion,
    Projection,
    Snapshots,
    packed_size,
    unpack,
)
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray

BLOCK = 2**25  # numbers of snapshots that are in float64 at once


def _windows(array: Any, order: IntArray, part: Partition) -> Iterator[tuple[IntArray, Any]]:
    """(groups, snapshots (n_groups, n, m) in float64) of groups of one size, a block at a time."""
    rows = [int(k) for k in order]
    for m in np.unique(part.sizes):
        same = np.flatnonzero(part.sizes == m)
        together = max(1, BLOCK // (len(rows) * int(m)))
        for low in range(0, len(same), together):
            groups = same[low : low + together]
            x = array[:, group_columns(part, groups)][rows].astype(np.float64).transpose(1, 0, 2)
            yield groups, x


def _basis(x: Any) -> Any:
    """B (n_groups, n, m) of snapshots."""
    basis = x.copy()
    basis[:, 1:] -= x[:, :-1]
    return basis


def _reflected(x: Any) -> Any:
    """`reflect` of backends/reflection.py for every group: rows in coordinates led by x_n."""
    last = x[:, -1]
    _, exponent = xp().frexp(abs(last).max(axis=1))
    unit = xp().ldexp(xp().ones(len(x)), -exponent.clip(-1000, 1000))
    v = last * unit[:, None]
    norm = xp().sqrt((v * v).sum(axis=1))[:, None]
    here = xp().arange(v.shape[1]) == abs(v).argmax(axis=1)[:, None]
    position = xp().where(here, xp().where(v < 0.0, -norm, norm), 0.0)
    v += position
    square = (v * v).sum(axis=1)
    rows = x - last[:, None]
    twice = 2.0 / xp().where(square == 0.0, np.inf, square)
    along = (rows * v[:, None]).sum(axis=2) * twice[:, None]
    return rows - along[:, :, None] * v[:, None] - (position / unit[:, None])[:, None]


def _hindcast(full: FloatArray, weights: FloatArray, holdout: int) -> FloatArray:
    """‖B w - x_n‖ / ‖x_n - x_{n-holdout}‖ of every group, from G = BᵀB."""
    error = weights - 1.0
    moved = full[:, -holdout:, -holdout:].sum(axis=(1, 2))
    square = np.maximum(np.einsum("gi,gij,gj->g", error, full, error), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(moved > 0.0, np.sqrt(square / moved), 0.0)


class CupyCuda(Composed):
    """The engine's stages in CuPy, all groups of one size at a time."""

    name = "cupy_cuda"
    device = "cuda"

    @np.errstate(over="ignore", invalid="ignore")
    def gram(self, snapshots: Snapshots, part: Partition) -> FloatArray:
        n = len(snapshots.order)
        out = np.empty((part.n_groups, packed_size(n)))
        rows, columns = np.tril_indices(n)
        with opened(snapshots.array) as array:
            for groups, x in _windows(array, snapshots.order, part):
                basis = _basis(x)
                out[groups] = on_host((basis @ basis.transpose(0, 2, 1))[:, rows, columns])
        return out

    @np.errstate(over="ignore", invalid="ignore")
    def feature_gram(
        self, snapshots: Snapshots, part: Partition, affine: bool, stops: Sequence[int]
    ) -> FloatArray:
        m = int(part.sizes[0])
        out = np.empty((len(stops), part.n_groups, 2, m, m))
        with opened(snapshots.array) as array:
            for groups, x in _windows(array, snapshots.order, part):
                columns = _basis(x)[:, 1:] if affine else _reflected(x)
                for i, stop in enumerate(stops):
                    f = columns[:, : stop - 1 - affine]
                    ahead = columns[:, 1 : stop - affine]
                    c = f.transpose(0, 2, 1) @ f
                    out[i, groups, 0] = on_host(c)
                    out[i, groups, 1] = on_host(c + (ahead - f).transpose(0, 2, 1) @ f)
        return out

    def solve(self, gram: FloatArray, n: int, affine: bool, holdout: int) -> Companion:
        first = int(affine)
        columns = n - 1 - first
        full = xp().asarray(unpack(gram, n))
        own = full[:, first:, first:]
        scale, scaled = equilibrated(xp(), own)
        factor, rank = cholesky(xp(), scaled, columns)
        squares = xp().diagonal(own, axis1=1, axis2=2)
        whole = (rank == columns) & sure_of_rank(xp(), factor, scale, squares)
        rank = xp().where(whole, rank, xp().minimum(rank, columns - 1))
        pivots = xp().diagonal(factor, axis1=1, axis2=2)[:, :columns]
        condition = xp().where(whole, pivots.max(axis=1) / pivots.min(axis=1), np.inf)
        residual = xp().where(whole, factor[:, columns, columns] / scale[:, columns], 0.0)
        a = recurrences(xp(), factor, scale, columns, affine)
        hindcast = np.full(len(gram), np.nan)
        if 0 < holdout < columns:
            shorter = recurrences(xp(), factor, scale, columns - holdout, affine)
            weights = np.zeros((len(gram), n))
            weights[:, : n - holdout] = self.rollout(on_host(shorter), affine, [holdout])[0][0]
            hindcast = np.where(
                on_host(whole), _hindcast(unpack(gram, n), weights, holdout), np.nan
            )
        coefficients = xp().where(whole[:, None], a, 0.0)
        return Companion(
            on_host(coefficients), on_host(rank), on_host(residual), on_host(condition), hindcast
        )

    def project(
        self, a: FloatArray, h: FloatArray, g: FloatArray, rank: int | None, ridge: float, raw: bool
    ) -> Projection:
        """K = Vᵀ H V and z = Vᵀ g with V Vᵀ = A⁺; see `whiten`."""
        v, ranks, condition = whiten(xp(), xp().asarray(a), rank, ridge, raw)
        width = int(ranks.max()) if len(a) else 0
        v = v[:, :, :width]
        across = v.transpose(0, 2, 1)
        operator, start = (
            across @ xp().asarray(h) @ v,
            (across @ xp().asarray(g)[:, :, None])[:, :, 0],
        )
        return Projection(*map(on_host, (operator, v, start, ranks, condition)))

    def rollout(
        self, coefficients: FloatArray, affine: bool, horizons: Sequence[int]
    ) -> tuple[FloatArray, FloatArray]:
        a = xp().asarray(coefficients)
        groups, columns = a.shape
        step = xp().zeros((groups, columns, columns))
        step[:] = xp().eye(columns, k=-1)
        step[:, :, -1] = a
        weights = np.ones((len(horizons), groups, columns + 1 + int(affine)))
        growth = np.ones((len(horizons), groups))
        with np.errstate(over="ignore", invalid="ignore"):
            for i, (power, total) in enumerate(rolled(xp(), step, a, horizons)):
                if affine:
                    weights[i, :, 2:] += on_host(total)
                else:
                    sums = on_host(xp().cumsum(power[:, ::-1], axis=1)[:, ::-1])
                    weights[i, :, 0], weights[i, :, 1:] = sums[:, 0], sums
                norms = xp().sqrt((power * power).sum(axis=1) / (a * a).sum(axis=1))
                growth[i] = on_host(norms)
            lost = ~(np.abs(weights).max(axis=2) <= WEIGHT_LIMIT)
        weights[lost], growth[lost] = 1.0, np.inf
        return weights, growth

    def rollout_dense(
        self, operator: FloatArray, start: FloatArray, affine: bool, horizons: Sequence[int]
    ) -> tuple[FloatArray, FloatArray]:
        z = xp().asarray(start)
        pairs = rolled(xp(), xp().asarray(operator), z, horizons)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            states = np.stack([on_host(total if affine else power) for power, total in pairs])
            sizes = np.stack([np.linalg.norm(on_host(power), axis=1) for power, _ in pairs])
            return states, sizes / np.linalg.norm(start, axis=1)

    def combine(
        self, snapshots: Snapshots, part: Partition, weights: FloatArray, out: npt.NDArray[Any]
    ) -> None:
        with opened(snapshots.array) as array, opened(out) as target:
            limit = float(np.finfo(str(target.dtype)).max)
            for groups, x in _windows(array, snapshots.order, part):
                w = xp().asarray(np.ascontiguousarray(weights[:, groups].transpose(1, 0, 2)) - 1.0)
                values = x[:, -1:] + w @ _basis(x)
                flat = xp().clip(values, -limit, limit).transpose(1, 0, 2).reshape(len(weights), -1)
                columns = group_columns(part, groups).reshape(-1)
                target[:, columns] = flat.astype(target.dtype)

    def gather(self, snapshots: Snapshots, part: Partition, rows: Sequence[int]) -> FloatArray:
        columns = group_columns(part, part.numbers)
        with opened(snapshots.array) as array:
            picked = [array[int(snapshots.order[k])][columns] for k in rows]
            return on_host(xp().stack(picked).astype(np.float64))

    def scatter(self, part: Partition, values: FloatArray, out: npt.NDArray[Any]) -> None:
        with opened(out) as target:
            limit = float(np.finfo(str(target.dtype)).max)
            clipped = np.clip(values, -limit, limit).reshape(len(values), -1)
            columns = group_columns(part, part.numbers).reshape(-1)
            target[:, columns] = xp().asarray(clipped).astype(target.dtype)


def load() -> CupyCuda:
    """The backend; ImportError with the reason where CuPy finds no device."""
    problem = available()
    if problem:
        raise ImportError(problem)
    return CupyCuda()
