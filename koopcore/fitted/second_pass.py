"""A second pass over small groups in whitened coordinates, where one Gram matrix is not enough."""

from __future__ import annotations

import numpy as np

from koopcore.backends import stage
from koopcore.backends.protocol import Projection, Snapshots
from koopcore.backends.reference import reflect
from koopcore.fitted.base import group_values
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray

BLOCK = 2**23  # numbers of snapshots gathered at once


def refined(
    snapshots: Snapshots,
    part: Partition,
    affine: bool,
    start: FloatArray,
    first: Projection,
    on: str | None,
) -> Projection:
    """``first`` again from the snapshots in its own whitened coordinates, as CholeskyQR2.

    A Gram matrix squares cond(F); near the identity it does not, so that this is accurate for
    cond(F) up to 1e8. Float32 snapshots carry more noise than one Gram matrix costs; float64 ones
    do not, and groups of this side are small enough to be read twice.
    start (n_groups, m): the vectors to roll, in the coordinates of the moments.
    """
    operators, whiteners, starts, ranks = [], [], [], []
    block = max(1, BLOCK // (len(snapshots.order) * max(1, start.shape[1])))
    for low in range(0, part.n_groups, block):
        groups = part.numbers[low : low + block]
        whitener = first.whitener[groups]
        rows = group_values(
            snapshots, part.subset(groups), range(len(snapshots.order)), on
        ).transpose(1, 0, 2)
        rows = np.diff(rows, axis=1) if affine else reflect(rows, rows[:, -1])
        whitened = rows[:, :-1] @ whitener
        across = whitener.transpose(0, 2, 1)
        second: Projection = stage("project", backend=on)(
            whitened.transpose(0, 2, 1) @ whitened,
            across @ (rows[:, 1:].transpose(0, 2, 1) @ whitened),
            (across @ start[groups, :, None])[:, :, 0],
            None,
            0.0,
            False,
        )
        operators.append(_padded(second.operator, 2, whitener.shape[2]))
        whiteners.append(_padded(whitener @ second.whitener, 1, whitener.shape[2]))
        starts.append(_padded(second.start, 1, whitener.shape[2]))
        ranks.append(second.rank)
    return Projection(
        np.concatenate(operators),
        np.concatenate(whiteners),
        np.concatenate(starts),
        np.concatenate(ranks),
        first.condition,
    )


def _padded(values: FloatArray, axes: int, width: int) -> FloatArray:
    """The last ``axes`` axes of ``values`` filled up with zeros to ``width``."""
    pad = [(0, 0)] * (values.ndim - axes) + [(0, width - n) for n in values.shape[-axes:]]
    return np.pad(values, pad)
