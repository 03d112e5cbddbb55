"""Which groups of a partition a warp, a block or several blocks take: the plan of the CUDA kernels.

`make_plan` is for kernels of one stage each, `shares` for the one that does all stages. A plan
depends on the sizes of the groups and on the window alone, never on the device: results are the
same bit for bit wherever the same kind of sums is made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from koopcore.backends.native_cuda.cost import COSTS, worthwhile
from koopcore.partition.partition import Partition
from koopcore.partition.segments import cut
from koopcore.types import IntArray

WARP_WINDOW = 32  # longest window whose Gram matrix fits the registers of a warp
WARP_SIZE = 128  # parameters of a group that one warp reads quickly enough
WARP_SIZE_OF_MANY = 1024  # the same where there are MANY groups, which fill the device anyway
MANY = 8192
LEAST_PIECE = 4096  # parameters of a piece of a large group
MOST_PIECES = 2048  # about so many pieces are made of all parameters

# Of one pass:
CHUNK = 16  # columns of shared memory that a warp sums together
TOGETHER = 1.25  # groups whose columns differ by no more than this factor share a launch
MOST_WARPS = 4  # kMostWarps of csrc/cuda/one_pass.cu
ONE_PASS_SIZE = 48  # up to so many parameters most lanes of a block have none
ONE_PASS_STEPS = 1024  # kDirectSteps of csrc/algorithms/lanes.h: longer rollouts square
SCATTERED = 2  # columns over parameters from which on shared memory is wasted


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


def make_plan(part: Partition, wide: bool) -> Plan:
    """The plan; ``wide``: for Gram matrices that a warp's registers do not hold or may not sum."""
    sizes = part.sizes
    width = max(LEAST_PIECE, -(-part.n_parameters // MOST_PIECES // 64) * 64)
    large = sizes > 2 * width
    if wide:
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


class Share(NamedTuple):
    """The arrays of `Share` in csrc/cuda/problem.h."""

    groups: IntArray | None  # None: all groups, in order
    n_groups: int
    columns: int
    warps: int


def tile_columns(part: Partition) -> IntArray:
    """Columns of shared memory that every group fills (csrc/cuda/tile.h): a multiple of CHUNK."""
    lead = np.where(part.stride == 1, part.start & 3, 0)
    quads = np.add.reduceat(-(-(lead + part.length) // 4), part.group_ptr[:-1])
    columns: IntArray = -(-4 * quads // CHUNK) * CHUNK
    return columns


def warps_for(columns: int) -> int:
    """Warps of a block that takes one group of so many columns."""
    return 1 if columns <= 160 else 2 if columns <= 384 else MOST_WARPS


def for_one_pass(
    part: Partition, most: int, n: int, steps: int, width: int
) -> npt.NDArray[np.bool_]:
    """Which groups one pass is for: of at most ``most`` columns, few of them empty, and quicker so
    by the model of cost.py, for n snapshots of numbers of ``width`` bytes and ``steps`` ahead."""
    columns, sizes = tile_columns(part), part.sizes
    chosen: npt.NDArray[np.bool_] = (columns <= most) & (columns <= SCATTERED * sizes + 2 * CHUNK)
    chosen &= sizes > ONE_PASS_SIZE
    chosen[chosen] = worthwhile(COSTS, sizes[chosen], n, steps, width)
    return chosen


def shares(columns: IntArray) -> list[Share]:
    """Groups of similar columns together, so that a launch reserves little more than each needs."""
    found = []
    kinds = np.unique(columns)[::-1]
    while len(kinds):
        together = kinds >= kinds[0] / TOGETHER
        widest, narrowest = int(kinds[0]), int(kinds[together][-1])
        groups = np.flatnonzero((columns <= widest) & (columns >= narrowest))
        listed = groups if len(groups) < len(columns) else None
        found.append(Share(listed, len(groups), widest, warps_for(widest)))
        kinds = kinds[~together]
    return found
