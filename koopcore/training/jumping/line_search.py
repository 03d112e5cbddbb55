"""Line search along the Koopman trajectory and lines: the farthest good candidate wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidate:
    """A place to jump to: which kind, how many snapshots ahead, and its vector when asked."""

    kind: str
    horizon: float
    vector: Callable[[], Tensor]


@dataclass(frozen=True)
class Ladder:
    """Candidates of one kind at ascending horizons, taken one by one.

    Args:
        rungs: how many are always tried; beyond them the ladder goes on while its last rung is
            the best of it so far.
        fallback: tried only if nothing before it beat the present loss.
    """

    candidates: Iterable[Candidate]
    rungs: int
    fallback: bool = False


@dataclass(frozen=True)
class SearchResult:
    """The winner of a search or None, its loss, and (kind, horizon, loss) of all tried."""

    best: Candidate | None
    loss: float
    losses: tuple[tuple[str, float, float], ...]


def line_search(
    base: float,
    ladders: Sequence[Ladder],
    evaluate: Callable[[Tensor], float],
    slack: float = 0.0,
    margin: float = 0.0,
) -> SearchResult:
    """Evaluate candidates; return the farthest whose loss is nearly the lowest, if below ``base``.

    With ``L*`` the lowest loss tried, the winner is the longest horizon with a loss of at most
    ``L* + slack (base - L*)``: what lies farther along the trajectory has left more of the slow
    directions behind, though the fast ones may not have settled, which the steps that follow
    repair. A non-finite loss, or a vector with a non-finite element, never wins.

    Args:
        base: the present loss, finite.
        evaluate: writes a vector into the model and returns the loss there.
        slack: in [0, 1): 0 takes the lowest loss; any value lowers ``base``.
        margin: share of ``|base|`` by which a winner must lie below ``base``.

    Cost: one ``evaluate`` per candidate tried. The caller restores or moves the parameters:
    after the search the model holds the last candidate tried.
    """
    bar = base - margin * abs(base)
    losses: list[tuple[str, float, float]] = []
    good: list[tuple[Candidate, float]] = []
    for ladder in ladders:
        if ladder.fallback and good:
            continue
        lowest = math.inf
        for rung, candidate in enumerate(ladder.candidates, start=1):
            vector = candidate.vector()
            loss = evaluate(vector)
            losses.append((candidate.kind, candidate.horizon, loss))
            usable = math.isfinite(loss) and loss < bar and math.isfinite(float(vector.sum()))
            if usable:
                good.append((candidate, loss))
            best_so_far = usable and loss < lowest
            lowest = min(lowest, loss) if usable else lowest
            if rung >= ladder.rungs and not best_so_far:
                break
    if not good:
        return SearchResult(None, base, tuple(losses))
    lowest = min(loss for _, loss in good)
    limit = lowest + slack * (base - lowest)
    near = [(c, loss) for c, loss in good if loss <= limit]
    best, loss = max(near, key=lambda pair: (pair[0].horizon, -pair[1]))
    return SearchResult(best, loss, tuple(losses))


#: Takes a predicted vector and its horizon in snapshots, returns the vector to try instead.
Bound: TypeAlias = Callable[[Tensor, int], Tensor]

#: The first rungs of one operator are predicted together up to so many bytes, else one by one.
_TOGETHER = 1 << 24


def geometric(first: float, last: float, ratio: float) -> list[int]:
    """Return whole horizons ``first, first ratio, ...`` up to ``last``, each at least 1, ascending.

    >>> geometric(4, 64, 2)
    [4, 8, 16, 32, 64]
    """
    horizons: list[int] = []
    value = first
    # The tolerance keeps the end that repeated multiplication misses by rounding.
    while value <= last * (1 + 1e-9):
        whole = max(1, round(value))
        if not horizons or whole > horizons[-1]:
            horizons.append(whole)
        value *= ratio
    return horizons


def koopman(
    operators: Any, horizons: Sequence[int], rungs: int, bound: Bound | None = None
) -> Iterator[Candidate]:
    """Candidates ``x_{n+T} = U^T x_n`` at ascending ``T`` of fitted ``KoopmanOperators``.

    The first ``rungs`` are sure to be asked for and come from one read of the snapshots, where
    they fit into little memory. ``bound(vector, T)`` may correct each.
    """
    keep = bound or (lambda vector, horizon: vector)
    sure = list(horizons[:rungs])
    array, width = torch.float32.itemsize, operators.partition.size
    if len(sure) > 1 and len(sure) * width * array <= _TOGETHER:
        for horizon, row in zip(sure, operators.predict(sure), strict=True):
            yield Candidate("koopman", horizon, _given(keep(row, horizon)))
        horizons = horizons[rungs:]
    for horizon in horizons:
        yield Candidate("koopman", horizon, _predicted(operators, horizon, keep))


def line(rows: Tensor, order: Sequence[int], horizons: Sequence[int]) -> Iterator[Candidate]:
    """Candidates ``x_n + T (x_n - x_1) / (n - 1)``: the straight line through the window's ends."""
    newest = rows[order[-1]]
    slope = (newest - rows[order[0]]) / (len(order) - 1)
    for horizon in horizons:
        yield Candidate("line", horizon, _on_line(newest, slope, horizon))


def regression(rows: Tensor, order: Sequence[int], horizons: Sequence[int]) -> Iterator[Candidate]:
    """Candidates on the least-squares line through the window, at ``T = 0`` and ``horizons``.

        x(T) = mean + (T + (n-1)/2) s,    s = sum_k t_k x_k / sum_k t_k^2,    t_k = k - (n+1)/2

    Against minibatch noise of variance ``v`` per snapshot: the slope's variance is ``12 v / n^3``
    (through the ends alone ``2 v / n^2``), and ``x(0)`` is where the trajectory is now, without the
    lag of half a window that the mean has. Cost: one product with the rows, ``O(P n)``.
    """
    n = len(order)
    times = torch.arange(n, dtype=rows.dtype, device=rows.device) - (n - 1) / 2
    weights = rows.new_zeros(2, len(rows))
    weights[0, list(order)] = 1.0 / n
    weights[1, list(order)] = times / times.square().sum()
    middle, slope = weights @ rows
    level = middle + slope * ((n - 1) / 2)
    for horizon in (0, *horizons):
        yield Candidate("regression", horizon, _on_line(level, slope, horizon))


def mean(rows: Tensor, order: Sequence[int]) -> Candidate:
    """The mean of the window (LAWA), the candidate against minibatch noise."""
    whole = len(order) == len(rows)  # a full ring needs no copy of its rows
    return Candidate("mean", 0.0, lambda: (rows if whole else rows[list(order)]).mean(0))


def _given(row: Tensor) -> Callable[[], Tensor]:
    return lambda: row


def _predicted(operators: Any, horizon: int, keep: Bound) -> Callable[[], Tensor]:
    def predict() -> Tensor:
        vector = operators.predict(horizon)
        assert isinstance(vector, Tensor)
        return keep(vector, horizon)

    return predict


def _on_line(newest: Tensor, slope: Tensor, horizon: int) -> Callable[[], Tensor]:
    return lambda: torch.add(newest, slope, alpha=horizon)
