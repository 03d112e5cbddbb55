"""Algorithm 3: workers that go on with the last messages they have, as old as a bound allows."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from multiprocessing.connection import Connection, Listener
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from koopcore.learning.checks import nothing_more, whole
from koopcore.learning.learners.divergence import runs_away
from koopcore.learning.learners.history import History
from koopcore.learning.learners.step_sizes import Diminishing, check_step, scheduled
from koopcore.learning.objective import objective
from koopcore.learning.trajectories import Trajectories
from koopcore.learning.workers.messages import (
    FINAL,
    Mailbox,
    MessageDtype,
    Network,
    PeerLost,
    Transport,
)
from koopcore.learning.workers.parallel import ParallelLearner, whole_of
from koopcore.learning.workers.share import Part, Share
from koopcore.learning.workers.supervisor import STARTING, Complaint, Report, tell
from koopcore.types import FloatArray


@dataclass(eq=False, repr=False)
class AsynchronousLearner(ParallelLearner):
    """Learn as `DistributedLearner` does, with the last messages received instead of the newest.

    Every worker is a process with TCP connections to all others (Liu, Ding, Chen, Yeung 2020,
    Algorithm 3). It sends ψ_i and K_ivᵀ e^i and steps with what it has of the others, unless that
    is more than ``delay`` iterations old: then it waits, and repeats its own messages meanwhile,
    so a lost message costs time and nothing else. With delay=0 the iterates are those of
    `simultaneous_step`. For bounded delay and small enough steps it converges to a stationary
    point of F; the longer the delay, the smaller (about η ∝ 1/(1 + delay)). Which one depends on
    the messages' ages, and so on the run: stationary points of F are not isolated (features may be
    mixed, and K with them), and at F equal to all digits K was found to differ by 0.006 to 0.017.
    Compare F and predictions, not K.

    Args:
        dictionary: `Blocks`.
        workers: processes, at most one per block.
        step_k, step_w: numbers or `Diminishing`; there is no search, which would need
            everybody's F.
        timeout: seconds of silence after which a peer counts as lost.
        report_every: iterations between the states the caller is sent; the last of them remain
            if a worker is lost (`WorkerError` names it), and are saved in ``checkpoint``.
        network: delays and losses to simulate, a picklable function of an `Envelope` (seconds,
            or None to lose the message).
        messages: as in `DistributedLearner`. Other parameters as in `AlternatingLearner`.

    After ``fit``: ``operator_`` (the last iterate), ``history_`` (one entry per report), and
    ``delays_``: how many messages of which age were used. Not deterministic unless delay=0.
    Not where all workers are equally fast and near: then it is `DistributedLearner` with old data.
    """

    _: KW_ONLY
    step_k: float | Diminishing = 0.1
    step_w: float | Diminishing = 0.1
    delay: int = 2
    timeout: float = 30.0
    report_every: int = 50
    network: Network | None = None
    delays_: dict[int, int] = field(init=False)
    sent_bytes_: list[int] = field(init=False)
    seconds_: float = field(init=False)

    def fit(
        self,
        X: Trajectories,
        y: Trajectories | None = None,
        *,
        initial: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        **more: object,
    ) -> AsynchronousLearner:
        """Start the workers, deal out the columns of X, and learn. Raises before any work as
        `AlternatingLearner` does, and `WorkerError` naming a worker that died or kept silent.
        """
        nothing_more(self, more)
        division = self._division(self.workers)
        problem, start = self._begin(X, initial, y)
        key, rules, places = secrets.token_bytes(16), self._rules(), division.feature_slices()
        arguments = [
            (number, places, share, rules, key)
            for number, share in enumerate(division.shares(problem.data, *start))
        ]
        self.history_ = history = History()
        steps = f"with step_k={self.step_k!r}, step_w={self.step_w!r}"
        with self._team(run_worker, arguments, problem) as (supervisor, advance):
            sums = _Sums(history, self.workers, self.step_k, self.step_w, advance)
            try:
                addresses = supervisor.gather("address", STARTING)
                supervisor.send([report.content for report in addresses])
                # A peer's silence is noticed by its peers first, who know which it is.
                patience = 2.0 * self.timeout + 1.0
                reports = supervisor.gather("done", patience, sums.add)
            except FloatingPointError as error:
                history.stopped, history.best = "diverged", len(history) - 1
                steps = f"({error}) {steps}"
                reports = supervisor.last_states()
            else:
                self._measure([report.content for report in reports])
        # Where no report of all workers came before they diverged, the start is what is left.
        iterate = whole_of(reports) if reports else start
        with np.errstate(over="ignore", invalid="ignore"):
            first, last = (objective(self.dictionary, *p, problem.data) for p in (start, iterate))
        if runs_away(last, first):
            history.stopped = "diverged"
        self._conclude(problem, start, iterate, steps, self.delay)
        return self

    def _rules(self) -> Rules:
        return Rules(
            self.n_iterations,
            self.step_k,
            self.step_w,
            self.delay,
            self.timeout,
            self.report_every,
            self.network,
            self.messages,
        )

    def _measure(self, outcomes: list[Outcome]) -> None:
        self.delays_ = dict(sorted(sum((Counter(o.delays) for o in outcomes), Counter()).items()))
        self.sent_bytes_ = [o.sent_bytes for o in outcomes]
        self.seconds_ = max(o.seconds for o in outcomes)

    def _check(self) -> None:
        super()._check()
        whole("delay", self.delay, 0)
        check_step("step_k", self.step_k, ())
        check_step("step_w", self.step_w, ())


class _Sums:
    """F and the gradients' norms as sums over the workers' reports of the same iteration."""

    def __init__(
        self,
        history: History,
        workers: int,
        step_k: float | Diminishing,
        step_w: float | Diminishing,
        advance: Callable[[int], object],
    ) -> None:
        self.history, self.workers, self.steps = history, workers, (step_k, step_w)
        self._advance = advance
        self._waiting: dict[int, dict[int, tuple[float, float, float]]] = {}

    def add(self, worker: int, report: Report) -> None:
        reported = self._waiting.setdefault(report.iteration, {})
        reported[worker] = report.content
        if len(reported) == self.workers:
            del self._waiting[report.iteration]
            # In the workers' order, whoever reported first: rounding is the same in every run.
            f, k, w = np.sum([reported[n] for n in range(self.workers)], axis=0)
            steps = [scheduled(step, report.iteration) for step in self.steps]
            self.history.add(float(f), float(k**0.5), float(w**0.5), *steps)
            self._advance(report.iteration)


class Rules(NamedTuple):
    """How every worker steps; the same for all of them."""

    n_iterations: int
    step_k: float | Diminishing
    step_w: float | Diminishing
    delay: int  # largest age in iterations of a message that is used
    timeout: float
    report_every: int
    network: Network | None
    messages: MessageDtype


class Outcome(NamedTuple):
    """What a worker ends with, beside its part of the iterate."""

    delays: dict[int, int]  # age in iterations: how many messages of that age were used
    sent_bytes: int
    seconds: float


def run_worker(
    pipe: Connection, number: int, slices: list[slice], share: Share, rules: Rules, key: bytes
) -> None:
    """Body of a worker process: join the mesh, iterate, report through the pipe."""
    peers = [p for p in range(len(slices)) if p != number]
    mailbox = Mailbox(peers)
    transport = Transport(number, mailbox, rules.network, rules.messages)
    with Listener(("127.0.0.1", 0), backlog=len(slices), authkey=key) as listener:
        tell(pipe, Report("address", 0, listener.address))
        try:
            transport.connect(listener, pipe.recv(), key)
        except (EOFError, OSError):  # another worker, or the caller, is gone already
            tell(pipe, Report("failed", 0, Complaint("could not connect to the others")))
            return
    worker = Worker(number, slices, share, rules, mailbox, transport, pipe)
    try:
        worker.iterate()
    except PeerLost as error:
        complaint = Complaint(str(error), error.peer, error.stamp)
        tell(pipe, Report("failed", worker.done, complaint))
    except FloatingPointError:
        tell(pipe, Report("diverged", worker.done))
    except Exception as error:  # a dictionary's own code may raise anything
        tell(pipe, Report("failed", worker.done, Complaint(f"failed with {error!r}", number)))
    else:
        # Others may still be on their way: what they lost is repeated until the pipe is closed.
        while not pipe.poll(0.05):
            transport.repeat()
    # Nor does a worker that failed close its connections before all were heard: the others would
    # take it for the one that went first.
    with suppress(OSError):
        pipe.poll(None)
    transport.close()


class Worker:
    """The iterations of one worker."""

    def __init__(
        self,
        number: int,
        slices: list[slice],
        share: Share,
        rules: Rules,
        mailbox: Mailbox,
        transport: Transport,
        pipe: Connection,
    ) -> None:
        self.number, self.slices, self.share, self.rules = number, slices, share, rules
        self.mailbox, self.transport, self.pipe = mailbox, transport, pipe
        self.done = 0
        width = slices[-1].stop
        self._features = np.zeros((len(share.data.states), width))

    def iterate(self) -> None:
        """All iterations, and the final messages, which are never too old for the others."""
        share, rules = self.share, self.rules
        start = time.perf_counter()
        for t in range(rules.n_iterations):
            with np.errstate(over="ignore", invalid="ignore"):  # divergence is looked for below
                error, back = self._exchange(t, t)
                rows = share.row_gradient(self._features, error)
                slope = share.parameter_gradient(error, back)
                moved = share.parameters - scheduled(rules.step_w, t) * slope
                moved_rows = share.rows - scheduled(rules.step_k, t) * rows
            if not (np.isfinite(moved).all() and np.isfinite(moved_rows).all()):
                raise FloatingPointError
            share.parameters, share.rows = moved, moved_rows
            self.done = t + 1
            if self.done % rules.report_every == 0:
                self._report(error, rows, slope)
        seconds = time.perf_counter() - start
        self._exchange(rules.n_iterations, FINAL)
        outcome = Outcome(dict(self.mailbox.delays), self.transport.sent_bytes, seconds)
        tell(self.pipe, Report("done", self.done, outcome, Part(share.parameters, share.rows)))

    def _exchange(self, t: int, stamp: int) -> tuple[FloatArray, FloatArray]:
        """Send ψ_i, take everybody's; send K_ivᵀ e^i, take everybody's: e^i and Σ_v K_viᵀ e^v.

        What the others see of this worker is rounded where messages are; it sees the same.
        """
        share, peers, dtype = self.share, self.mailbox.peers, self.rules.messages
        features = share.linearize().astype(dtype, copy=False)
        self._features[:, share.place] = features
        for peer in peers:
            self.transport.post(peer, "features", stamp, features)
        for peer, arrived in self._wait("features", t).items():
            self._features[:, self.slices[peer]] = arrived
        error = share.errors(self._features)
        contributions = (error @ share.rows).astype(dtype, copy=False)
        for peer in peers:
            part = np.ascontiguousarray(contributions[:, self.slices[peer]])
            self.transport.post(peer, "errors", stamp, part)
        back = contributions[:, share.place].astype(np.float64)
        for arrived in self._wait("errors", t).values():
            back += arrived
        return error, back

    def _wait(self, kind: str, t: int) -> dict[int, FloatArray]:
        rules = self.rules
        return self.mailbox.wait(kind, t, rules.delay, rules.timeout, self.transport.repeat)

    def _report(self, error: FloatArray, rows: FloatArray, slope: FloatArray) -> None:
        share = self.share
        numbers = (
            float(np.vdot(error, error)) / len(error),
            float(np.vdot(rows, rows)),
            float(np.vdot(slope, slope)),
        )
        tell(self.pipe, Report("state", self.done, numbers, Part(share.parameters, share.rows)))
