"""One rank of Algorithm 2 over torch.distributed: one all-gather and one exchange an iteration."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from koopcore.backends.stages import FloatArray
from koopcore.learning.exact_step import exact_operator
from koopcore.learning.history import History, Tracker
from koopcore.learning.share import Share
from koopcore.learning.step_sizes import Diminishing, lipschitz_k, scheduled
from koopcore.learning.supervisor import Report, tell

_SMALLEST = 1e-18
_GROWTH = 1.5
_RUNAWAY = 1e6


class Rules(NamedTuple):
    """How every rank steps; the same on all of them."""

    n_iterations: int
    k_step: str
    step_k: str | float | Diminishing
    step_w: str | float | Diminishing
    track: str
    ridge: float
    report_every: int


@dataclass
class Traffic:
    """What one rank moved: bytes sent and received by collective, and how many iterations."""

    gathered: int = 0  # received by all-gathers of ψ
    exchanged: int = 0  # received by exchanges of K_viᵀ e^v
    sent: int = 0
    iterations: int = 0
    seconds: float = 0.0


@dataclass
class Accepted:
    """The last accepted point and its gradients."""

    parameters: FloatArray
    rows: FloatArray
    value: float
    slope_k: FloatArray
    slope_w: FloatArray
    number: int
    steps: tuple[float, float] = (0.0, 0.0)


@dataclass
class Rank:
    """A share, its group of ranks, and the widths of everybody's features."""

    mine: Share
    widths: list[int]  # features per rank
    rank: int
    device: torch.device
    traffic: Traffic = field(default_factory=Traffic)

    def gather(self, features: FloatArray, squares: tuple[float, float]) -> tuple[FloatArray, Any]:
        """Everybody's ψ (M, h), and the sums of the two numbers that each rank adds to it."""
        points, most = len(features), max(self.widths)
        packet = torch.zeros(points * most + 2, dtype=torch.float64)
        packet[: features.size] = torch.from_numpy(np.ascontiguousarray(features)).reshape(-1)
        packet[-2:] = torch.tensor(squares, dtype=torch.float64)
        packet = packet.to(self.device)
        everyone = torch.empty(len(self.widths) * packet.numel(), dtype=torch.float64)
        everyone = everyone.to(self.device)
        dist.all_gather(list(everyone.view(len(self.widths), -1).unbind(0)), packet)
        rows = everyone.cpu().view(len(self.widths), -1).numpy()
        others = (len(self.widths) - 1) * packet.numel() * 8
        self.traffic.gathered += others
        self.traffic.sent += others
        parts = [
            row[: points * w].reshape(points, w) for row, w in zip(rows, self.widths, strict=True)
        ]
        return np.concatenate(parts, axis=1), rows[:, -2:].sum(axis=0)

    def exchange(self, error: FloatArray, tested: FloatArray) -> tuple[FloatArray, float, float]:
        """Σ_v K_viᵀ e^v (N, h_i), F, and F of the errors ``tested``, from all ranks."""
        points = len(error)
        contributions = error @ self.mine.rows  # (N, h), the columns of rank v for rank v
        squares = (float(np.vdot(error, error)), float(np.vdot(tested, tested)))
        cuts = np.cumsum(self.widths)[:-1]
        pieces = [np.append(part, squares) for part in np.split(contributions, cuts, axis=1)]
        outgoing = torch.from_numpy(np.concatenate(pieces)).to(self.device)
        sizes = [piece.size for piece in pieces]
        own = points * self.widths[self.rank] + 2
        incoming = torch.empty(own * len(self.widths), dtype=torch.float64, device=self.device)
        dist.all_to_all_single(incoming, outgoing, [own] * len(self.widths), sizes)
        received = incoming.cpu().numpy().reshape(len(self.widths), own)
        self.traffic.exchanged += (len(self.widths) - 1) * own * 8
        self.traffic.sent += (sum(sizes) - sizes[self.rank]) * 8
        total = received.sum(axis=0)
        return total[:-2].reshape(points, -1), float(total[-2]) / points, float(total[-1]) / points


