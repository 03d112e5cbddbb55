"""What `fit` and `predict` accept: every misuse is an error here, before any work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.backends.stages import IntArray, Snapshots, packed_size
from koopcore.partition import Partition

MODELS = ("linear", "affine", "trend", "auto")
MINIMUM = {"linear": 2, "affine": 3, "trend": 2, "auto": 2}


def window_order(shape: tuple[int, ...], order: Sequence[int] | None) -> IntArray:
    """Row indices in time order; all rows in turn where ``order`` is None."""
    if len(shape) != 2:
        raise ValueError(
            f"snapshots has shape {tuple(shape)}; (n_snapshots, n_parameters) is needed, one "
            "snapshot a row (papers and PyDMD use columns: pass the transpose)"
        )
    if order is None:
        return np.arange(shape[0])
    rows = np.asarray(order)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise TypeError(f"order must be a sequence of row indices, oldest first; got {order!r}")
    if rows.size and not (0 <= rows.min() and rows.max() < shape[0]):
        raise ValueError(
            f"order has rows {rows.min()}..{rows.max()}; snapshots has {shape[0]} rows"
        )
    return rows.astype(np.int64)


def check_fit(n: int, size: int, part: Any, model: str, rank: int | None, ridge: float) -> None:
    """Raise for anything that `fit` cannot take."""
    if not isinstance(part, Partition):
        raise TypeError(
            f"part is a {type(part).__name__}; a koopcore.Partition is needed, "
            "such as Partition.nodes(layout)"
        )
    if part.size != size:
        raise ValueError(
            f"snapshots has {size} parameters a row, but the partition is of {part.size}; "
            "rows must be in the layout's order"
        )
    if part.n_groups == 0:
        raise ValueError("the partition has no groups; nothing would be fitted")
    if model not in MODELS:
        raise ValueError(f"model is {model!r}; one of {', '.join(map(repr, MODELS))} is needed")
    least = MINIMUM[model]
    if n < least:
        raise ValueError(
            f"snapshots has {n} row{'s' * (n != 1)}; the {model} model needs at least {least} "
            f"snapshots (window >= {least})"
        )
    if rank is not None:
        if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)):
            raise TypeError(f"rank is {rank!r}; None or an integer is needed")
        possible = min(n - 1 - (model == "affine"), int(part.sizes.max()))
        if not 1 <= rank <= possible:
            raise ValueError(
                f"rank is {rank}; {n} snapshots of groups of up to {int(part.sizes.max())} "
                f"parameters support ranks 1..{possible} for the {model} model"
            )
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float, np.floating)):
        raise TypeError(f"ridge is {ridge!r}; a number >= 0 is needed")
    if not 0.0 <= ridge < float("inf"):
        raise ValueError(f"ridge is {ridge}; a finite number >= 0 is needed (0: no regularization)")
    check_memory(n, part)


def check_memory(n: int, part: Partition) -> None:
    """Raise MemoryError where the Gram matrices alone exceed this machine's memory."""
    wide = part.sizes >= n - 1
    narrow = part.sizes[~wide].astype(np.float64)
    needed = 8.0 * (float(wide.sum()) * packed_size(n) + 4.0 * float((narrow * narrow).sum()))
    if needed < 2**28:
        return
    available = float(os.sysconf("SC_PAGE_SIZE")) * float(os.sysconf("SC_PHYS_PAGES"))
    if needed > available:
        raise MemoryError(
            f"{part.n_groups} groups with a window of {n} need {needed:.3g} bytes of Gram matrices "
            f"and operators; this machine has {available:.3g}. Use fewer groups (a coarser "
            "partition) or a shorter window"
        )


def check_horizons(horizon: Any) -> tuple[list[int], bool]:
    """Horizons as a list, and whether a single one was given."""
    single = np.ndim(horizon) == 0
    values = [horizon] if single else list(horizon)
    if not values:
        raise ValueError("no horizon was given; T is a number of snapshots >= 1, or several")
    for value in values:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"T is {value!r}; whole numbers of snapshots >= 1 are accepted")
        if not 1 <= value < 2**62:
            raise ValueError(f"T is {value}; a number of snapshots in 1..2**62 is needed")
    return [int(value) for value in values], single


def raise_non_finite(snapshots: Snapshots, part: Partition) -> None:
    """Name the first snapshot and group with a NaN or infinity, if there is one."""
    for k, row in enumerate(snapshots.order):
        bad: npt.NDArray[Any] = np.flatnonzero(~np.isfinite(snapshots.array[row]))
        if bad.size == 0:
            continue
        lost = set(bad.tolist())
        for group in range(part.n_groups):
            indices = part.indices(group)
            hit = (
                indices[np.isin(indices, bad, kind="sort")]
                if len(lost) > 1
                else (indices[indices == bad[0]])
            )
            if hit.size:
                value = snapshots.array[row, hit[0]]
                raise ValueError(
                    f"snapshots is not finite: snapshot {k} (row {row}) has {value} at parameter "
                    f"{hit[0]}, in group {group}; nothing was fitted"
                )
