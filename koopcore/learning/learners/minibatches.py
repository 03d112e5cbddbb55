"""Learning with torch: float32 or float64, on any device, from minibatches, over processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from koopcore.learning.checks import nothing_more, positive, truth, whole
from koopcore.learning.dictionaries.blocks import Blocks
from koopcore.learning.dictionaries.protocol import Dictionary
from koopcore.learning.dictionaries.torch import torch_features
from koopcore.learning.learned_operator import LearnedOperator, check_readout, fit_readout
from koopcore.learning.learners.divergence import REMEDY
from koopcore.learning.learners.estimator import Learner
from koopcore.learning.learners.history import History
from koopcore.learning.objective import solved
from koopcore.learning.progress import counted
from koopcore.learning.trajectories import Pairs, Scaled, Trajectories, pairs, standardized
from koopcore.types import FloatArray

_POINTS = 8192  # pairs whose features are in memory at once
_CPU_POINTS = 2048  # on a CPU, whose cache they should fit


@dataclass(eq=False, repr=False)
class MinibatchLearner(Learner):
    """Learn θ by Adam on F(θ, K), in torch: for many points, many features, GPUs, processes.

    Per iteration, over ``batch_size`` pairs (None: all of them, some thousand at a time):

        k_step="exact"     K = argmin F of the batch; θ by ∂F/∂θ at that K (envelope)
        k_step="average"   K of moments averaged over the batches so far, ``memory`` of the old kept
        k_step="gradient"  K by Adam as θ: 6 N h² flops an iteration and no solve

    and in the end K is solved for exactly, with all pairs, in float64. An exact K of a batch fits
    its noise: batches want several times as many pairs as there are features; "average" takes
    smaller ones.

    Args:
        dictionary: `OneLayer`, `Layered`, `StateInclusive`, `Blocks` of these,
            `TorchDictionary`, or any with ``torch_features(theta, states)``.
        learning_rate: of Adam, falling to a tenth by a cosine.
        dtype: of features and gradients, "float32" or "float64"; solves are in float64.
        device: of torch, such as "cuda".
        couplings: which block of ψ is predicted by which, (Q, Q) of truths for `Blocks` of Q
            parts (or (h, h), by features): K is zero elsewhere, and its exact step solves for
            the rest alone, row by row of blocks.
        distributed: learn as one rank of an initialized process group, with this rank's own
            trajectories: gradients, moments and the scale are summed over the ranks, which all
            get the same operator; ``batch_size`` is each rank's.
        random_state: an integer seed, the same on all ranks.

    Not where all points fit an L-BFGS iteration: `VariableProjectionLearner` reaches far smaller F.
    """

    _: KW_ONLY
    batch_size: int | None = None
    k_step: Literal["exact", "average", "gradient"] = "exact"
    memory: float = 0.9
    learning_rate: float = 1e-2
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    couplings: npt.ArrayLike | None = None
    distributed: bool = False
    standardize: bool = True

    def fit(
        self,
        X: Trajectories,
        y: Trajectories | None = None,
        *,
        initial: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        **more: object,
    ) -> MinibatchLearner:
        """Learn from trajectories, or from snapshot pairs X, y; see `VariableProjectionLearner`.

        Raises ValueError for batches smaller than the features with an exact K, RuntimeError where
        there is no process group with ``distributed``, FloatingPointError where F is not finite.
        """
        nothing_more(self, more)
        self._check()
        problem, (theta, k) = self._begin(X, initial, y)
        self._check_pairs(problem.data.n_pairs)
        work = Work(self, problem.data, theta, k)
        self.history_ = history = History()
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            work.optimizer, self.n_iterations, 0.1 * self.learning_rate
        )
        for _ in counted(range(self.n_iterations), self.n_iterations, self.progress):
            value, slope_k, slope_w = work.step()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"F is {value} in iteration {len(history)}: {REMEDY}, or learn more slowly "
                    f"than learning_rate = {self.learning_rate:g}"
                )
            rate = float(schedule.get_last_lr()[0])
            history.add(value, slope_k, slope_w, rate, rate)
            schedule.step()
        history.best = len(history) - 1
        self.operator_ = self._operator(problem, work)
        return self

    def _operator(self, problem: Scaled, work: Work) -> LearnedOperator:
        """The operator at the last θ: K and read-out of the moments of all pairs, in float64."""
        theta = work.theta.detach().cpu().double().numpy()
        moments, readout = Moments.zero(self.dictionary.n_features), None
        states = problem.data.states
        total = np.zeros((states.shape[1], self.dictionary.n_features))
        for now, ahead in _runs(problem.data, _POINTS):
            features = self.dictionary.features(theta, states[now])
            moments.add(features, self.dictionary.features(theta, states[ahead]))
            total += states[now].T @ features
        moments.cross, moments.gram, total = work.summed(moments.cross, moments.gram, total)
        operator = _masked_solution(moments.gram, moments.cross, self.ridge, work.mask)
        if not np.isfinite(operator).all():
            raise FloatingPointError(f"what was learned is not finite: {REMEDY}")
        kind = check_readout(self.readout, self.dictionary)
        if kind == "state-inclusive":
            readout = fit_readout(self.dictionary, states[:0], states[:0], kind)
        else:
            readout = solved(moments.gram, total)
        return LearnedOperator(
            self.dictionary, theta, operator, readout, problem.shift, problem.scale
        )

    def _begin(
        self,
        X: Trajectories,
        initial: tuple[npt.ArrayLike, npt.ArrayLike] | None,
        y: Trajectories | None = None,
    ) -> tuple[Scaled, tuple[FloatArray, FloatArray]]:
        """As every learner's, with the scale of all ranks' states."""
        if not (self.distributed and self.standardize):
            return super()._begin(X, initial, y)
        data = pairs(X, self.dictionary.n_states, y)
        sums = np.stack([data.states.sum(axis=0), (data.states**2).sum(axis=0)])
        count, sums = _all_summed(np.array([float(len(data.states))]), sums)
        shift = sums[0] / count
        # The second pass is of what the first leaves: no digits are lost to a large mean.
        (squares,) = _all_summed(((data.states - shift) ** 2).sum(axis=0))
        return standardized(data, shift, np.sqrt(squares / count)), self._start(initial)

    def _check(self) -> None:
        super()._check()
        positive("learning_rate", self.learning_rate)
        truth("distributed", self.distributed)
        if self.k_step not in ("exact", "average", "gradient"):
            raise ValueError(f"k_step is {self.k_step!r}; 'exact', 'average' or 'gradient'")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype is {self.dtype!r}; 'float32' or 'float64' is needed")
        if not 0.0 <= self.memory < 1.0:
            raise ValueError(f"memory is {self.memory}; a share of 0 up to below 1 is needed")
        if not isinstance(self.random_state, (int, np.integer)):
            raise ValueError(f"random_state is {self.random_state!r}; an integer seed is needed")
        if self.distributed and not dist.is_initialized():
            raise RuntimeError(
                "distributed=True, but there is no process group: call "
                "torch.distributed.init_process_group first"
            )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ValueError(f"device is {self.device!r}: {error}") from error
        if self.batch_size is not None:
            whole("batch_size", self.batch_size)
        if self.couplings is not None:
            _mask(self.dictionary, self.couplings)

    def _check_pairs(self, n_pairs: int) -> None:
        """ValueError where an exact K has fewer pairs than features to be solved from."""
        h, size = self.dictionary.n_features, min(self.batch_size or n_pairs, n_pairs)
        together = size * self._ranks()
        if self.k_step == "exact" and together < h and self.ridge == 0.0:
            raise ValueError(
                f"batch_size is {self.batch_size}, {together} pairs an iteration, fewer than the "
                f"{h} features: an exact K would fit them without error, whatever θ is. Use at "
                f"least {h}, better several times as many, k_step='average', or a ridge"
            )

    def _ranks(self) -> int:
        return dist.get_world_size() if self.distributed else 1


class Work:
    """What an iteration needs: data, θ and K as tensors, batches, sums over the ranks."""

    def __init__(
        self, learner: MinibatchLearner, data: Pairs, theta: FloatArray, k: FloatArray
    ) -> None:
        self.learner, self.device = learner, torch.device(learner.device)
        self.dtype = getattr(torch, learner.dtype)
        self.points = _CPU_POINTS if self.device.type == "cpu" else _POINTS
        self.mask = None
        if learner.couplings is not None:
            self.mask = _mask(learner.dictionary, learner.couplings)
            k = np.where(self.mask, k, 0.0)
        self.states = self._tensor(data.states)
        self.theta = self._tensor(theta).requires_grad_(True)
        self.k = self._tensor(k)
        rows = np.arange(len(data.states))
        self.now = torch.from_numpy(rows[data.current]).to(self.device)
        self.ahead = torch.from_numpy(rows[data.following]).to(self.device)
        self.optimizer = torch.optim.Adam([self.theta, self.k], lr=learner.learning_rate)
        self._average: tuple[FloatArray, FloatArray] | None = None
        self._seen = 0.0
        rank = dist.get_rank() if learner.distributed else 0
        self._rng = np.random.default_rng([int(learner.random_state or 0), rank])  # type: ignore[arg-type]
        self._queue = torch.zeros(0, dtype=torch.long)

    def step(self) -> tuple[float, float, float]:
        """One iteration; F of the batch and both gradients' norms there."""
        learner = self.learner
        chosen = None if learner.batch_size is None else self._batch(learner.batch_size)
        if learner.k_step != "gradient":
            self.k.copy_(self._tensor(self._operator(chosen)))
        value, slope_w, slope_k = self.gradient(chosen)
        self.theta.grad, self.k.grad = slope_w, None
        if learner.k_step == "gradient":
            self.k.grad = slope_k
        self.optimizer.step()
        norm_k = float(slope_k.norm()) if learner.k_step == "gradient" else 0.0
        return value, norm_k, float(slope_w.norm())

    def gradient(
        self, chosen: torch.Tensor | None = None
    ) -> tuple[float, torch.Tensor, torch.Tensor]:
        """F, ∇_θ F and ∇_K F of the chosen pairs (None: all), summed over the ranks."""
        wants_k = self.learner.k_step == "gradient"
        slope_w, slope_k = torch.zeros_like(self.theta), torch.zeros_like(self.k)
        squares, count = 0.0, 0
        # Written over by every part: fresh memory costs a page fault per 4 kB.
        most, h = min(self.points, len(self.now if chosen is None else chosen)), len(self.k)
        errors, seeds = self.k.new_empty(most, h), self.k.new_empty(2 * most, h)
        for place, ahead in self._chunks(chosen):
            # A run of a trajectory passes through the dictionary once, x_n and x_{n+1} alike.
            run = _run(place, ahead)
            rows = self.states[run] if run is not None else self.states[torch.cat([place, ahead])]
            psi = torch_features(self.learner.dictionary, self.theta, rows)
            with torch.no_grad():
                first, second = (psi[:-1], psi[1:]) if run is not None else psi.chunk(2)
                error, seed = errors[: len(place)], seeds[: len(psi)]
                torch.sub(second, torch.mm(first, self.k.T, out=error), out=error)
                of_rows = torch.linalg.vector_norm(error, dim=1).double()
                squares += float(of_rows @ of_rows)
                if wants_k:
                    slope_k.addmm_(error.T, first)
                # -∂(N F/2)/∂ψ, with the sign of the other slope.
                torch.mm(error, self.k, out=seed[: len(place)])
                if run is not None:
                    seed[-1] = 0.0
                    seed[1:].sub_(error)
                else:
                    torch.neg(error, out=seed[len(place) :])
                count += len(place)
            if psi.requires_grad:
                slope_w += torch.autograd.grad(psi, self.theta, seed)[0]
        numbers, slope_w, slope_k = self._reduced(
            torch.tensor([squares, float(count)], dtype=torch.float64, device=self.device),
            slope_w,
            slope_k,
        )
        squares, total = numbers.tolist()
        if self.mask is not None and wants_k:
            slope_k = slope_k * torch.from_numpy(self.mask).to(slope_k)
        return squares / total, slope_w * (-2.0 / total), slope_k * (-2.0 / total)

    def summed(self, *arrays: FloatArray) -> tuple[FloatArray, ...]:
        """The arrays summed over the ranks."""
        return _all_summed(*arrays, device=self.device) if self.learner.distributed else arrays

    @torch.no_grad()
    def _operator(self, chosen: torch.Tensor | None) -> FloatArray:
        """K of the chosen pairs' moments, or of their average over the iterations."""
        h = len(self.k)
        gram = torch.zeros(h, h, dtype=torch.float64, device=self.device)
        cross, count = torch.zeros_like(gram), 0
        for place, ahead in self._chunks(chosen):
            run = _run(place, ahead)
            rows = self.states[run] if run is not None else self.states[torch.cat([place, ahead])]
            psi = torch_features(self.learner.dictionary, self.theta, rows)
            first, second = (psi[:-1], psi[1:]) if run is not None else psi.chunk(2)
            gram += first.T @ first
            cross += second.T @ first
            count += len(place)
        whole_gram, whole_cross, total = self.summed(
            gram.cpu().numpy(), cross.cpu().numpy(), np.array([float(count)])
        )
        moments = whole_gram / total, whole_cross / total
        if self.learner.k_step == "average":
            kept = self.learner.memory if self._average is not None else 0.0
            if self._average is None:
                self._average = moments
            old = self._average
            self._average = moments = (
                kept * old[0] + (1.0 - kept) * moments[0],
                kept * old[1] + (1.0 - kept) * moments[1],
            )
        # Moments of float32 features have their rounding: what is below it is not inverted.
        least = 1e-12 if self.dtype == torch.float64 else 1e-6
        operator = _masked_solution(*moments, max(self.learner.ridge, least), self.mask)
        return operator

    def _batch(self, size: int) -> torch.Tensor:
        """The next pairs of a random order that is drawn anew when it ends."""
        while len(self._queue) < size:
            order = torch.from_numpy(self._rng.permutation(len(self.now)))
            self._queue = torch.cat([self._queue, order])
        chosen, self._queue = self._queue[:size], self._queue[size:]
        return chosen.to(self.device)

    def _chunks(self, chosen: torch.Tensor | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        now, ahead = (
            (self.now, self.ahead)
            if chosen is None
            else (
                self.now[chosen],
                self.ahead[chosen],
            )
        )
        yield from zip(now.split(self.points), ahead.split(self.points), strict=True)

    def _reduced(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.learner.distributed:
            for tensor in tensors:
                dist.all_reduce(tensor)
        return tensors

    def _tensor(self, array: FloatArray) -> torch.Tensor:
        return torch.tensor(array, dtype=self.dtype, device=self.device)


@dataclass
class Moments:
    """Σ ψ(x_n) ψ(x_n)ᵀ and Σ ψ(x_{n+1}) ψ(x_n)ᵀ."""

    gram: FloatArray
    cross: FloatArray

    @classmethod
    def zero(cls, h: int) -> Moments:
        return cls(np.zeros((h, h)), np.zeros((h, h)))

    def add(self, now: FloatArray, ahead: FloatArray) -> None:
        self.gram += now.T @ now
        self.cross += ahead.T @ now


def _masked_solution(
    gram: FloatArray, cross: FloatArray, ridge: float, mask: npt.NDArray[np.bool_] | None
) -> FloatArray:
    """K of the moments, zero where the mask is; rows of the same mask are solved for together."""
    if mask is None:
        return solved(gram, cross, ridge)
    operator = np.zeros_like(cross)
    patterns, members = np.unique(mask, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        columns = np.flatnonzero(pattern)
        rows = np.flatnonzero(members.reshape(-1) == number)
        if len(columns):
            part = gram[np.ix_(columns, columns)]
            operator[np.ix_(rows, columns)] = solved(part, cross[np.ix_(rows, columns)], ridge)
    return operator


def _mask(dictionary: Dictionary, couplings: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which entries of K may differ from zero, (h, h); ValueError for another shape."""
    given = np.asarray(couplings)
    h = dictionary.n_features
    if given.dtype != np.bool_:
        raise TypeError(f"couplings is of {given.dtype}; an array of True and False is needed")
    if given.shape == (h, h):
        return given
    blocks = dictionary.feature_slices() if isinstance(dictionary, Blocks) else []
    if not blocks or given.shape != (len(blocks), len(blocks)):
        wanted = f"({len(blocks)}, {len(blocks)}) of blocks or " if blocks else ""
        raise ValueError(
            f"couplings has shape {given.shape}; {wanted}({h}, {h}) of features is needed"
        )
    sizes = [place.stop - place.start for place in blocks]
    return np.repeat(np.repeat(given, sizes, axis=0), sizes, axis=1)


def _run(now: torch.Tensor, ahead: torch.Tensor) -> slice | None:
    """The rows of pairs that follow each other without a gap; None where they do not."""
    first, last = int(now[0]), int(ahead[-1])
    if (
        last - first == len(now)
        and int(now[-1]) - first == len(now) - 1
        and int(ahead[0]) == (first + 1)
    ):
        steps = bool((now[1:] - now[:-1] == 1).all()) if len(now) > 1 else True
        return slice(first, last + 1) if steps else None
    return None


def _runs(data: Pairs, size: int) -> Iterator[tuple[Any, Any]]:
    """Rows of x_n and x_{n+1}, ``size`` pairs at a time."""
    rows = np.arange(len(data.states))
    now, ahead = rows[data.current], rows[data.following]
    for start in range(0, len(now), size):
        yield now[start : start + size], ahead[start : start + size]


def _all_summed(*arrays: FloatArray, device: torch.device | None = None) -> tuple[FloatArray, ...]:
    """Arrays summed over the ranks of the process group, in float64."""
    results = []
    for array in arrays:
        tensor = torch.tensor(array, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        results.append(tensor.cpu().numpy())
    return tuple(results)
