"""Algorithm 2: every rank holds a part of the state, its dictionary and its rows of K."""

from __future__ import annotations

import tempfile
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from koopcore.backends import backend_for
from koopcore.learning.checks import nothing_more
from koopcore.learning.learned_operator import LearnedOperator, check_readout, fit_readout
from koopcore.learning.learners.divergence import (
    check_finite,
    check_sizes,
    lost,
    warn_of_divergence,
)
from koopcore.learning.learners.estimator import SynchronousLearner, largest
from koopcore.learning.objective import exact_operator
from koopcore.learning.persistence import save_part
from koopcore.learning.trajectories import Trajectories, pairs, scaled
from koopcore.learning.workers.parallel import ParallelLearner, whole_of
from koopcore.learning.workers.share import Division, Part, Share, joined
from koopcore.learning.workers.supervisor import STARTING, WorkerError
from koopcore.types import FloatArray

if TYPE_CHECKING:
    from koopcore.learning.workers.collectives import Collectives, Traffic
    from koopcore.learning.workers.ranks import Iterations, Rules


@dataclass(eq=False, repr=False)
class DistributedLearner(ParallelLearner, SynchronousLearner):
    """Learn ψ = [ψ_1(x^1); …; ψ_Q(x^Q)] and K on several processes, in step with each other.

    Per iteration, over all data points at once (Liu, Ding, Chen, Yeung 2020, Algorithm 2):

        all-gather   ψ_i at every point
        local        e^i = ψ_i(x_{n+1}) - Σ_j K_ij ψ_j(x_n)
        exchange     K_ivᵀ e^i to every v
        local        K_ij ← K_ij - η ∂F/∂K_ij,  W_i ← W_i - η ∂F/∂W_i, both at the old point

    which is `simultaneous_step` to rounding. A rank sees no other's states; it holds the rows of
    K that predict its own features. Deciding numbers (F, gradient norms) travel in the same two
    messages.

    Args:
        dictionary: `Blocks`.
        workers: ranks, at most one per block; blocks are dealt out in runs.
        k_step: "gradient", or "exact": every rank solves for its rows of K by the engine, from
            the features that it has anyway.
        step_w: a number or `Diminishing`: Algorithm 2; or "backtracking":
            `AlternatingLearner`'s iterations, K first (which takes no message), where a step of
            W after which F has not fallen enough is taken back and halved, at the price of one
            iteration's messages.
        step_k: "lipschitz" (always so with backtracking), a number or `Diminishing`.
        backend: "gloo" (CPU) or "nccl" (one GPU per rank for the messages).
        timeout: seconds that a collective may take.
        report_every: iterations between the states that the caller is sent, of which the last
            is what remains if a worker dies.
        checkpoint: where to save it then.
        messages: "float32" halves the bytes, and rounds what others see of ψ and of K_viᵀ e^v
            to 6e-8 of its size: F stops falling at about 1e-13 of ‖ψ‖², where a search ends
            too.

    The other parameters are those of `AlternatingLearner`.

    After ``fit``: ``operator_``, ``history_``, ``traffic_`` (one `Traffic` per rank).
    Per rank and iteration: 8(M(h - h_i) + N h_i(R - 1)) bytes received (4 in float32), and four
    sums of 8 bytes from each other rank, 6 N h h_i flops (exact:
    and 2 N h² + h³). Not for small problems on one machine: two messages cost more than the whole
    iteration of `AlternatingLearner`.
    """

    _: KW_ONLY
    backend: Literal["gloo", "nccl"] = "gloo"
    traffic_: list[Traffic] = field(init=False)

    def fit(
        self,
        X: Trajectories,
        y: Trajectories | None = None,
        *,
        initial: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        **more: object,
    ) -> DistributedLearner:
        """Start the ranks, deal out the columns of X, and learn. Raises as `AlternatingLearner`;
        `WorkerError` names a rank that died, with its ``last_good`` operator.
        """
        nothing_more(self, more)
        from koopcore.learning.workers.ranks import run_rank

        division = self._division(self.workers)
        problem, start = self._begin(X, initial, y)
        with tempfile.TemporaryDirectory(prefix="koopcore-") as directory:
            meeting = (Path(directory) / "ranks").as_uri()
            arguments = [
                (
                    number,
                    meeting,
                    self.backend,
                    share,
                    division.widths(),
                    self._rules(),
                    self.timeout,
                )
                for number, share in enumerate(division.shares(problem.data, *start))
            ]
            with self._team(run_rank, arguments, problem) as (supervisor, advance):
                supervisor.gather("here", STARTING)
                reports = supervisor.gather(
                    "done", 2.0 * self.timeout, lambda _, report: advance(report.iteration)
                )
        self.history_ = reports[0].content[0]
        self.traffic_ = [report.content[1] for report in reports]
        self._conclude(problem, start, whole_of(reports), f"with {self._steps()}")
        return self

    def own_states(self) -> list[int]:
        """State columns that this rank of an initialized process group is to bring."""
        import torch.distributed as dist

        return self._division_here().states(dist.get_rank())

    def fit_rank(
        self, part: Trajectories, *, initial: tuple[npt.ArrayLike, npt.ArrayLike] | None = None
    ) -> DistributedLearner:
        """Learn as one rank of the process group that ``torchrun`` or the caller has made.

        Args:
            part: trajectories of `own_states` only, in that order; all ranks the same times.

        The group's size stands for ``workers``; random_state must be a seed, the same on all ranks.
        Every rank gets the whole operator. initial: (θ, K), whole. Raises RuntimeError without a
        group, ValueError for a group with more ranks than blocks, `FloatingPointError` as ``fit``,
        and `WorkerError` where the other ranks are lost: then ``checkpoint`` has this rank's part,
        for `load_parts`.

        Each rank solves for the read-out of its own states: it has everybody's features, not
        states.
        """
        import torch.distributed as dist

        from koopcore.learning.workers.collectives import Collectives, RanksLost, gathered
        from koopcore.learning.workers.ranks import Iterations, device_here

        division = self._division_here()
        if not isinstance(self.random_state, (int, np.integer)):
            raise ValueError(
                f"random_state is {self.random_state!r}; ranks need the same integer seed"
            )
        start, rank = self._start(initial), dist.get_rank()
        states = division.states(rank)
        data, shift, scale = scaled(pairs(part, len(states)), self.standardize)
        share = division.share(rank, data, *start)
        collectives = Collectives(division.widths(), rank, device_here(), self.messages)
        iterations = Iterations(share, collectives, self._rules())
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                sizes = gathered((largest(share.linearize()), largest(data.states)))
                feature, state = np.max(sizes, axis=0)
                check_sizes(float(feature), float(state), self._takes_gradients())
                begun = Part(share.parameters, share.rows)
                best, self.history_ = iterations.run(lambda *_: None)
                share.parameters, rows = best.parameters, best.operator
                if self.history_.stopped == "diverged":
                    share.parameters, rows = self._recovered(
                        share, collectives, begun, Part(share.parameters, rows)
                    )
                features, _ = collectives.gather(share.linearize(), (0.0, 0.0))
                if self.polish:
                    rows = exact_operator(features, data, self.ridge, share.place)
                theta, k = joined(gathered(Part(share.parameters, rows)))
                check_finite(features, data, k)
            pieces = gathered((self._own_readout(share, features, states), shift, scale, states))
            self.traffic_ = gathered(collectives.traffic)
        except RanksLost as error:
            raise self._own_part_saved(rank, iterations, error) from error
        readout, shift, scale, places = (
            np.concatenate([piece[i] for piece in pieces]) for i in range(4)
        )
        order = np.argsort(places)
        self.operator_ = LearnedOperator(
            self.dictionary, theta, k, readout[order], shift[order], scale[order]
        )
        return self

    def _recovered(
        self, share: Share, collectives: Collectives, start: Part, iterate: Part
    ) -> Part:
        """This rank's part of what `recover` goes back to; every rank decides alike, and warns."""
        from koopcore.learning.workers.ranks import JointGradient

        joint, steps = JointGradient(share, collectives), f"with {self._steps()}"
        before, after = joint.at(start)[0], joint.at(iterate)[0]
        good, name, f = iterate, f"iterate {self.history_.best}", after
        if not after <= before:
            good, name, f = start, "the start", before
            self.history_.best = -1
        steepest = max(joint.lipschitz(start), joint.lipschitz(good))
        if not (np.isfinite(f) and np.isfinite(steepest)):
            raise lost(steps, before)
        warn_of_divergence(self.history_, steps, name, steepest, 0, stacklevel=4)
        return good

    def _own_readout(self, share: Share, features: FloatArray, states: list[int]) -> FloatArray:
        """The rows of C that read this rank's states out of everybody's features."""
        kind = check_readout(self.readout, self.dictionary)
        if kind == "state-inclusive":
            return fit_readout(self.dictionary, features, share.data.states, kind)[states]
        return fit_readout(share.blocks, features, share.data.states, kind)

    def _division_here(self) -> Division:
        import torch.distributed as dist

        if not dist.is_initialized():
            raise RuntimeError(
                "there is no process group: call torch.distributed.init_process_group first, or "
                "fit(X), which starts its own ranks"
            )
        return self._division(dist.get_world_size())

    def _rules(self) -> Rules:
        """What every rank is told."""
        from koopcore.learning.workers.ranks import Rules

        return Rules(
            self.n_iterations,
            self.k_step,
            self.step_k,
            self.step_w,
            self.track,
            self.ridge,
            # The caller's choice: processes from a fork server have the environment it started in.
            backend_for("cpu").name if self.k_step == "exact" else None,
            self.report_every,
            self.messages,
        )

    def _own_part_saved(self, rank: int, iterations: Iterations, error: Exception) -> WorkerError:
        """The error to raise where the other ranks are lost: this rank's part is all it has."""
        best, done = iterations.tracker, len(iterations.history)
        hint = "set checkpoint to keep its part"
        if self.checkpoint is not None:
            path = save_part(self.checkpoint, rank, done, best.parameters, best.operator)
            hint = f"its part of the last good iterate is in {path}"
        return WorkerError(f"rank {rank}, iteration {done}: {error}; {hint}", rank)

    def _check(self) -> None:
        super()._check()
        if self.backend not in ("gloo", "nccl"):
            raise ValueError(f"backend is {self.backend!r}; 'gloo' or 'nccl' is needed")
