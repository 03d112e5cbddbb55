"""Algorithm 2: every rank holds a part of the state, its dictionary and its rows of K."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from koopcore.backends.stages import FloatArray
from koopcore.learning.alternating import StepK
from koopcore.learning.assembly import assemble
from koopcore.learning.blocks import Blocks
from koopcore.learning.estimator import Learner, generator, whole
from koopcore.learning.history import DivergenceWarning, Tracker, check_tracked
from koopcore.learning.learned_operator import LearnedOperator
from koopcore.learning.persistence import save
from koopcore.learning.readout import check_readout
from koopcore.learning.share import Division, divide, share
from koopcore.learning.step_sizes import Diminishing, check_step, lipschitz_k
from koopcore.learning.supervisor import Report, Supervisor, WorkerError
from koopcore.learning.trajectories import Pairs, Trajectories, pairs, standardization


class DistributedLearner(Learner):
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

    def __init__(
        self,
        dictionary: Blocks,
        *,
        workers: int = 2,
        n_iterations: int = 500,
        k_step: Literal["gradient", "exact"] = "gradient",
        step_k: StepK = "lipschitz",
        step_w: Literal["backtracking"] | float | Diminishing = "backtracking",
        readout: str = "auto",
        standardize: bool = False,
        track: Literal["gradient", "objective"] = "gradient",
        ridge: float = 0.0,
        polish: bool = False,
        random_state: int | np.random.Generator | None = 0,
        backend: str = "gloo",
        timeout: float = 60.0,
        report_every: int = 100,
        checkpoint: str | Path | None = None,
    ) -> None:
        self.dictionary = dictionary
        self.workers = workers
        self.n_iterations = n_iterations
        self.k_step = k_step
        self.step_k = step_k
        self.step_w = step_w
        self.readout = readout
        self.standardize = standardize
        self.track = track
        self.ridge = ridge
        self.polish = polish
        self.random_state = random_state
        self.backend = backend
        self.timeout = timeout
        self.report_every = report_every
        self.checkpoint = checkpoint

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
        from koopcore.learning.ranks import run_rank

        division = self._check(self.workers)
        data = pairs(X, self.dictionary.n_states)
        shift, scale = standardization(data, self.standardize)
        data = data.with_states((data.states - shift) / scale)
        rng = generator(self.random_state)
        start = initial or (
            self.dictionary.initial(rng),
            np.eye(self.dictionary.n_features),
        )
        widths = [s.stop - s.start for s in division.feature_slices()]
        with tempfile.TemporaryDirectory(prefix="koopcore-") as directory:
            meeting = (Path(directory) / "ranks").as_uri()
            arguments = [
                (
                    number,
                    meeting,
                    self.backend,
                    share(division, number, data, *start),
                    widths,
                    self.rules(),
                    self.timeout,
                )
                for number in range(self.workers)
            ]
            with Supervisor(run_rank, arguments) as supervisor:
                try:
                    ended = supervisor.gather("done", self.timeout * 2.0)
                except WorkerError as error:
                    kept = joined([r.content if r else None for r in supervisor.states])
                    keep_last_good(self, error, data, kept, shift, scale)
                    raise
        self._conclude(ended, data, shift, scale)
        return self

    def own_states(self) -> list[int]:
        """State columns that this rank of an initialized process group is to bring."""
        return self._division_here().states(_this_rank())

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
        group, ValueError for a group with more ranks than blocks.
        """
        from koopcore.learning.torchrun import learn_here

        division = self._division_here()
        if not isinstance(self.random_state, (int, np.integer)):
            raise ValueError(
                f"random_state is {self.random_state!r}; ranks need the same integer seed"
            )
        start = initial or (
            self.dictionary.initial(generator(self.random_state)),
            np.eye(self.dictionary.n_features),
        )
        self.operator_, self.history_, self.traffic_ = learn_here(self, division, part, start)
        return self

    def _division_here(self) -> Division:
        import torch.distributed as dist

        if not dist.is_initialized():
            raise RuntimeError(
                "there is no process group: call torch.distributed.init_process_group first, or "
                "fit(X), which starts its own ranks"
            )
        return self._check(dist.get_world_size())

    def rules(self) -> Any:
        """What every rank is told; also for ranks that are started by ``torchrun``."""
        from koopcore.learning.ranks import Rules

        return Rules(
            self.n_iterations,
            self.k_step,
            self.step_k,
            self.step_w,
            self.track,
            self.ridge,
            self.report_every,
        )

    def _conclude(
        self, ended: list[Report], data: Pairs, shift: FloatArray, scale: FloatArray
    ) -> None:
        kept = joined([r.content for r in ended])
        assert kept is not None
        self.history_ = ended[0].content[2]
        self.traffic_ = [r.content[3] for r in ended]
        self.operator_ = assemble(self, data, kept, shift, scale)
        if self.history_.stopped == "diverged":
            features = self.dictionary.features(self.operator_.parameters, data.states)
            safe = self.history_.safe_step = 1.0 / lipschitz_k(features[data.current])[0]
            warnings.warn(
                f"learning diverged with step_k={self.step_k!r}, step_w={self.step_w!r}; iterate "
                f"{self.history_.best} was kept. K alone would be safe with {safe:.3g} (1/L_K); "
                "step_w='backtracking' is safe for both",
                DivergenceWarning,
                stacklevel=3,
            )

    def _check(self, workers: int) -> Division:
        division = divide(self.dictionary, whole("workers", workers))
        whole("n_iterations", self.n_iterations)
        whole("report_every", self.report_every)
        if self.k_step not in ("gradient", "exact"):
            raise ValueError(f"k_step is {self.k_step!r}; 'gradient' or 'exact' is needed")
        check_step("step_k", self.step_k, ("lipschitz",))
        check_step("step_w", self.step_w, ("backtracking",))
        check_tracked(self.track)
        check_readout(self.readout, self.dictionary)
        if not self.timeout > 0.0:
            raise ValueError(f"timeout is {self.timeout}; seconds > 0 are needed")
        return division


def _this_rank() -> int:
    import torch.distributed as dist

    return dist.get_rank()


def joined(parts: list[Any]) -> Tracker | None:
    """θ and K of all workers' parts, if every worker has sent one."""
    if any(part is None for part in parts):
        return None
    return Tracker(
        "gradient",
        parameters=np.concatenate([part[0] for part in parts]),
        operator=np.concatenate([part[1] for part in parts]),
    )


def keep_last_good(
    learner: Any,
    error: WorkerError,
    data: Pairs,
    kept: Tracker | None,
    shift: FloatArray,
    scale: FloatArray,
) -> LearnedOperator | None:
    """Put the last good operator into the error and the learner, and save it where asked."""
    if kept is None:
        return None
    learned = assemble(learner, data, kept, shift, scale)
    error.last_good = learner.operator_ = learned
    if learner.checkpoint is not None:
        save(learned, learner.checkpoint)
    return learned
