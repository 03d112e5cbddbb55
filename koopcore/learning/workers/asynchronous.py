"""Algorithm 3: workers that never wait for messages younger than a bound."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import numpy as np

from koopcore.learning.assembly import assemble
from koopcore.learning.dictionaries.blocks import Blocks
from koopcore.learning.estimator import Learner, positive_seconds, whole
from koopcore.learning.history import History
from koopcore.learning.progress import bar
from koopcore.learning.safe_step import last_good, warn_of_divergence
from koopcore.learning.step_sizes import Diminishing, check_step, scheduled
from koopcore.learning.trajectories import Trajectories, pairs, scaled
from koopcore.learning.workers.async_worker import AsyncRules, Finished, run_worker
from koopcore.learning.workers.distributed import joined, keep_last_good
from koopcore.learning.workers.share import Division, divide, share
from koopcore.learning.workers.supervisor import STARTING, Report, Supervisor, WorkerError
from koopcore.learning.workers.transport import Network
from koopcore.types import FloatArray


@dataclass(eq=False, repr=False)
class AsynchronousLearner(Learner):
    """Learn as `DistributedLearner` does, with the last messages received instead of the newest.

    Every worker is a process with TCP connections to all others (Liu, Ding, Chen, Yeung 2020,
    Algorithm 3). It sends ψ_i and K_ivᵀ e^i and steps with what it has of the others, unless that
    is more than ``delay`` iterations old: then it waits, and repeats its own messages meanwhile,
    so a lost message costs time and nothing else. With delay=0 the iterates are those of
    `simultaneous_step`. For bounded delay and small enough steps it converges to a stationary
    point of F; the longer the delay, the smaller (about η ∝ 1/(1 + delay)).

    dictionary: `Blocks`. workers: processes, at most one per block. step_k, step_w: numbers or
    `Diminishing`; there is no search, which would need everybody's F. timeout: seconds of silence
    after which a peer counts as lost. report_every: iterations between the states the caller is
    sent; the last of them remain if a worker is lost (`WorkerError` names it), and are saved in
    ``checkpoint``. network: delays and losses to simulate, a picklable function of an `Envelope`
    (seconds, or None to lose the message). Other parameters as in `AlternatingLearner`.

    After ``fit``: ``operator_`` (the last iterate), ``history_`` (one entry per report), and
    ``delays_``: how many messages of which age were used. Not deterministic unless delay=0.
    Not where all workers are equally fast and near: then it is `DistributedLearner` with old data.
    """

    dictionary: Blocks
    _: KW_ONLY
    workers: int = 2
    step_k: float | Diminishing = 0.1
    step_w: float | Diminishing = 0.1
    delay: int = 2
    timeout: float = 30.0
    report_every: int = 50
    checkpoint: str | Path | None = None
    network: Network | None = None
    delays_: dict[int, int] = field(init=False)
    sent_bytes_: list[int] = field(init=False)
    seconds_: float = field(init=False)

    def fit(
        self,
        X: Trajectories,
        y: object = None,
        *,
        initial: tuple[FloatArray, FloatArray] | None = None,
    ) -> AsynchronousLearner:
        """Start the workers, deal out the columns of X, and learn. Raises before any work as
        `AlternatingLearner` does, and `WorkerError` naming a worker that died or kept silent.
        """
        division = self._divided()
        made = scaled(pairs(X, self.dictionary.n_states), self.standardize)
        start = self._start(initial)
        key, rules = secrets.token_bytes(16), self._rules()
        places = division.feature_slices()
        arguments = [
            (number, places, share(division, number, made.data, *start), rules, key)
            for number in range(self.workers)
        ]
        self.history_ = History()
        diverged: str | None = None
        with (
            Supervisor(run_worker, arguments) as supervisor,
            bar(self.n_iterations, self.progress) as moved,
        ):
            listener = _Sums(self.history_, self.workers, self.step_k, self.step_w, moved)
            try:
                addresses = supervisor.gather("address", STARTING)
                supervisor.send([report.content for report in addresses])
                # A peer's silence is noticed by its peers first, who know which it is.
                patience = 2.0 * self.timeout + 1.0
                ended = supervisor.gather("done", patience, listener.add)
            except FloatingPointError as error:
                diverged = str(error)
            except WorkerError as error:
                keep_last_good(self, error, made, supervisor.last_states())
                raise
        if diverged is None:
            kept = joined([report._replace(content=report.content.part) for report in ended])
            self._measure([report.content for report in ended])
        else:
            reported = supervisor.last_states()
            self.history_.best = len(self.history_) - 1
            # Before the first report of all, the start is what is left.
            kept = joined(reported) if reported else start
            kept = last_good(self.history_, self.dictionary, made.data, start, kept)
            where = f"({diverged}) with step_k={self.step_k!r}, step_w={self.step_w!r}"
            warn_of_divergence(
                self.history_, self.dictionary, made.data, start, kept, where, self.delay
            )
        self.operator_ = assemble(self, made, *kept)
        return self

    def _rules(self) -> AsyncRules:
        return AsyncRules(
            self.n_iterations,
            self.step_k,
            self.step_w,
            self.delay,
            self.timeout,
            self.report_every,
            self.network,
        )

    def _measure(self, finished: list[Finished]) -> None:
        self.delays_ = dict(sorted(sum((Counter(f.delays) for f in finished), Counter()).items()))
        self.sent_bytes_ = [f.sent_bytes for f in finished]
        self.seconds_ = max(f.seconds for f in finished)

    def _divided(self) -> Division:
        """The blocks dealt out to workers; raises for settings that cannot work."""
        division = divide(self.dictionary, whole("workers", self.workers))
        self._check()
        whole("report_every", self.report_every)
        whole("delay", self.delay, 0)
        check_step("step_k", self.step_k, ())
        check_step("step_w", self.step_w, ())
        positive_seconds("timeout", self.timeout)
        return division


class _Sums:
    """F and the gradients' norms as sums over the workers' reports of the same iteration."""

    def __init__(
        self,
        history: History,
        workers: int,
        step_k: float | Diminishing,
        step_w: float | Diminishing,
        moved: Callable[[int], object],
    ) -> None:
        self.history, self.workers, self.steps = history, workers, (step_k, step_w)
        self._moved = moved
        self._waiting: dict[int, list[tuple[float, float, float]]] = {}

    def add(self, _: int, report: Report) -> None:
        reported = self._waiting.setdefault(report.iteration, [])
        reported.append(report.content[2])
        if len(reported) == self.workers:
            f, k, w = np.sum(self._waiting.pop(report.iteration), axis=0)
            used = [scheduled(step, report.iteration) for step in self.steps]
            self.history.add(float(f), float(k**0.5), float(w**0.5), *used)
            self._moved(report.iteration)
