"""Trajectories of different lengths as one array of states and the pairs (x_n, x_{n+1}) in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from koopcore.learning.checks import finite_array, real_array
from koopcore.types import FloatArray, IntArray

Trajectories: TypeAlias = npt.ArrayLike | Sequence[npt.ArrayLike]


class Pairs(NamedTuple):
    """All states, each stored once, and which of them follow which."""

    states: FloatArray  # (M, n)
    current: slice | IntArray  # rows of x_n, N of them
    following: slice | IntArray  # rows of x_{n+1}
    n_pairs: int  # N
    lengths: tuple[int, ...] = ()  # of the trajectories, in the order of the rows; () for pairs

    def with_states(self, states: FloatArray) -> Pairs:
        """The same pairs of other (scaled, or fewer) state columns."""
        return self._replace(states=states)

    def windows(self, horizon: int, stride: int = 1) -> IntArray:
        """Rows of states that have ``horizon`` states behind them, every ``stride``-th of each
        trajectory: where predictions can be compared. Snapshot pairs have one step each.
        """
        if not self.lengths:
            return np.arange(self.n_pairs)[::stride] if horizon == 1 else np.zeros(0, np.intp)
        ends = np.cumsum(self.lengths)
        return np.concatenate(
            [
                np.arange(end - length, end - horizon, stride)
                for end, length in zip(ends, self.lengths, strict=True)
            ]
        ).astype(np.intp)


def pairs(
    trajectories: Trajectories, n_states: int | None = None, following: Trajectories | None = None
) -> Pairs:
    """Check trajectories and join them: nothing is paired across two trajectories.

    trajectories: (length, n) array, or a sequence of such of different lengths >= 2; copied to
    float64. n_states: the width that is needed, if known. following: the state after every one of
    ``trajectories``, of the same shape; then the rows are snapshot pairs in no order, each a
    trajectory of one step. Raises ValueError for different widths, a trajectory that is too short,
    a value that is not finite, and data in which nothing moves; TypeError for what are no real
    numbers.
    """
    if following is not None:
        return _snapshot_pairs(trajectories, following, n_states)
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
    return joined_pairs(items)


def joined_pairs(items: Sequence[FloatArray]) -> Pairs:
    """The pairs of trajectories that have been checked."""
    states = np.concatenate(items)
    lengths = tuple(len(item) for item in items)
    count = len(states) - len(items)
    if len(items) == 1:
        return Pairs(states, slice(0, count), slice(1, count + 1), count, lengths)
    current = np.delete(np.arange(len(states)), np.cumsum(lengths) - 1)
    return Pairs(states, current, current + 1, count, lengths)


def _snapshot_pairs(now: Trajectories, ahead: Trajectories, n_states: int | None) -> Pairs:
    """Pairs (x, y) with y the state after x, row by row."""
    first, second = (
        np.concatenate([_checked(k, item, 1, of) for k, item in enumerate(separate(part))])
        for part, of in ((now, "X: "), (ahead, "Y: "))
    )
    if first.shape != second.shape:
        raise ValueError(
            f"X has {first.shape[0]} rows of {first.shape[1]} states and Y {second.shape[0]} of "
            f"{second.shape[1]}; Y is the state after every row of X, of the same shape"
        )
    if n_states is not None and first.shape[1] != n_states:
        raise ValueError(
            f"X and Y have {first.shape[1]} states a row; the dictionary takes {n_states}. "
            "Rows are time, columns are states"
        )
    count = len(first)
    states = np.concatenate([first, second])
    if (states == states[0]).all():
        raise ValueError("no state ever changes; an operator cannot be learned from constant data")
    return Pairs(states, slice(0, count), slice(count, 2 * count), count)


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


class Samples(NamedTuple):
    """Pairs with what acts on them and how much they count, per row of the states."""

    data: Pairs
    inputs: FloatArray  # (M, m), u_n beside x_n; m = 0 without inputs
    weights: FloatArray  # (M,), of the pair that begins at the row; mean 1 over the pairs

    def windows(self, horizon: int, stride: int) -> IntArray:
        """Where predictions of ``horizon`` steps can be compared; see `Pairs.windows`."""
        return self.data.windows(horizon, stride)

    def divided(self, fraction: float) -> tuple[Samples, Samples]:
        """The samples, and behind them those held out: the last trajectories, ``fraction`` of
        them; of a single trajectory its last part. Raises ValueError where nothing would be left.
        """
        data = self.data
        if not data.lengths:
            raise ValueError(
                "snapshot pairs are in no order to hold a last part out of; give trajectories, or "
                "validation=0"
            )
        if len(data.lengths) > 1:
            held = min(max(1, round(fraction * len(data.lengths))), len(data.lengths) - 1)
            cut = int(sum(data.lengths[:-held]))
            return (
                self._of(data.lengths[:-held], slice(0, cut)),
                self._of(data.lengths[-held:], slice(cut, None)),
            )
        (length,) = data.lengths
        cut = length - max(2, round(fraction * length))
        if cut < 2:
            raise ValueError(
                f"a trajectory of {length} rows is too short to hold out {fraction:g} of it"
            )
        return self._of((cut,), slice(0, cut)), self._of((length - cut,), slice(cut, None))

    def _of(self, lengths: Sequence[int], rows: slice) -> Samples:
        states = self.data.states[rows]
        parts = np.split(states, np.cumsum(lengths)[:-1])
        return Samples(joined_pairs(parts), self.inputs[rows], self.weights[rows])


def samples(data: Pairs, u: Trajectories | None, sample_weight: Trajectories | None) -> Samples:
    """The pairs with their inputs and weights, as ``fit`` was given them, checked.

    u: one row for every row of the data, (length, m) or (length,), trajectory by trajectory; the
    input of a trajectory's last row is not used. sample_weight: a number >= 0 for every row; that
    of x_n is the pair's (x_n, x_{n+1}). Raises ValueError for other lengths.
    """
    inputs = np.zeros((len(data.states), 0)) if u is None else beside("u", u, data)
    if sample_weight is None:
        return Samples(data, inputs, np.ones(len(data.states)))
    weights = beside("sample_weight", sample_weight, data)
    if weights.shape[1] != 1:
        raise ValueError(
            f"sample_weight has {weights.shape[1]} numbers a row; one for every row is needed"
        )
    weights = weights[:, 0]
    total = float(weights[data.current].sum())
    if (weights < 0.0).any() or not total > 0.0:
        raise ValueError("sample_weight has numbers below 0, or only zeros; weights are >= 0")
    return Samples(data, inputs, weights * (data.n_pairs / total))


def beside(name: str, values: Trajectories, data: Pairs) -> FloatArray:
    """Numbers that belong to the rows of the data, (M, k); of pairs, to the first of each.

    Raises ValueError unless there is one row of them for every row of the data.
    """
    lengths = data.lengths or (data.n_pairs,)
    columns = _columns(name, values, len(lengths))
    if [len(part) for part in columns] != list(lengths):
        raise ValueError(
            f"{name} has {[len(part) for part in columns]} rows, the data {list(lengths)}: one row "
            "of it belongs to every state"
        )
    widths = {part.shape[1] for part in columns}
    if len(widths) > 1:
        raise ValueError(f"{name} has rows of different widths {sorted(widths)}")
    joined = np.concatenate(columns)
    missing = len(data.states) - len(joined)  # the states after snapshot pairs
    return np.concatenate([joined, np.zeros((missing, joined.shape[1]))])


def _columns(name: str, values: Trajectories, count: int) -> list[FloatArray]:
    """One array (length, k) per trajectory, of what was given for one or for several."""
    several = isinstance(values, (list, tuple)) and count > 1
    parts = list(values) if several else [values]  # type: ignore[arg-type]
    if not several and count > 1:
        array = finite_array(name, values)
        if array.ndim < 2 or len(array) != count:
            raise ValueError(f"{name} has shape {array.shape}; one array for each of {count}")
        parts = list(array)
    arrays = [finite_array(name, part) for part in parts]
    if any(array.ndim not in (1, 2) for array in arrays):
        if len(arrays) == 1 and arrays[0].ndim == 3 and len(arrays[0]) == 1:
            return [arrays[0][0]]
        raise ValueError(f"{name} has shape {arrays[0].shape}; (length, m) is needed")
    return [array.reshape(len(array), -1) for array in arrays]


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


def standardized(data: Pairs, shift: FloatArray, scale: FloatArray) -> Scaled:
    """The pairs of (x - shift) / scale; ValueError for a state without a scale."""
    still = np.flatnonzero(scale == 0.0)
    if still.size:
        raise ValueError(
            f"states {still.tolist()} never change, so they have no scale; leave them out, "
            "or learn with standardize=False"
        )
    return Scaled(data.with_states((data.states - shift) / scale), shift, scale)


def power_of_two(columns: FloatArray) -> FloatArray:
    """A power of two next to the largest magnitude of every column: dividing by it is exact.

    Only what becomes smaller than 1e-308 beside the largest loses digits.
    """
    _, exponents = np.frexp(np.abs(columns).max(axis=0))
    powers: FloatArray = np.ldexp(1.0, exponents - 1)
    return powers


def _checked(k: int, array: npt.NDArray[Any], least: int = 2, of: str = "") -> FloatArray:
    """A float64 copy of trajectory k, ``of`` which of several arguments."""
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(
            f"{of}trajectory {k} has shape {array.shape}; (length, n_states) is needed, one time "
            "a row"
        )
    if len(array) < least:
        raise ValueError(
            f"{of}trajectory {k} has {len(array)} row{'s' * (len(array) != 1)}; at least {least} "
            f"{'are' if least > 1 else 'is'} needed"
        )
    with np.errstate(over="ignore"):  # of wider floats
        states = np.array(array, dtype=np.float64, order="C")
    bad = np.argwhere(~np.isfinite(states))
    if len(bad):
        time, state = bad[0]
        raise ValueError(
            f"{of}trajectory {k} is not finite: row {time}, state {state} is "
            f"{states[time, state]}; nothing was learned"
        )
    return states
