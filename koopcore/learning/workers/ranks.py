"""One rank of Algorithm 2: its iterations, one all-gather and one exchange each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from koopcore.learning.learners.divergence import diverges
from koopcore.learning.learners.history import Criterion, History, Tracker
from koopcore.learning.learners.step_sizes import (
    POWERS,
    Backtracking,
    StepK,
    StepW,
    lipschitz_k,
    scheduled,
)
from koopcore.learning.objective import exact_operator
from koopcore.learning.workers.collectives import Collectives, RanksLost, ranks_together
from koopcore.learning.workers.messages import MessageDtype
from koopcore.learning.workers.share import Part, Share
from koopcore.learning.workers.supervisor import Complaint, Report, tell
from koopcore.types import FloatArray


class Rules(NamedTuple):
    """How every rank steps; the same on all of them."""

    n_iterations: int
    k_step: str
    step_k: StepK
    step_w: StepW
    track: Criterion
    ridge: float
    engine: str | None  # the backend that exact steps use; None where there are none
    report_every: int
    messages: MessageDtype = "float64"


@dataclass
class Accepted:
    """The last accepted point, this rank's part of its gradients, and the steps taken from it."""

    parameters: FloatArray
    rows: FloatArray
    value: float  # F, of all ranks
    slope_k: FloatArray
    slope_w: FloatArray
    number: int
    step_k: float
    step_w: float

    def squares(self) -> tuple[float, float]:
        """This rank's part of ‖∇_K‖² and ‖∇_W‖²."""
        return float(np.vdot(self.slope_k, self.slope_k)), float(
            np.vdot(self.slope_w, self.slope_w)
        )


Listener = Callable[[int, Tracker], object]


class Iterations:
    """The iterations of one rank. Every decision rests on sums, which all ranks have alike."""

    def __init__(self, share: Share, collectives: Collectives, rules: Rules) -> None:
        self.share, self.collectives, self.rules = share, collectives, rules
        self.history = History()
        self.tracker = Tracker(rules.track, share.parameters, share.rows)
        self._exact = rules.k_step == "exact"
        self._search = Backtracking() if rules.step_w == "backtracking" else None
        self._last: Accepted | None = None
        # Dominant eigenvectors of Σψψᵀ: of the last accepted point, and of the one being tried.
        self._power: FloatArray | None = None
        self._power_here: FloatArray | None = None

    def run(self, listener: Listener) -> tuple[Tracker, History]:
        """All iterations; ``listener`` is told the best iterate every `report_every` of them."""
        start = time.perf_counter()
        for t in range(self.rules.n_iterations):
            with np.errstate(over="ignore", invalid="ignore"):  # a sum of all tells divergence
                stopped = self._iterate(t)
            if stopped is not None:
                self.history.stopped = stopped
                break
            if (t + 1) % self.rules.report_every == 0:
                listener(t + 1, self.tracker)
        self.collectives.traffic.seconds = time.perf_counter() - start
        if self._last is not None and self.history.stopped != "diverged":
            self._settle(self.collectives.total(self._last.squares()))
        self.history.best = self.tracker.iteration
        return self.tracker, self.history

    def _iterate(self, t: int) -> str | None:
        """One round of messages, and a step, or half of one taken back; why to stop, or None."""
        share, last = self.share, self._last
        squares = (0.0, 0.0) if last is None else last.squares()
        features, slopes = self.collectives.gather(share.linearize(), squares)
        self._settle(slopes)
        error, compared, slope_k, step_k = self._own_rows(features, t)
        back, sums = self.collectives.exchange(error @ share.rows, (_sum(error), _sum(compared)))
        value, compared_value = (one / share.data.n_pairs for one in sums)
        if self._search is not None and last is not None:
            if not self._search.accepts(compared_value, last.value, slopes[1]):
                going_on = self._search.shrink()
                share.parameters = last.parameters - self._search.step * last.slope_w
                share.rows = last.rows
                return None if going_on else "tolerance"
            self._search.grow()
        if diverges(value, self.history):
            return "diverged"
        self._power = self._power_here
        slope_w = share.parameter_gradient(error, back)
        if self._search is not None:
            step_w = self._search.step
        else:
            assert not isinstance(self.rules.step_w, str)
            step_w = scheduled(self.rules.step_w, t)
        number = 0 if last is None else last.number + 1
        self._last = Accepted(
            share.parameters, share.rows, value, slope_k, slope_w, number, step_k, step_w
        )
        if not self._exact and self._search is None:
            share.rows = share.rows - step_k * slope_k  # Algorithm 2: both steps at the old point
        share.parameters = share.parameters - step_w * slope_w
        return None

    def _own_rows(
        self, features: FloatArray, t: int
    ) -> tuple[FloatArray, FloatArray, FloatArray, float]:
        """e^i, the errors that a search compares, ∇F by the own rows of K, and the step of K.

        The exact solve, and the K step of a search (Algorithm 1's order, K first), need nobody
        else, so the rows move before the errors are exchanged. A search then compares F at the old
        K, as `AlternatingLearner` does.
        """
        share = self.share
        if self._exact:
            rules = self.rules
            share.rows = exact_operator(
                features, share.data, rules.ridge, share.place, rules.engine
            )
            error = share.errors(features)
            return error, error, np.zeros_like(share.rows), math.nan
        error = share.errors(features)
        slope = share.row_gradient(features, error)
        if isinstance(self.rules.step_k, str) or self._search is not None:
            now = features[share.data.current]
            constant, self._power_here = lipschitz_k(now, self._power, 1e-6)
            step = 1.0 / constant if constant else 0.0
        else:
            step = scheduled(self.rules.step_k, t)
        if self._search is None:
            return error, error, slope, step
        share.rows = share.rows - step * slope
        return share.errors(features), error, slope, step

    def _settle(self, squares: tuple[float, float]) -> None:
        """The gradients of the last accepted point have arrived from everybody: record it."""
        last = self._last
        if last is not None and len(self.history) <= last.number:
            k, w = squares
            self.history.add(last.value, math.sqrt(k), math.sqrt(w), last.step_k, last.step_w)
            slope = math.sqrt(k + w)
            self.tracker.offer(last.number, last.value, slope, last.parameters, last.rows)


