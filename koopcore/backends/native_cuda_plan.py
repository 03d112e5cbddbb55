"""Which groups of a partition a warp, a block or several blocks take: the plan of the CUDA kernels.

It depends on the sizes of the groups and on the window alone, never on the device: results are the
same bit for bit wherever the same kind of sums is made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from koopcore.backends.stages import IntArray
from koopcore.partition import Partition
from koopcore.segments import cut

WARP_WINDOW = 32  # longest window whose Gram matrix fits the registers of a warp
WARP_SIZE = 128  # parameters of a group that one warp reads quickly enough
WARP_SIZE_OF_MANY = 1024  # the same where there are MANY groups, which fill the device anyway
MANY = 8192
LEAST_PIECE = 4096  # parameters of a piece of a large group
MOST_PIECES = 2048  # about so many pieces are made of all parameters


class Plan(NamedTuple):
    """The arrays of `Plan` in csrc/cuda/problem.h."""

    small: IntArray | None  # groups of a warp each; None: all groups, in order
    pieces: IntArray  # (n_pieces, 4) group, segment, position within it, number of parameters
    n_middle: int  # the first pieces are whole groups
    large_group: IntArray  # groups of several pieces each
    large_piece: IntArray  # (n_large + 1,) the first piece of each, behind the middle ones

    @property
    def n_small(self) -> int:
        """The number of groups listed as small."""
        return 0 if self.small is None else len(self.small)


def make_plan(part: Partition, n: int) -> Plan:
    """The plan for a window of ``n`` snapshots."""
    sizes = part.sizes
    width = max(LEAST_PIECE, -(-part.n_parameters // MOST_PIECES // 64) * 64)
    large = sizes > 2 * width
    if n > WARP_WINDOW:
        small = np.zeros(part.n_groups, dtype=np.bool_)
    else:
        small = sizes <= WARP_SIZE
        moderate = sizes <= WARP_SIZE_OF_MANY
        if np.count_nonzero(moderate) >= MANY:
            small = moderate
    middle = np.flatnonzero(~small & ~large)
    whole = np.empty((len(middle), 4), dtype=np.int64)
    whole.T[:] = middle, part.group_ptr[middle], np.zeros_like(middle), sizes[middle]
    large_group = np.flatnonzero(large)
    cuts = [_pieces(part, int(group), width) for group in large_group]
    first = np.concatenate(([0], np.cumsum([len(pieces) for pieces in cuts]))).astype(np.int64)
    return Plan(
        None if small.all() else np.flatnonzero(small),
        np.concatenate([whole, *cuts]),
        len(middle),
        large_group,
        first,
    )


def _pieces(part: Partition, group: int, width: int) -> IntArray:
    """Pieces (…, 4) of ``width`` parameters each, the last one shorter."""
    first, end = part.group_ptr[group : group + 2]
    segment, within, _, chunk = cut(part.length[first:end], width)
    head = chunk[:-1]
    pieces = np.empty((len(head), 4), dtype=np.int64)
    pieces[:, 0] = group
    pieces[:, 1] = first + segment[head]
    pieces[:, 2] = within[head]
    pieces[:, 3] = width
    pieces[-1, 3] = part.sizes[group] - width * (len(head) - 1)
    return pieces
