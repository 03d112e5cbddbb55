"""What `fit` and `predict` accept: every misuse is an error here, before any work."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from koopcore import arrays
from koopcore.backends.protocol import Snapshots, packed_size
from koopcore.partition.partition import Partition
from koopcore.types import IntArray

MODELS = ("linear", "affine", "trend", "auto")
KEPT_ROWS = 4096  # of a window whose row numbers are kept for the next call
MINIMUM = {"linear": 2, "affine": 3, "trend": 2, "auto": 2}


def window_order(shape: tuple[int, ...], order: Sequence[int] | None) -> IntArray:
    """Row indices in time order; all rows in turn where ``order`` is None."""
    if len(shape) != 2:
        raise ValueError(
            f"snapshots has shape {tuple(shape)}; (n_snapshots, n_parameters) is needed, one "
            "snapshot a row (papers and PyDMD use columns: pass the transpose)"
        )
    if order is None:
        return _in_turn(shape[0]) if shape[0] <= KEPT_ROWS else np.arange(shape[0])
    rows = np.asarray(order)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise TypeError(f"order must be a sequence of row indices, oldest first; got {order!r}")
    if rows.size and not (0 <= rows.min() and rows.max() < shape[0]):
        raise ValueError(
            f"order has rows {rows.min()}..{rows.max()}; snapshots has {shape[0]} rows"
        )
    return rows.astype(np.int64)


@lru_cache(maxsize=16)
def _in_turn(n: int) -> IntArray:
    rows = np.arange(n)
    rows.setflags(write=False)
    return rows


def check_fit(n: int, size: int, part: Any, model: str, rank: int | None, ridge: float) -> None:
    """Raise for anything that `fit` cannot take."""
    if not isinstance(part, Partition):
        raise TypeError(
            f"part is a {type(part).__name__}; a koopcore.Partition is needed, "
            "such as Partition.nodes(layout)"
        )
    usual = rank is None and type(ridge) is float and ridge == 0.0 and type(model) is str
    if usual and part.kept.get("fits") == (n, size, model):  # as in the last call
        return
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
        possible = min(n - 1 - (model == "affine"), part.largest)
        if not 1 <= rank <= possible:
            raise ValueError(
                f"rank is {rank}; {n} snapshots of groups of up to {part.largest} "
                f"parameters support ranks 1..{possible} for the {model} model"
            )
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float, np.floating)):
        raise TypeError(f"ridge is {ridge!r}; a number >= 0 is needed")
    if not 0.0 <= ridge < float("inf"):
        raise ValueError(f"ridge is {ridge}; a finite number >= 0 is needed (0: no regularization)")
    check_memory(n, part)
    if usual:
        part.kept["fits"] = n, size, model


def check_memory(n: int, part: Partition) -> None:
    """Raise MemoryError where the Gram matrices alone exceed this machine's memory."""
    if 32 * part.n_groups * min(n, part.largest + 1) ** 2 < 2**28:  # the sum is not above that
        return
    available = float(os.sysconf("SC_PAGE_SIZE")) * float(os.sysconf("SC_PHYS_PAGES"))
    if 32.0 * part.n_groups * n * n <= available:
        return
    wide = part.sizes >= n - 1
    narrow = part.sizes[~wide].astype(np.float64)
    needed = 8.0 * (float(wide.sum()) * packed_size(n) + 4.0 * float((narrow * narrow).sum()))
    if needed > available:
        raise MemoryError(
            f"{part.n_groups} groups with a window of {n} need {needed:.3g} bytes of Gram matrices "
            f"and operators; this machine has {available:.3g}. Use fewer groups (a coarser "
            "partition) or a shorter window"
        )


def warn_if_transposed(array: Any, name: str) -> None:
    """A UserWarning where rows seem unrelated, and columns a series: of 256 of both.

    Successive rows of a series differ by less than they vary, those of noise by twice as much. Of
    few rows and ten times as many columns less is asked: few sensors are close to each other.
    """
    rows, columns = (int(size) for size in array.shape[-2:])
    flat = columns >= 10 * rows and rows > 1
    if not flat and (rows < 4 or columns < 4):
        return
    part = arrays.host(array[..., :256, :256])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        variance = float(part.real.var())  # 0 where nothing varies, or all is tiny
        steps = [float(np.square(np.diff(part, axis=axis).real).mean()) for axis in (-2, -1)]
    down, across = steps
    if down > (0.7 if flat else 1.0) * variance > 0.0 and across < 0.1 * down:
        warnings.warn(
            f"{name} of shape {tuple(array.shape)} seems to be transposed: its rows jump like "
            "unrelated things, and its columns move like a series. Rows are time here (PyDMD has "
            f"columns): pass {name}.T if so",
            stacklevel=4,
        )


def check_horizons(horizon: Any) -> tuple[list[int], bool]:
    """Horizons as a list, and whether a single one was given."""
    if type(horizon) is int and 1 <= horizon < 2**62:
        return [horizon], True
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
    """Name the first snapshot and group with a NaN or infinity, if there is one.

    Cost: one read of the snapshots, and O(log) a segment for a row that has any.
    """
    for k, row in enumerate(snapshots.order):
        values = arrays.host(snapshots.array[row])
        bad = np.flatnonzero(~np.isfinite(values))
        found = _first_of(bad, part) if bad.size else None
        if found is not None:
            group, at = found
            raise ValueError(
                f"snapshots is not finite: snapshot {k} (row {row}) has "
                f"{values[at]} at parameter {at}, in group {group}; "
                "nothing was fitted"
            )


def _first_of(bad: IntArray, part: Partition) -> tuple[int, int] | None:
    """The first group that has one of the ascending indices ``bad``, and which; None: no group."""
    ptr, start, length, stride = part.segments
    low = np.searchsorted(bad, start)
    high = np.searchsorted(bad, start + (length - 1) * stride, side="right")
    for segment in np.flatnonzero(high > low):  # a strided segment may step over what it spans
        within = bad[low[segment] : high[segment]]
        hit = within[(within - start[segment]) % stride[segment] == 0]
        if hit.size:
            return int(np.searchsorted(ptr, segment, side="right")) - 1, int(hit[0])
    return None