class JointGradient:
    """F and its joint gradient at any point, each rank with its own part of it."""

    def __init__(self, share: Share, collectives: Collectives) -> None:
        self.share, self.collectives = share, collectives

    def at(self, part: Part) -> tuple[float, Part]:
        """F, of all ranks, and this rank's part of the gradient. Cost: one iteration's messages."""
        share = self.share
        share.parameters, share.rows = part
        features, _ = self.collectives.gather(share.linearize(), (0.0, 0.0))
        error = share.errors(features)
        back, sums = self.collectives.exchange(error @ share.rows, (_sum(error), 0.0))
        slope = Part(share.parameter_gradient(error, back), share.row_gradient(features, error))
        return sums[0] / share.data.n_pairs, slope

    def lipschitz(self, part: Part) -> float:
        """L near a point: `joint_lipschitz`, with norms that are sums over the ranks."""
        epsilon = 1e-7 * (1.0 + self._norm(part))
        _, here = self.at(part)
        rng, size = np.random.default_rng([0, self.collectives.rank]), 0.0
        direction = Part(*(rng.standard_normal(array.shape) for array in part))
        for _ in range(POWERS):
            length = self._norm(direction)
            moved = Part(
                *(x + (epsilon / length) * d for x, d in zip(part, direction, strict=True))
            )
            _, there = self.at(moved)
            direction = Part(*((b - a) / epsilon for a, b in zip(here, there, strict=True)))
            size = self._norm(direction)
            if size == 0.0 or not math.isfinite(size):
                break
        return size

    def _norm(self, part: Part) -> float:
        """Of all ranks' parts together."""
        return math.sqrt(sum(self.collectives.total((_sum(part.parameters), _sum(part.rows)))))


def run_rank(
    pipe: Connection,
    number: int,
    meeting: str,
    backend: str,
    share: Share,
    widths: list[int],
    rules: Rules,
    timeout: float,
) -> None:
    """Body of a launched rank: join the group, iterate, and report through the pipe."""
    tell(pipe, Report("here", 0))
    torch.set_num_threads(1)
    done = 0

    def listener(t: int, tracker: Tracker) -> None:
        nonlocal done
        done = t
        tell(pipe, Report("state", t, part=Part(tracker.parameters, tracker.operator)))

    try:
        with ranks_together():
            dist.init_process_group(
                backend,
                init_method=meeting,
                rank=number,
                world_size=len(widths),
                timeout=timedelta(seconds=timeout),
            )
        collectives = Collectives(widths, number, device_of(backend, number), rules.messages)
        best, history = Iterations(share, collectives, rules).run(listener)
        part = Part(best.parameters, best.operator)
        tell(pipe, Report("done", len(history), (history, collectives.traffic), part))
        dist.destroy_process_group()
    except RanksLost as error:
        tell(pipe, Report("failed", done, Complaint(str(error))))
    except Exception as error:  # every failure is told to the supervisor, which names the worker
        tell(pipe, Report("failed", done, Complaint(f"failed with {error!r}", number)))


def device_of(backend: str, number: int) -> torch.device:
    """Where a rank's messages are: a GPU for NCCL, one rank each; else memory."""
    if backend != "nccl":
        return torch.device("cpu")
    return torch.device("cuda", number % torch.cuda.device_count())


def device_here() -> torch.device:
    """Where the messages of this rank of an existing group are: its current GPU for NCCL."""
    if dist.get_backend() != "nccl":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _sum(entries: FloatArray) -> float:
    """Σ of squares."""
    return float(np.vdot(entries, entries))
