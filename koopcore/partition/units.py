"""What a layout is made of: parameter tensors, and the layers whose nodes run through them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """One parameter tensor: flat indices `offset .. offset + size - 1`, row-major over `shape`."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Block:
    """How the nodes of one layer run through one tensor.

    tensor: position in `Layout.tensors`.
    axis: the axis that counts nodes: 0 (rows: Linear, Conv, Embedding, biases), 1 (columns:
        ConvTranspose, transposed Linear), or None (the whole tensor belongs to the only node).
    groups: with axis 1, the convolution groups: node j of group g takes column j of only those
        rows that belong to g, and the nodes are counted group by group.
    first: index along axis 0 at which node 0 stands (a slice of a shared bias).
    """

    tensor: int
    axis: int | None = 0
    groups: int = 1
    first: int = 0


@dataclass(frozen=True)
class Unit:
    """A layer: `n_nodes` nodes, each the union of its share of every block, weights before biases.

    A block that is frozen, tied or excluded is absent; the nodes keep what is recorded of them.
    """

    name: str
    n_nodes: int
    blocks: tuple[Block, ...]
