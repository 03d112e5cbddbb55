"""Trajectories of different lengths as one array of states and the pairs (x_n, x_{n+1}) in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from koopcore.learning.checks import real_array
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
    a trajectory that is too short, a value that is not finite, and data in which nothing moves;
    TypeError for what are no real numbers.
    """
    items = [_checked(k, item) for k, item in enumerate(separate(trajectories))]
    width = items[0].shape[1] if n_states is None else n_states
    for k, item in enumerate(items):
        if item.shape[1] != width:
            source = "trajectory 0 has" if n_states is None else "the dictionary takes"
            raise ValueError(
                f"trajectory {k} has {item.shape[1]} states a row; {source} {width}. "
                "Rows are time, columns are states"
            )
    if all((item == item[0]).all() for item in items):
        raise ValueError(
            "no trajectory ever changes; an operator cannot be learned from constant data"
        )
    states = np.concatenate(items)
    count = len(states) - len(items)
    if len(items) == 1:
        return Pairs(states, slice(0, count), slice(1, count + 1), count)
    last = np.cumsum([len(item) for item in items]) - 1
    current = np.delete(np.arange(len(states)), last)
    return Pairs(states, current, current + 1, count)


def separate(trajectories: Trajectories) -> list[npt.NDArray[Any]]:
    """The trajectories as a list of arrays, whether one or several were given."""
    if not isinstance(trajectories, (list, tuple)):
        array = real_array("the data", trajectories)
        return list(array) if array.ndim == 3 else [array]
    items = [real_array(f"trajectory {k}", item) for k, item in enumerate(trajectories)]
    if not items:
        raise ValueError("no trajectory was given; an array (length, n_states) or several")
    if all(item.ndim == 1 for item in items):  # the rows of one trajectory
        widths = sorted({len(item) for item in items})
        if len(widths) > 1:
            raise ValueError(f"the rows have {widths} states; (length, n_states) is needed")
        return [np.stack(items)]
    return items


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
    # Sums and squares at most of order one: no state is too large or too small for them.
    size = power_of_two(data.states)
    shift = (data.states / size).mean(axis=0) * size
    with np.errstate(over="ignore"):
        moved = data.states - shift
    if not np.isfinite(moved).all():
        raise ValueError("the states span more than float64 holds; divide them by a large number")
    size = power_of_two(moved)
    scale = np.sqrt(np.square(moved / size).mean(axis=0)) * size
    return Scaled(data.with_states(moved / scale), shift, scale)


def power_of_two(columns: FloatArray) -> FloatArray:
    """A power of two next to the largest magnitude of every column: dividing by it is exact.

    Only what becomes smaller than 1e-308 beside the largest loses digits.
    """
    _, exponents = np.frexp(np.abs(columns).max(axis=0))
    powers: FloatArray = np.ldexp(1.0, exponents - 1)
    return powers


def _checked(k: int, array: npt.NDArray[Any]) -> FloatArray:
    """A float64 copy of trajectory k."""
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(
            f"trajectory {k} has shape {array.shape}; (length, n_states) is needed, one time a row"
        )
    if len(array) < 2:
        raise ValueError(
            f"trajectory {k} has {len(array)} row{'s' * (len(array) != 1)}; at least 2 are needed"
        )
    with np.errstate(over="ignore"):  # of wider floats
        states = np.array(array, dtype=np.float64, order="C")
    bad = np.argwhere(~np.isfinite(states))
    if len(bad):
        time, state = bad[0]
        raise ValueError(
            f"trajectory {k} is not finite: row {time}, state {state} is {states[time, state]}; "
            "nothing was learned"
        )
    return states
