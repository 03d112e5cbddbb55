"""Partitions: which parameters share one Koopman operator, as CSR segments of the flat vector."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.partition.given_groups import read_groups
from koopcore.partition.layer_groups import layer_groups, node_groups, single_weights, whole_network
from koopcore.partition.layout import Layout, is_int, positive_int
from koopcore.partition.segments import Index, Segments, expand, find_overlap, merge, ranges


@dataclass(frozen=True, eq=False, repr=False)
class Partition:
    """Groups of parameters; every group gets its own Koopman operator ([DR] Fig. 1).

    Attributes:
        size: length of the flat vector (`Layout.size`), the number of columns of the snapshots.
        group_ptr: (n_groups + 1,) group g owns segments group_ptr[g] .. group_ptr[g + 1] - 1.
        start, length, stride: (n_segments,) a segment covers start + stride * arange(length);
            contiguous neighbours within a group are one segment, single indices have stride 1.
        name: how it was made: "network", "layers", "nodes", "quasi_nodes(100)", "weights",
            "groups".

    Arrays are int64, C-contiguous and read-only. Parameters in no group are legal: they keep
    their last value. Equality compares the groups, not the name.

    Use the constructors below; the class itself trusts its arrays and checks only their shapes.

    Cost does not depend on the partition except through the number of small solves: choose it for
    statistics, not for speed (a network operator is as cheap as node operators).

    Source: Dogra & Redman, NeurIPS 2020, Fig. 1 and section 3.
    """

    size: int
    group_ptr: Index
    start: Index
    length: Index
    stride: Index
    name: str = "groups"

    def __post_init__(self) -> None:
        for field in ("group_ptr", "start", "length", "stride"):
            array = np.ascontiguousarray(getattr(self, field), dtype=np.int64)
            if array.flags.writeable:
                array = array.view()  # the caller's own array stays as it is
                array.setflags(write=False)
            object.__setattr__(self, field, array)
        if not self.start.shape == self.length.shape == self.stride.shape == (self.n_segments,):
            raise ValueError(
                f"start {self.start.shape}, length {self.length.shape} and stride "
                f"{self.stride.shape} must have one entry for each of the {self.n_segments} "
                "segments that group_ptr counts"
            )

    # -- constructors ---------------------------------------------------------------------------

    @classmethod
    def network(cls, layout: Layout) -> Partition:
        """One group of all parameters. Not for networks whose parts move on unlike time scales."""
        return cls._made(layout, whole_network(_checked(layout, "network")), "network")

    @classmethod
    def layers(cls, layout: Layout) -> Partition:
        """One group per layer: its weights, then its biases (`Layout.units`)."""
        return cls._made(layout, layer_groups(_checked(layout, "layers")), "layers")

    @classmethod
    def nodes(cls, layout: Layout) -> Partition:
        """One group per node: the weights into a unit and its bias, m = fan_in + 1 ([DR] Fig. 1).

        A node is a row of a Linear, a filter of a convolution, an output channel of a transposed
        one, a row of an embedding, a hidden unit's gate with both its rows and biases in a
        recurrent layer, and a whole normalisation layer.
        Cost: O(number of segments), 10^8 parameters in well under a second.
        """
        return cls._made(layout, node_groups(_checked(layout, "nodes")), "nodes")

    @classmethod
    def quasi_nodes(
        cls, layout: Layout, size: int, layers: int | str | Iterable[int | str] | None = None
    ) -> Partition:
        """Nodes cut into chunks of `size` parameters, weights before bias ([DR] section 3).

        The remainder of a node keeps an operator of its own. layers: the layers to cut, by
        position or name (fnmatch patterns) in `layout.units`; the nodes of the others stay whole,
        as on [DR]'s MNIST network, where only the first layer is cut. None cuts all.

        Raises TypeError or ValueError unless `size` is an int >= 1 and every layer exists. Not
        for fewer parameters than snapshots per group, unless a wide group is what you want.
        """
        _checked(layout, "quasi_nodes")
        length = positive_int(size, "the quasi-node size")
        if layers is None:
            return cls._made(layout, node_groups(layout, length), f"quasi_nodes({length})")
        chosen = _chosen_layers(layout, layers)
        name = f"quasi_nodes({length}, layers={sorted(chosen)})"
        return cls._made(layout, node_groups(layout, length, chosen), name)

    @classmethod
    def weights(cls, layout: Layout) -> Partition:
        """Every parameter a group of its own (m = 1), in flat order. Memory: 40 bytes a group."""
        return cls._made(layout, single_weights(_checked(layout, "weights")), "weights")

    @classmethod
    def groups(cls, layout_or_size: Layout | int, groups: Iterable[Any]) -> Partition:
        """Own groups, each an integer index array, a slice or range, or a tensor-name pattern.

        Args:
            layout_or_size: a `Layout`, or the length of the flat vector (then without
                patterns).
            groups: one entry per group; the order of the indices in a group is kept; a pattern
                (fnmatch, "blocks.0.*") takes all matching tensors as one group.

        Raises TypeError for wrong kinds (floats, masks), ValueError for an empty group, an index
        outside the flat vector, a repeated index, groups that overlap. Cost: O(indices given).
        """
        size, segments = read_groups(layout_or_size, groups)
        partition = cls(size, *merge(segments), name="groups")
        overlap = find_overlap(partition.segments)
        if overlap is not None and overlap.first == overlap.second:
            raise ValueError(
                f"group {overlap.first} contains index {overlap.at} more than once; "
                "give each index once"
            )
        if overlap is not None:
            raise ValueError(
                f"groups {overlap.first} and {overlap.second} both contain index {overlap.at}; "
                "groups must be disjoint, so leave it in one of them"
            )
        return partition

    @classmethod
    def _made(cls, layout: Layout, segments: Segments, name: str) -> Partition:
        return cls(layout.size, *segments, name=name)

    # -- what is in it --------------------------------------------------------------------------

    @property
    def n_groups(self) -> int:
        """The number of groups, and so of operators."""
        return self.group_ptr.size - 1

    @property
    def n_segments(self) -> int:
        """The number of segments of all groups."""
        return int(self.group_ptr[-1])

    @property
    def segments(self) -> Segments:
        """The four arrays as one tuple."""
        return Segments(self.group_ptr, self.start, self.length, self.stride)

    @cached_property
    def kept(self) -> dict[str, Any]:
        """What a backend keeps of this partition, under its name: plans for the next fit."""
        return {}

    @cached_property
    def sizes(self) -> Index:
        """(n_groups,) the number of parameters m of every group."""
        if self.n_segments == self.n_groups:
            return self.length
        sizes = np.add.reduceat(self.length, self.group_ptr[:-1])
        sizes.setflags(write=False)
        return sizes

    @cached_property
    def smallest(self) -> int:
        """The size of the smallest group; 0 without groups."""
        return int(self.sizes.min()) if self.n_groups else 0

    @cached_property
    def largest(self) -> int:
        """The size of the largest group; 0 without groups."""
        return int(self.sizes.max(initial=0))

    @cached_property
    def numbers(self) -> Index:
        """(n_groups,) 0, 1 … n_groups - 1."""
        numbers = np.arange(self.n_groups)
        numbers.setflags(write=False)
        return numbers

    @cached_property
    def n_parameters(self) -> int:
        """The number of parameters that are in some group."""
        return int(self.length.sum())

    def indices(self, group: int) -> Index:
        """(m,) the flat indices of one group, in its order (weights before bias)."""
        if not is_int(group):
            raise TypeError(f"group is {group!r}; give an int, 0 .. {self.n_groups - 1}")
        if not 0 <= group < self.n_groups:
            raise ValueError(f"group {group} does not exist; the partition has {self.n_groups}")
        own = slice(int(self.group_ptr[group]), int(self.group_ptr[group + 1]))
        return expand(self.start[own], self.length[own], self.stride[own])

    def index_matrix(self, groups: npt.ArrayLike) -> Index:
        """(len(groups), m) the flat indices of groups of equal size m; ValueError if they differ.

        Cost: 8 bytes and two passes per index. Not for all groups of a large layout at once.
        """
        chosen = self._chosen_groups(groups)
        sizes = self.sizes[chosen]
        if chosen.size == 0:
            return np.empty((0, 0), dtype=np.int64)
        if (sizes != sizes[0]).any():
            other = int(np.flatnonzero(sizes != sizes[0])[0])
            raise ValueError(
                f"group {chosen[0]} has {sizes[0]} parameters and group {chosen[other]} has "
                f"{sizes[other]}; an index matrix needs groups of equal size"
            )
        own = self._segments_of(chosen)
        flat = expand(self.start[own], self.length[own], self.stride[own])
        return flat.reshape(chosen.size, int(sizes[0]))

    def subset(self, groups: npt.ArrayLike) -> Partition:
        """These groups alone, in this order, over the same flat vector; none is allowed too."""
        chosen = self._chosen_groups(groups)
        ordered = np.sort(chosen)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if twice.size:
            raise ValueError(
                f"subset got group {twice[0]} more than once; groups must stay disjoint"
            )
        own = self._segments_of(chosen)
        counts = np.diff(self.group_ptr)[chosen]
        ptr = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts)))
        return Partition(
            self.size, ptr, self.start[own], self.length[own], self.stride[own], self.name
        )

    def by_size(self, least: int) -> list[tuple[Index, Partition]]:
        """Groups of at least ``least`` parameters, then of each smaller size: numbers and subset.

        The last answer is kept: a training loop fits the same partition again and again.
        """
        if least not in self._divisions:
            self._divisions.clear()
            small = np.unique(self.sizes[self.sizes < least])
            masks = [self.sizes >= least, *(self.sizes == m for m in small)]
            chosen = [np.flatnonzero(mask) for mask in masks if mask.any()]
            whole = len(chosen) == 1
            self._divisions[least] = [(g, self if whole else self.subset(g)) for g in chosen]
        return self._divisions[least]

    @cached_property
    def _divisions(self) -> dict[int, list[tuple[Index, Partition]]]:
        return {}

    def _segments_of(self, groups: Index) -> Index:
        return ranges(self.group_ptr[groups], np.diff(self.group_ptr)[groups])

    def _chosen_groups(self, groups: npt.ArrayLike) -> Index:
        given = np.asarray(groups)
        if given.size == 0 and given.ndim == 1:
            return np.empty(0, dtype=np.int64)
        if given.ndim != 1 or given.dtype.kind not in "iu":
            raise TypeError(
                f"groups is {given.dtype} of shape {given.shape}; give a 1-D sequence of ints "
                "(np.flatnonzero turns a mask into one)"
            )
        chosen = given.astype(np.int64)
        outside = np.flatnonzero((chosen < 0) | (chosen >= self.n_groups))
        if outside.size:
            raise ValueError(
                f"group {chosen[outside[0]]} does not exist; the partition has {self.n_groups}"
            )
        return chosen

    # -- being a value --------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if self is other:  # what a training loop asks for: no look at a million segments
            return True
        if not isinstance(other, Partition):
            return NotImplemented
        return self.size == other.size and all(
            np.array_equal(mine, theirs)
            for mine, theirs in zip(self.segments, other.segments, strict=True)
        )

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.size, self.n_groups, self.n_segments, self.n_parameters))

    def __reduce__(self) -> tuple[type[Partition], tuple[Any, ...]]:
        return Partition, (self.size, *self.segments, self.name)  # read-only again on arrival

    def __repr__(self) -> str:
        if self.n_groups == 0:
            return f"<Partition {self.name}: no groups over {self.size} parameters>"
        share = 100.0 * self.n_parameters / self.size
        least, most = int(self.sizes.min()), int(self.sizes.max())
        return (
            f"<Partition {self.name}: {self.n_groups} group{'s' if self.n_groups > 1 else ''} of "
            f"{least if least == most else f'{least} to {most}'} parameters, covering "
            f"{self.n_parameters} of {self.size} ({share:.4g} %)>"
        )


def _checked(layout: Any, constructor: str) -> Layout:
    if not isinstance(layout, Layout):
        raise TypeError(
            f"Partition.{constructor} got {type(layout).__name__}; it takes a Layout: build one "
            "with Layout.from_module(model) or Layout.from_shapes(shapes)"
        )
    return layout


def _chosen_layers(layout: Layout, layers: Any) -> frozenset[int]:
    try:
        given = [layers] if is_int(layers) or isinstance(layers, str) else list(layers)
    except TypeError:
        raise TypeError(
            f"layers is {layers!r}; give a position, a name, or several of them"
        ) from None
    chosen: set[int] = set()
    for layer in given:
        chosen.update(layout.find_units(layer))
    return frozenset(chosen)
