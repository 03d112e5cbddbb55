"""Line search along predicted trajectories: the farthest candidate near the lowest loss found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

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

    rungs: how many are always tried; beyond them the ladder goes on while its last rung is the
        best of it so far.
    fallback: tried only if nothing before it beat the present loss.
    """

    candidates: Iterable[Candidate]
    rungs: int
    fallback: bool = False


@dataclass(frozen=True)
class Found:
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
) -> Found:
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
        return Found(None, base, tuple(losses))
    lowest = min(loss for _, loss in good)
    limit = lowest + slack * (base - lowest)
    near = [(c, loss) for c, loss in good if loss <= limit]
    best, loss = max(near, key=lambda pair: (pair[0].horizon, -pair[1]))
    return Found(best, loss, tuple(losses))
