"""Groups that follow the architecture: network, layers, nodes, quasi-nodes and single weights.

Every node of a layer has the same segments up to where they start, so a layer is planned as one
table (nodes x segments), whatever its size; only layers are looped over.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from koopcore.partition.layout import Layout
from koopcore.partition.segments import Index, Segments, cut, merge, ranges
from koopcore.partition.units import Block, Unit


class NodeTable(NamedTuple):
    """The nodes of one layer: start (n_nodes, s); length and stride (s,) shared by all nodes."""

    start: Index
    length: Index
    stride: Index


def whole_network(layout: Layout) -> Segments:
    """One group with every tensor in flat order; one segment if the layout has no padding."""
    start = np.array([t.offset for t in layout.tensors], dtype=np.int64)
    length = np.array([t.size for t in layout.tensors], dtype=np.int64)
    return merge(Segments(_pointer([start.size]), start, length, np.ones_like(start)))


def layer_groups(layout: Layout) -> Segments:
    """One group per unit: the whole of its blocks, weights before biases."""
    pieces = [[_extent(layout, unit, block) for block in unit.blocks] for unit in layout.units]
    flat = np.array([piece for unit in pieces for piece in unit], dtype=np.int64)
    counts = [len(unit) for unit in pieces]
    return merge(
        Segments(_pointer(counts), flat[:, 0], flat[:, 1], np.ones(len(flat), dtype=np.int64))
    )


def single_weights(layout: Layout) -> Segments:
    """Every parameter alone, in flat order."""
    whole = whole_network(layout)
    start = ranges(whole.start, whole.length)
    one = np.ones(start.size, dtype=np.int64)
    return Segments(np.arange(start.size + 1, dtype=np.int64), start, one, one)


def node_groups(
    layout: Layout, size: int | None = None, layers: Collection[int] | None = None
) -> Segments:
    """One group per node; with `size`, the nodes of `layers` (None: all) cut into chunks."""
    pointers: list[Index] = []
    tables: list[NodeTable] = []
    n_segments = 0
    for position, unit in enumerate(layout.units):
        table = node_table(layout, unit)
        chunk_ptr = np.array([0, table.length.size], dtype=np.int64)
        if size is not None and (layers is None or position in layers):
            table, chunk_ptr = _cut_nodes(table, size)
        n_nodes, s = table.start.shape
        node_head = n_segments + s * np.arange(n_nodes, dtype=np.int64)
        pointers.append((node_head[:, None] + chunk_ptr[:-1]).ravel())
        tables.append(table)
        n_segments += n_nodes * s
    pointers.append(np.array([n_segments], dtype=np.int64))
    return merge(
        Segments(
            np.concatenate(pointers),
            np.concatenate([t.start.ravel() for t in tables]),
            np.concatenate([_for_every_node(t, t.length) for t in tables]),
            np.concatenate([_for_every_node(t, t.stride) for t in tables]),
        )
    )


def node_table(layout: Layout, unit: Unit) -> NodeTable:
    """The segments of every node of a unit, block after block."""
    parts = [_block_table(layout, unit.n_nodes, block) for block in unit.blocks]
    return NodeTable(
        np.concatenate([p.start for p in parts], axis=1),
        np.concatenate([p.length for p in parts]),
        np.concatenate([p.stride for p in parts]),
    )


def _block_table(layout: Layout, n_nodes: int, block: Block) -> NodeTable:
    tensor = layout.tensors[block.tensor]
    if block.axis is None:
        return _table(np.array([[tensor.offset]], dtype=np.int64), tensor.size, 1)
    node = np.arange(n_nodes, dtype=np.int64)[:, None]
    if block.axis == 0:
        row = tensor.size // tensor.shape[0]
        return _table(tensor.offset + (block.first + node) * row, row, 1)
    # Axis 1 of (rows, columns, rest): node j of group g takes column j from the rows of group g.
    rows, columns = tensor.shape[:2]
    rest = tensor.size // (rows * columns)
    own = rows // block.groups
    first_row = (node // columns) * own
    column = node % columns
    if rest == 1:  # a column of a matrix: one strided segment
        return _table(tensor.offset + first_row * columns + column, own, columns)
    every_row = first_row + np.arange(own, dtype=np.int64)
    return _table(tensor.offset + (every_row * columns + column) * rest, rest, 1)


def _table(start: Index, length: int, stride: int) -> NodeTable:
    s = start.shape[1]
    step = 1 if length == 1 else stride
    return NodeTable(start, np.full(s, length, dtype=np.int64), np.full(s, step, dtype=np.int64))


def _cut_nodes(table: NodeTable, size: int) -> tuple[NodeTable, Index]:
    segment, within, length, chunk_ptr = cut(table.length, size)
    stride = table.stride[segment]
    start = table.start[:, segment] + within * stride
    return NodeTable(start, length, np.where(length == 1, 1, stride)), chunk_ptr


def _for_every_node(table: NodeTable, values: Index) -> Index:
    return np.broadcast_to(values, table.start.shape).ravel()


def _extent(layout: Layout, unit: Unit, block: Block) -> tuple[int, int]:
    """Where the nodes of a unit together stand in a tensor: (offset, number of parameters)."""
    tensor = layout.tensors[block.tensor]
    if block.axis != 0:
        return tensor.offset, tensor.size
    row = tensor.size // tensor.shape[0]
    return tensor.offset + block.first * row, unit.n_nodes * row


def _pointer(counts: list[int]) -> Index:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
