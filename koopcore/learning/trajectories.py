"""Trajectories of different lengths as one array of states and the pairs (x_n, x_{n+1}) in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from koopcore.types import FloatArray, IntArray

Trajectories: TypeAlias = npt.ArrayLike | Sequence[npt.ArrayLike]


class Pairs(NamedTuple):
    """All states, each stored once, and which of them follow which."""

    states: FloatArray  # (M, n)
    current: slice | IntArray  # rows of x_n, N of them
    following: slice | IntArray  # rows of x_{n+1}
    n_pairs: int  # N

    def with_states(self, states: FloatArray) -> Pairs:
        """The same pairs of other (scaled, or fewer) state columns."""
        return self._replace(states=states)


def pairs(trajectories: Trajectories, n_states: int | None = None) -> Pairs:
    """Check trajectories and join them: nothing is paired across two trajectories.

    trajectories: (length, n) array, or a sequence of such of different lengths >= 2; copied to
    float64. n_states: the width that is needed, if known. Raises ValueError for different widths,
    a trajectory that is too short, a value that is not finite, and data in which nothing moves.
    """
    rows = [_checked(k, t) for k, t in enumerate(separate(trajectories))]
    wanted = rows[0].shape[1] if n_states is None else n_states
    for k, row in enumerate(rows):
        if row.shape[1] != wanted:
            source = "trajectory 0 has" if n_states is None else "the dictionary takes"
            raise ValueError(
                f"trajectory {k} has {row.shape[1]} states a row; {source} {wanted}. "
                "Rows are time, columns are states"
            )
    if all((row == row[0]).all() for row in rows):
        raise ValueError(
            "no trajectory ever changes; an operator cannot be learned from constant data"
        )
    states = np.concatenate(rows)
    count = len(states) - len(rows)
    if len(rows) == 1:
        return Pairs(states, slice(0, count), slice(1, count + 1), count)
    last = np.cumsum([len(row) for row in rows]) - 1
    current = np.delete(np.arange(len(states)), last)
    return Pairs(states, current, current + 1, count)


def separate(trajectories: Trajectories) -> list[npt.NDArray[Any]]:
    """The trajectories as a list, whether one array or several were given."""
    if isinstance(trajectories, np.ndarray) and trajectories.ndim == 2:
        return [trajectories]
    items: list[Any] = (
        list(trajectories) if isinstance(trajectories, (list, tuple)) else [trajectories]
    )
    if isinstance(trajectories, np.ndarray) and trajectories.ndim == 3:
        items = list(trajectories)
    if items and np.ndim(items[0]) == 1:  # nested lists of numbers: one trajectory
        items = [trajectories]
    if not items:
        raise ValueError("no trajectory was given; an array (length, n_states) or several")
    return [np.asarray(item) for item in items]


class Scaled(NamedTuple):
    """Pairs of z = (x - shift) / scale, which is what is learned on."""

    data: Pairs
    shift: FloatArray  # (n,)
    scale: FloatArray  # (n,)


def scaled(data: Pairs, standardize: bool) -> Scaled:
    """The pairs as they are, or standardized: by the mean and the standard deviation.

    Raises ValueError for a state without a scale, one that never changes.
    """
    n = data.states.shape[1]
    if not standardize:
        return Scaled(data, np.zeros(n), np.ones(n))
    still = np.flatnonzero((data.states == data.states[0]).all(axis=0))
    if still.size:
        raise ValueError(
            f"states {still.tolist()} never change, so they have no scale; leave them out, "
            "or learn with standardize=False"
        )
    shift, scale = data.states.mean(axis=0), data.states.std(axis=0)
    return Scaled(data.with_states((data.states - shift) / scale), shift, scale)


def _checked(k: int, given: npt.NDArray[Any]) -> FloatArray:
    if given.ndim != 2 or given.shape[1] == 0:
        raise ValueError(
            f"trajectory {k} has shape {given.shape}; (length, n_states) is needed, one time a row"
        )
    if given.dtype.kind not in "fiu":
        raise TypeError(f"trajectory {k} is of {given.dtype}; real numbers are needed")
    if len(given) < 2:
        raise ValueError(
            f"trajectory {k} has {len(given)} row{'s' * (len(given) != 1)}; at least 2 are needed"
        )
    row = np.array(given, dtype=np.float64, order="C")
    bad = np.argwhere(~np.isfinite(row))
    if len(bad):
        time, state = bad[0]
        raise ValueError(
            f"trajectory {k} is not finite: row {time}, state {state} is {row[time, state]}; "
            "nothing was learned"
        )
    return row