def iterate(
    rank: Rank, rules: Rules, report: Callable[[int, Tracker, History], object]
) -> tuple[Tracker, History]:
    """Algorithm 2 on this rank. Every decision rests on sums that all ranks have alike."""
    mine, history = rank.mine, History()
    tracker = Tracker(rules.track, parameters=mine.parameters, operator=mine.rows)
    exact, searching = rules.k_step == "exact", rules.step_w == "backtracking"
    last: Accepted | None = None
    eta, power, reported = 1.0, None, 0
    start = time.perf_counter()

    def settle(squares: Any) -> None:
        """The gradients of the last accepted point have arrived from everybody: record it."""
        if last is not None and len(history) <= last.number:
            k, w = (float(s) for s in squares)
            history.add(last.value, math.sqrt(k), math.sqrt(w), *last.steps)
            e = k + w
            tracker.offer(last.number, last.value, e, last.parameters, last.rows)

    for t in range(rules.n_iterations):
        squares = (0.0, 0.0)
        if last is not None:
            squares = (float(np.sum(last.slope_k**2)), float(np.sum(last.slope_w**2)))
        features, total = rank.gather(mine.linearize(), squares)
        settle(total)
        error = tested = mine.errors(features)
        step_k = step_w = math.nan
        if exact:
            mine.rows = exact_operator(features, mine.data, rules.ridge, mine.own)
            error = tested = mine.errors(features)
        elif searching:
            # Algorithm 1's order, K first: it takes no message. The search compares F at the old K.
            slope_k = mine.row_gradient(features, error)
            constant, ahead = lipschitz_k(features[mine.data.current], power, 1e-6)
            step_k = 1.0 / constant
            mine.rows = mine.rows - step_k * slope_k
            error = mine.errors(features)
        back, value, compared = rank.exchange(error, tested)
        rank.traffic.iterations += 1
        if searching and last is not None:
            if not compared <= last.value - 0.5 * eta * float(total[1]):
                eta *= 0.5
                if eta < _SMALLEST:
                    history.stopped = "tolerance"
                    break
                mine.parameters = last.parameters - eta * last.slope_w
                mine.rows = last.rows
                continue
            eta *= _GROWTH
        first = history.objective[0] if len(history) else value
        if not (np.isfinite(value) and value <= max(_RUNAWAY * first, 1e-300)):
            history.stopped = "diverged"
            break
        slope_w = mine.parameter_gradient(error, back)
        if exact:
            slope_k = np.zeros_like(mine.rows)
        elif searching:
            power = ahead
        else:
            slope_k = mine.row_gradient(features, error)
        number = 0 if last is None else last.number + 1
        last = Accepted(mine.parameters, mine.rows, value, slope_k, slope_w, number)
        if searching:
            step_w = eta
        else:
            step_w = scheduled(rules.step_w, t)  # type: ignore[arg-type]
        if not (exact or searching):
            if isinstance(rules.step_k, str):
                constant, power = lipschitz_k(features[mine.data.current], power, 1e-6)
                step_k = 1.0 / constant
            else:
                step_k = scheduled(rules.step_k, t)
            mine.rows = last.rows - step_k * slope_k
        last.steps = (step_k, step_w)
        mine.parameters = last.parameters - step_w * slope_w
        if t - reported >= rules.report_every:
            report(t, tracker, history)
            reported = t
    rank.traffic.seconds = time.perf_counter() - start
    if last is not None and history.stopped != "diverged":
        ends = torch.tensor([np.sum(last.slope_k**2), np.sum(last.slope_w**2)]).to(rank.device)
        dist.all_reduce(ends)
        settle(ends.cpu().numpy())
    history.best = tracker.iteration
    return tracker, history


def run_rank(pipe: Connection, number: int, meeting: str, backend: str, *given: Any) -> None:
    """Body of a launched rank: join the group, iterate, and report through the pipe."""
    share_, widths, rules, timeout = given
    torch.set_num_threads(1)
    done = 0

    def report(t: int, tracker: Tracker, history: History) -> None:
        nonlocal done
        done = t
        state = (tracker.parameters, tracker.operator, len(history), _latest(history))
        tell(pipe, Report("state", t, state))

    try:
        dist.init_process_group(
            backend,
            init_method=meeting,
            rank=number,
            world_size=len(widths),
            timeout=_seconds(timeout),
        )
        rank = Rank(share_, widths, number, _device(backend, number))
        tracker, history = iterate(rank, rules, report)
        content = (tracker.parameters, tracker.operator, history, rank.traffic)
        tell(pipe, Report("done", len(history), content))
        dist.destroy_process_group()
    except Exception as error:  # every failure is told to the supervisor, which names the worker
        told = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        tell(pipe, Report("failed", done, (f"lost the other ranks or failed ({told})", None)))


def _latest(history: History) -> float:
    return history.objective[-1] if len(history) else float("nan")


def _seconds(timeout: float) -> Any:
    from datetime import timedelta

    return timedelta(seconds=timeout)


def _device(backend: str, number: int) -> torch.device:
    if backend != "nccl":
        return torch.device("cpu")
    return torch.device("cuda", number % torch.cuda.device_count())
