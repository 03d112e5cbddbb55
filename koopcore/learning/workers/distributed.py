"""Algorithm 2: every rank holds a part of the state, its dictionary and its rows of K."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from koopcore.learning.assembly import assemble
from koopcore.learning.dictionaries.blocks import Blocks
from koopcore.learning.estimator import SynchronousLearner, positive_seconds, whole
from koopcore.learning.persistence import save
from koopcore.learning.progress import bar
from koopcore.learning.safe_step import last_good, warn_of_divergence
from koopcore.learning.trajectories import Scaled, Trajectories, pairs, scaled
from koopcore.learning.workers.share import Division, divide, share
from koopcore.learning.workers.supervisor import STARTING, Report, Supervisor, WorkerError
from koopcore.types import FloatArray

if TYPE_CHECKING:
    from koopcore.learning.workers.asynchronous import AsynchronousLearner
    from koopcore.learning.workers.collectives import Traffic
    from koopcore.learning.workers.ranks import Rules


@dataclass(eq=False, repr=False)
class DistributedLearner(SynchronousLearner):
    """Learn ψ = [ψ_1(x^1); …; ψ_Q(x^Q)] and K on several processes, in step with each other.

    Per iteration, over all data points at once (Liu, Ding, Chen, Yeung 2020, Algorithm 2):

        all-gather   ψ_i at every point
        local        e^i = ψ_i(x_{n+1}) - Σ_j K_ij ψ_j(x_n)
        exchange     K_ivᵀ e^i to every v
        local        K_ij ← K_ij - η ∂F/∂K_ij,  W_i ← W_i - η ∂F/∂W_i, both at the old point

    which is `simultaneous_step` to rounding. A rank sees no other's states; it holds the rows of
    K that predict its own features. Deciding numbers (F, gradient norms) travel in the same two
    messages.

    dictionary: `Blocks`. workers: ranks, at most one per block; blocks are dealt out in runs.
    k_step: "gradient", or "exact": every rank solves for its rows of K by the engine, from the
    features that it has anyway. step_w: a number or `Diminishing`: Algorithm 2; or
    "backtracking": `AlternatingLearner`'s iterations, K first (which takes no message), where a
    step of W after which F has not fallen enough is taken back and halved, at the price of one
    iteration's messages. step_k: "lipschitz" (always so with backtracking), a number or
    `Diminishing`. backend: "gloo" (CPU) or "nccl" (one GPU per rank for the messages). timeout:
    seconds that a collective may take. report_every: iterations between the states that the caller
    is sent, of which the last is what remains if a worker dies; checkpoint: where to save it then.
    The other parameters are those of `AlternatingLearner`.

    After ``fit``: ``operator_``, ``history_``, ``traffic_`` (one `Traffic` per rank).
    Per rank and iteration: 8(M(h - h_i) + N h_i(R - 1)) bytes received, 6 N h h_i flops (exact:
    and 2 N h² + h³). Not for small problems on one machine: two messages cost more than the whole
    iteration of `AlternatingLearner`.
    """

    dictionary: Blocks
    _: KW_ONLY
    workers: int = 2
    backend: str = "gloo"
    timeout: float = 60.0
    report_every: int = 100
    checkpoint: str | Path | None = None
    traffic_: list[Traffic] = field(init=False)

    def fit(
        self,
        X: Trajectories,
        y: object = None,
        *,
        initial: tuple[FloatArray, FloatArray] | None = None,
    ) -> DistributedLearner:
        """Start the ranks, deal out the columns of X, and learn. Raises as `AlternatingLearner`;
        `WorkerError` names a rank that died, with its ``last_good`` operator.
        """
        from koopcore.learning.workers.ranks import run_rank

        division = self._divided(self.workers)
        made = scaled(pairs(X, self.dictionary.n_states), self.standardize)
        start = self._start(initial)
        with tempfile.TemporaryDirectory(prefix="koopcore-") as directory:
            meeting = (Path(directory) / "ranks").as_uri()
            arguments = [
                (
                    number,
                    meeting,
                    self.backend,
                    share(division, number, made.data, *start),
                    division.widths(),
                    self.rules(),
                    self.timeout,
                )
                for number in range(self.workers)
            ]
            with (
                Supervisor(run_rank, arguments) as supervisor,
                bar(self.n_iterations, self.progress) as moved,
            ):
                try:
                    supervisor.gather("here", STARTING)
                    ended = supervisor.gather(
                        "done", self.timeout * 2.0, lambda _, report: moved(report.iteration)
                    )
                except WorkerError as error:
                    keep_last_good(self, error, made, supervisor.last_states())
                    raise
        self.history_ = ended[0].content[2]
        self.traffic_ = [report.content[3] for report in ended]
        kept = joined(ended)
        if self.history_.stopped == "diverged":
            kept = last_good(self.history_, self.dictionary, made.data, start, kept)
            where = f"with {self._steps()}"
            warn_of_divergence(self.history_, self.dictionary, made.data, start, kept, where)
        self.operator_ = assemble(self, made, *kept)
        return self

    def own_states(self) -> list[int]:
        """State columns that this rank of an initialized process group is to bring."""
        import torch.distributed as dist

        return self._division_here().states(dist.get_rank())

    def fit_rank(
        self,
        part: Trajectories,
        *,
        initial: tuple[FloatArray, FloatArray] | None = None,
    ) -> DistributedLearner:
        """Learn as one rank of the process group that ``torchrun`` or the caller has made.

        part: trajectories of `own_states` only, in that order; all ranks the same times.
        The group's size stands for ``workers``; random_state must be a seed, the same on all ranks.
        Every rank gets the whole operator. initial: (θ, K), whole. Raises RuntimeError without a
        group, ValueError for a group with more ranks than blocks, and `WorkerError` where the
        other ranks are lost: then ``checkpoint`` has this rank's part, for `load_parts`.
        """
        from koopcore.learning.workers.torchrun import learn_here

        division = self._division_here()
        if not isinstance(self.random_state, (int, np.integer)):
            raise ValueError(
                f"random_state is {self.random_state!r}; ranks need the same integer seed"
            )
        start = self._start(initial)
        self.operator_, self.history_, self.traffic_ = learn_here(self, division, part, start)
        return self

    def _division_here(self) -> Division:
        import torch.distributed as dist

        if not dist.is_initialized():
            raise RuntimeError(
                "there is no process group: call torch.distributed.init_process_group first, or "
                "fit(X), which starts its own ranks"
            )
        return self._divided(dist.get_world_size())

    def rules(self) -> Rules:
        """What every rank is told; also for ranks that are started by ``torchrun``."""
        from koopcore.learning.workers.ranks import Rules

        return Rules(
            self.n_iterations,
            self.k_step,
            self.step_k,
            self.step_w,
            self.track,
            self.ridge,
            self.report_every,
        )

    def _divided(self, workers: int) -> Division:
        """The blocks dealt out to ranks; raises for settings that cannot work."""
        division = divide(self.dictionary, whole("workers", workers))
        self._check()
        self._check_steps(("backtracking",))
        whole("report_every", self.report_every)
        positive_seconds("timeout", self.timeout)
        return division


def joined(parts: Sequence[Report]) -> tuple[FloatArray, FloatArray]:
    """θ and K of all workers' parts, which are (θ_i, rows of K, …)."""
    return (
        np.concatenate([part.content[0] for part in parts]),
        np.concatenate([part.content[1] for part in parts]),
    )


def keep_last_good(
    learner: DistributedLearner | AsynchronousLearner,
    error: WorkerError,
    made: Scaled,
    states: Sequence[Report],
) -> None:
    """Put the last good operator into the error and the learner, and save it where asked.

    states: of all workers, or none if some worker had not reported yet: then nothing is kept.
    """
    if not states:
        return
    error.last_good = learner.operator_ = assemble(learner, made, *joined(states))
    if learner.checkpoint is not None:
        save(error.last_good, learner.checkpoint)
