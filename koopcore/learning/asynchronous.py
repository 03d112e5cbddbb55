"""Algorithm 3: workers that never wait for messages younger than a bound."""

from __future__ import annotations

import secrets
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from koopcore.backends.stages import FloatArray
from koopcore.learning.assembly import assemble
from koopcore.learning.async_worker import AsyncRules, Finished, run_worker
from koopcore.learning.blocks import Blocks
from koopcore.learning.distributed import joined, keep_last_good
from koopcore.learning.estimator import Learner, generator, whole
from koopcore.learning.history import DivergenceWarning, History
from koopcore.learning.readout import check_readout
from koopcore.learning.share import Division, divide, share
from koopcore.learning.step_sizes import Diminishing, check_step, lipschitz_k
from koopcore.learning.supervisor import Report, Supervisor, WorkerError
from koopcore.learning.trajectories import Pairs, Trajectories, pairs, standardization
from koopcore.learning.transport import Network


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

    def __init__(
        self,
        dictionary: Blocks,
        *,
        workers: int = 2,
        n_iterations: int = 500,
        step_k: float | Diminishing = 0.1,
        step_w: float | Diminishing = 0.1,
        delay: int = 2,
        readout: str = "auto",
        standardize: bool = False,
        ridge: float = 0.0,
        polish: bool = False,
        random_state: int | np.random.Generator | None = 0,
        timeout: float = 30.0,
        report_every: int = 50,
        checkpoint: str | Path | None = None,
        network: Network | None = None,
    ) -> None:
        self.dictionary = dictionary
        self.workers = workers
        self.n_iterations = n_iterations
        self.step_k = step_k
        self.step_w = step_w
        self.delay = delay
        self.readout = readout
        self.standardize = standardize
        self.ridge = ridge
        self.polish = polish
        self.random_state = random_state
        self.timeout = timeout
        self.report_every = report_every
        self.checkpoint = checkpoint
        self.network = network

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
        division = self._check()
        data = pairs(X, self.dictionary.n_states)
        shift, scale = standardization(data, self.standardize)
        data = data.with_states((data.states - shift) / scale)
        rng = generator(self.random_state)
        start = initial or (self.dictionary.initial(rng), np.eye(self.dictionary.n_features))
        key = secrets.token_bytes(16)
        rules = AsyncRules(
            self.n_iterations,
            self.step_k,
            self.step_w,
            self.delay,
            self.timeout,
            self.report_every,
            self.network,
        )
        arguments = [
            (number, division.feature_slices(), share(division, number, data, *start), rules, key)
            for number in range(self.workers)
        ]
        self.history_ = History()
        told = _Sums(self.history_, self.workers, self.step_k, self.step_w)
        diverged = ended = None
        with Supervisor(run_worker, arguments) as supervisor:
            try:
                addresses = supervisor.gather("address", self.timeout)
                supervisor.send([report.content for report in addresses])
                # A peer's silence is noticed by its peers first, who know which it is.
                patience = 2.0 * self.timeout + 1.0
                ended = supervisor.gather("done", patience, told.add)
            except FloatingPointError as error:
                diverged = error
            except WorkerError as error:
                kept = joined([r.content if r else None for r in supervisor.states])
                keep_last_good(self, error, data, kept, shift, scale)
                raise
            parts: list[Report | None] = supervisor.states if ended is None else list(ended)
        kept = joined([part.content if part else None for part in parts])
        if kept is None:  # diverged before the first report: the start is what is left
            kept = joined([start])
        assert kept is not None
        self.operator_ = assemble(self, data, kept, shift, scale)
        if diverged is not None:
            self._warn(str(diverged), data)
        else:
            self._measure([report.content for report in ended or []])
        return self

    def _measure(self, finished: list[Finished]) -> None:
        self.delays_ = dict(sorted(sum((Counter(f.delays) for f in finished), Counter()).items()))
        self.sent_bytes_ = [f.sent_bytes for f in finished]
        self.seconds_ = max(f.seconds for f in finished)

    def _warn(self, where: str, data: Pairs) -> None:
        kept = self.operator_
        features = kept.dictionary.features(kept.parameters, data.states)
        safe = 1.0 / lipschitz_k(features[data.current])[0] / (1 + self.delay)
        self.history_.stopped, self.history_.safe_step = "diverged", safe
        warnings.warn(
            f"learning diverged ({where}) with step_k={self.step_k!r}, step_w={self.step_w!r}; "
            f"the last reported state was kept. A step of {safe:.3g}, 1/(L_K (1 + delay)), would "
            "be safe for K alone",
            DivergenceWarning,
            stacklevel=3,
        )

    def _check(self) -> Division:
        division = divide(self.dictionary, whole("workers", self.workers))
        whole("n_iterations", self.n_iterations)
        whole("report_every", self.report_every)
        whole("delay", self.delay, 0)
        check_step("step_k", self.step_k, ())
        check_step("step_w", self.step_w, ())
        check_readout(self.readout, self.dictionary)
        if not self.timeout > 0.0:
            raise ValueError(f"timeout is {self.timeout}; seconds > 0 are needed")
        return division


class _Sums:
    """F and the gradients' norms as sums over the workers' reports of the same iteration."""

    def __init__(
        self,
        history: History,
        workers: int,
        step_k: float | Diminishing,
        step_w: float | Diminishing,
    ) -> None:
        self.history, self.workers, self.steps = history, workers, (step_k, step_w)
        self._waiting: dict[int, list[tuple[float, float, float]]] = {}

    def add(self, _: int, report: Report) -> None:
        reported = self._waiting.setdefault(report.iteration, [])
        reported.append(report.content[2])
        if len(reported) == self.workers:
            f, k, w = np.sum(self._waiting.pop(report.iteration), axis=0)
            used = [s.at(report.iteration) if isinstance(s, Diminishing) else s for s in self.steps]
            self.history.add(float(f), float(k**0.5), float(w**0.5), *used)
