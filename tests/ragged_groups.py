"""Groups of many sizes and shapes, random walks for them, and how far two Gram matrices differ."""

from __future__ import annotations

import numpy as np

from koopcore.backends.protocol import Snapshots, unpack
from koopcore.partition.partition import Partition

RAGGED = [1, 2, 7, 16, 31, 65, 129, 300]


def walks(rng, n, size, dtype, spare=2):
    """Random walks with an offset, in a ring with ``spare`` more slots, turned by some."""
    steps = rng.normal(size=(n + spare, size))
    array = (np.cumsum(steps, axis=0) + 3.0 * rng.normal(size=size)).astype(dtype)
    return Snapshots(array, (np.arange(n) + n - 1) % (n + spare))


def ragged(rng, sizes):
    """Groups of the given sizes: contiguous ones, strided ones and scattered ones in turn."""
    groups, at = [], 2
    for i, m in enumerate(sizes):
        scattered = np.sort(rng.choice(np.arange(at, at + 3 * m), m, replace=False))
        groups.append((np.arange(at, at + m), np.arange(at, at + 3 * m, 3), scattered)[i % 3])
        at += 3 * m
    return Partition.groups(at + 6, groups)


def gram_error(got, expected, n):
    """Largest error of an entry over the norms of its two vectors."""
    norm = np.sqrt(np.diagonal(unpack(expected, n), axis1=1, axis2=2))
    rows, columns = np.tril_indices(n)
    scale = norm[:, rows] * norm[:, columns]
    return np.max(np.abs(got - expected) / np.where(scale > 0.0, scale, 1.0))


def pieced(sizes):
    """Groups of the given sizes: contiguous, strided, and in two segments, in turn."""
    groups, at = [], 2
    for i, m in enumerate(sizes):
        two = np.r_[at : at + m - 1, at + 3 * m - 2]
        groups.append((np.arange(at, at + m), np.arange(at, at + 3 * m, 3), two)[i % 3])
        at += 3 * m
    return Partition.groups(at + 6, groups)
