"""Least squares: Gauss-Newton steps in the span of the last snapshots, by evaluations alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from koopcore.training.averaging import AverageFamily
from koopcore.training.jumping.batched import BatchedResiduals
from koopcore.training.jumping.guarded_loss import SAME, GuardedLoss, check_arguments
from koopcore.training.jumping.jump import Outcome
from koopcore.training.optimizers import Stepper, members
from koopcore.training.parallel.processes import Processes
from koopcore.training.policy import Policy
from koopcore.training.recording.normalized_update import normalized_update
from koopcore.training.recording.parameters import real
from koopcore.training.recording.recording import Recording
from koopcore.training.state import check, number

#: Directions that are probed, and the pivot, relative to a unit column, below which none is left.
DIRECTIONS = 30
PIVOT = 1e-10
#: Length of a probe along a unit direction, by the dtype of the weights.
PROBE = {torch.float64: 1e-5}
PROBE_NARROW = 3e-3
#: Of the probe along the step itself that shows the residuals' curvature; the share of the step
#: that its correction may have.
CURVATURE = 0.1
CORRECTION = 0.75
#: Factors of the damping that are tried, the damping of the first jump, and what one in vain does.
DAMPINGS = (0.2, 1.0, 5.0)
FIRST_DAMPING = 1e-2
HARDER = 4.0
DAMPING_RANGE = (1e-8, 1e4)


class Residuals:
    """The user's residuals, as pieces of one vector, and their sum of squares; callable as a loss.

    Raises on a call: TypeError for what is no real floating-point tensor, ValueError for another
    number of residuals than the first time.
    """

    def __init__(self, residuals: Callable[[], Any]) -> None:
        if not callable(residuals):
            raise TypeError(
                f"residuals is {type(residuals).__name__}; give a function without arguments that "
                "returns the residuals at the model's present parameters"
            )
        check_arguments(residuals)
        self._residuals = residuals
        self._lengths: list[int] = []

    def pieces(self) -> Iterator[Tensor]:
        """Yield the pieces, flat, each computed when it is asked for."""
        result = self._residuals()
        if not isinstance(result, Tensor) and not isinstance(result, Iterable):
            raise TypeError(
                f"residuals returned {type(result).__name__}; return a tensor, or an iterable of "
                "tensors, whose squares sum to the loss"
            )
        count = 0
        for count, piece in enumerate([result] if isinstance(result, Tensor) else result, start=1):
            if not isinstance(piece, Tensor) or not piece.is_floating_point():
                what = piece.dtype if isinstance(piece, Tensor) else type(piece).__name__
                raise TypeError(
                    f"residuals returned {what}; real floating-point tensors are needed"
                )
            if len(self._lengths) < count:
                self._lengths.append(piece.numel())
            if piece.numel() != self._lengths[count - 1]:
                self._changed(f"piece {count} has {piece.numel()}", self._lengths[count - 1])
            yield piece.reshape(-1)
        if not sum(self._lengths):
            raise ValueError("residuals returned no number; return those of the present parameters")
        if count != len(self._lengths):
            self._changed(f"there are {count} pieces", len(self._lengths))

    def single(self) -> Tensor:
        """Return the one piece; ValueError if there are more."""
        pieces = self.pieces()
        first = next(pieces)
        if next(pieces, None) is not None:
            raise ValueError("the residuals come in more than one piece")
        return first

    def __call__(self) -> Tensor | float:
        """Return the sum of squares, added up in float64; differentiable where they are."""
        squares = [piece.double().square().sum() for piece in self.pieces()]
        total = torch.stack(squares).sum() if squares else torch.zeros(())
        return total if total.requires_grad else float(total)

    def check(self, guarded: GuardedLoss) -> None:
        """Raise ValueError unless the squares are finite and sum to the loss; call it once."""
        if guarded.loss is self:
            return
        with guarded:
            loss = guarded()
            squares = guarded.processes.mean(lambda: float(guarded.run(self)))
        if not math.isfinite(squares):
            raise ValueError(f"the squares of the residuals sum to {squares}; all must be finite")
        if not abs(squares - loss) <= SAME * max(abs(squares), abs(loss)):
            raise ValueError(
                f"the squares of the residuals sum to {squares:.6g}, but the loss is {loss:.6g}; "
                "they must agree: for a mean over n return residuals / sqrt(n), and as one more "
                "residual what is added to it (sqrt(decay / 2) * weights)"
            )

    def _changed(self, what: str, first: int) -> None:
        raise ValueError(
            f"the residuals changed: {what}, the first time {first}; they must be of one fixed "
            "batch, always as many and in the same order"
        )


class SpanJump:
    """Attempts of one attachment: damped Gauss-Newton in the span of snapshots and directions.

    The directions ``d_i`` of unit length are, of ``[X_k - x, last jump, g/sqrt(v), m/sqrt(v)]``, up
    to 30 that a pivoted Cholesky factorization of their Gram matrix ``G`` picks. With

        J d_i ~ (r(x + h d_i) - r(x)) / h,    A = (J d_i . J d_j),    b = (J d_i . r)

    three dampings ``mu``, around that of the last gain, give steps ``v = sum_i c_i d_i`` and their
    geodesic corrections ``a`` (of the residuals' curvature along the step):

        (A + mu max(diag A) G) c = -b,    (A + mu max(diag A) G) c' = -(J d_i . r'') / 2

    and the lowest of the six losses wins, or all is put back bit by bit. It is Gauss-Newton, not a
    Koopman prediction: what it needs of the snapshots is the space in which training moves.

    Cost: about 40 evaluations of the residuals without gradients, together where that is possible
    (:class:`BatchedResiduals`, which is checked at one place each time), ``O(30 P)`` writes and
    ``O(30^2 R)`` for ``R`` residuals a piece; memory of the window, the directions, and ``31 R``.
    Where residuals come in more than one piece the corrections are left out.
    Source: Transtrum & Sethna 2012 (geodesic acceleration).
    """

    def __init__(self, optimizer: Stepper, guarded: GuardedLoss, residuals: Residuals) -> None:
        self.optimizer = optimizer
        self.guarded = guarded
        self.residuals = residuals
        self.damping = FIRST_DAMPING
        self.last: Tensor | None = None  # the last jump, a row of the ring
        self._evaluations = 0
        self._attempts = 0
        self._batched = BatchedResiduals(residuals.single, guarded.run)

    def attempt(
        self, recording: Recording, policy: Policy, averages: AverageFamily | None = None
    ) -> Outcome:
        """Probe, solve, try six places, and move to the best or put everything back."""
        present = _row(recording, recording.parameters.sources)
        if not recording.processes.all(bool(present.isfinite().all())):
            return Outcome(False, reason="the parameters are not finite", postponed=True)
        directions, gram = self._directions(recording, present)
        if not len(directions):
            return Outcome(False, reason="the weights have not moved", postponed=True)
        copies = recording.parameters.copy()
        accepted = False
        self._evaluations = 0
        try:
            with self.guarded:
                base, tried = self._solve(recording, present, directions, gram)
            if tried:
                loss, damping, step = min(tried, key=lambda entry: entry[0])
                accepted = loss < base
        finally:
            if not accepted:
                recording.parameters.restore(copies)
        if not accepted:
            self.damping = min(self.damping * HARDER, DAMPING_RANGE[1])
            reason = "no step lowered the loss"
            return Outcome(False, "none", 0.0, base, base, math.nan, self._evaluations, reason)
        recording.parameters.write(recording.weights(present + step))
        self.damping = min(max(damping, DAMPING_RANGE[0]), DAMPING_RANGE[1])
        self.last = step
        reason = f"best of {len(tried)} steps in {len(directions)} directions"
        return Outcome(True, "span", 0.0, base, loss, math.nan, self._evaluations, reason)

    def _directions(self, recording: Recording, present: Tensor) -> tuple[Tensor, Tensor]:
        """Unit directions (k, size) in the rows of the ring, and their Gram matrix (k, k)."""
        rows, order = recording.ring.snapshots()
        stepped = recording.parameters.stepped
        columns = [rows[order] - present]
        if self.last is not None and self.last.shape == present.shape:
            columns.append(self.last[None])
        if not any(isinstance(one, torch.optim.LBFGS) for one in members(self.optimizer)):
            columns.append(_row(recording, normalized_update(self.optimizer, stepped))[None])
            columns.append(_row(recording, _scaled_gradients(self.optimizer, stepped))[None])
        matrix = torch.cat(columns)
        matrix[:, recording.width :] = 0.0  # live buffers are no directions
        lengths = matrix.norm(dim=1)
        matrix = matrix[lengths > 0] / lengths[lengths > 0, None]
        gram = (matrix.double() @ matrix.double().T).cpu()
        picked = pivots(gram, DIRECTIONS, PIVOT)
        return matrix[picked], gram[picked][:, picked]

    def _solve(
        self, recording: Recording, present: Tensor, directions: Tensor, gram: Tensor
    ) -> tuple[float, list[tuple[float, float, Tensor]]]:
        """The loss at ``present``, and (loss, damping, step) of all that was tried."""
        base, a, b, probes = self._probe(recording, present, directions)
        if not (math.isfinite(base) and bool(a.isfinite().all()) and bool(b.isfinite().all())):
            return base, []
        solvers: list[tuple[float, Callable[[Tensor], Tensor]]] = []
        for factor in DAMPINGS:
            damping = factor * self.damping
            system = a + damping * float(a.diagonal().max()) * gram
            factors, failed = torch.linalg.cholesky_ex(system)
            if not int(failed):
                solvers.append((damping, partial(_solved, factors)))
        if not solvers:
            return base, []
        weights = [solve(b) for _, solve in solvers]
        steps = torch.stack(weights).to(directions) @ directions
        ends, parts = present + steps, present + CURVATURE * steps
        rows = self._together(recording, ends if probes is None else torch.cat((ends, parts)))
        losses = self._losses(recording, ends, rows)
        tried = [(x, d, v) for x, (d, _), v in zip(losses, solvers, steps, strict=True)]
        if probes is None:
            return base, tried
        here, jacobian = probes
        ahead: Iterable[Tensor] = [] if rows is None else rows[len(ends) :]
        if rows is None:
            ahead = [self._at(recording, place, self.residuals.single) for place in parts]
        bent: list[tuple[float, Tensor]] = []
        for step, c, place, (damping, solve) in zip(steps, weights, ahead, solvers, strict=True):
            slope = (place.double() - here) / CURVATURE - c.to(jacobian) @ jacobian
            bend = averaged(recording.processes, (jacobian @ slope).cpu() / CURVATURE)
            if bool(bend.isfinite().all()):  # half of J . r''
                correction = solve(bend).to(directions) @ directions
                if float(correction.norm()) < CORRECTION * float(step.norm()):
                    bent.append((damping, step + correction))
        if bent:
            ends = torch.stack([present + v for _, v in bent])
            losses = self._losses(recording, ends, self._together(recording, ends))
            tried += [(x, d, v) for x, (d, v) in zip(losses, bent, strict=True)]
        return base, tried

    def _probe(
        self, recording: Recording, present: Tensor, directions: Tensor
    ) -> tuple[float, Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """The loss at ``present``, ``A``, ``b``, and ``r``, ``J`` where they are of one piece."""
        h = PROBE.get(recording.parameters.sources[0].dtype, PROBE_NARROW)
        processes, k = recording.processes, len(directions)
        places = torch.cat((present[None], present + h * directions))
        together = self._batched(recording, places)
        if together is not None:
            number = 1 + self._attempts % k  # another one each time
            single = self._at(recording, places[number], self.residuals.single)
            if not self._batched.agree(together, number, single):
                together = None
        self._attempts += 1
        a, b = torch.zeros(k, k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)
        base, pieces = 0.0, 0
        jacobian, here = torch.empty(0), torch.empty(0)
        iterators = [self.residuals.pieces() for _ in places]
        while True:
            if together is not None:
                rows = together.double() if not pieces else None
            else:
                rows = self._next(recording, places, iterators)
            if rows is None:
                break
            pieces += 1
            here = rows[0]
            jacobian = (rows[1:] - here) / h
            base += float(here.square().sum())
            a += (jacobian @ jacobian.T).cpu()
            b += (jacobian @ here).cpu()
        checks = together is not None
        self._evaluations = len(places) + checks  # in however many pieces
        base = processes.mean(lambda: base)
        whole = processes.all(pieces == 1)  # each has residuals of its own part of the batch
        probes = (here, jacobian) if whole else None
        return base, averaged(processes, a), averaged(processes, b), probes

    def _next(
        self, recording: Recording, places: Tensor, iterators: list[Iterator[Tensor]]
    ) -> Tensor | None:
        """The next piece of the residuals at each place, in float64; None after the last."""
        rows = []
        for place, iterator in zip(places, iterators, strict=True):
            piece = self._at(recording, place, partial(next, iterator, None))
            if piece is None:
                return None
            rows.append(piece.double())
        return torch.stack(rows)

    def _together(self, recording: Recording, places: Tensor) -> Tensor | None:
        """The residuals at all places, one a row; None where they are computed one by one."""
        rows = self._batched(recording, places)
        self._evaluations += 0 if rows is None else len(places)
        return rows

    def _losses(self, recording: Recording, places: Tensor, rows: Tensor | None) -> list[float]:
        """The loss at each place, of the rows if they are there."""
        if rows is not None:
            losses = rows[: len(places)].double().square().sum(1).tolist()
        else:
            losses = [self._loss(recording, place) for place in places]
        return [loss if math.isfinite(loss) else math.inf for loss in losses]

    def _loss(self, recording: Recording, place: Tensor) -> float:
        return recording.processes.mean(lambda: self._at(recording, place, self.residuals))

    def _at(self, recording: Recording, place: Tensor, function: Callable[[], Any]) -> Any:
        self._evaluations += 1
        recording.parameters.write(recording.weights(place))
        return self.guarded.run(function)

    def state_dict(self, recording: Recording) -> dict[str, Any]:
        """Return the damping and the last jump; zeros where there was none."""
        last = torch.zeros(recording.width, dtype=recording.ring.dtype)
        if self.last is not None:
            last.copy_(self.last[: recording.width])
        return {"damping": self.damping, "last": last}

    def check_state(self, state: Mapping[str, Any], recording: Recording) -> None:
        """Raise ValueError unless :meth:`load_state_dict` can go on from ``state``."""
        schema = {**self.state_dict(recording), "damping": number(*DAMPING_RANGE)}
        check(state, schema, "the saved state['jumps']")

    def load_state_dict(self, state: Mapping[str, Any], recording: Recording) -> None:
        """Continue from :meth:`state_dict`."""
        self.damping = float(state["damping"])
        self.last = None
        if bool(state["last"].any()):
            self.last = torch.zeros(recording.ring.size, dtype=recording.ring.dtype)
            self.last[: recording.width] = state["last"]
            self.last = self.last.to(recording.ring.device)


def pivots(gram: Tensor, most: int, least: float) -> list[int]:
    """Rows that a pivoted Cholesky factorization of ``gram`` (n, n) takes, until none is left.

    most: of them. least: the pivot, relative to the largest of ``gram``, below which it stops.
    """
    matrix = gram.numpy()
    left = matrix.diagonal().copy()
    limit = least * float(left.max()) if len(left) else 0.0
    factor = np.empty((min(most, len(matrix)), len(matrix)))
    picked: list[int] = []
    for k, row in enumerate(factor):
        pivot = int(left.argmax())
        if not left[pivot] > limit:
            break
        row[:] = (matrix[pivot] - factor[:k, pivot] @ factor[:k]) / math.sqrt(left[pivot])
        left -= row * row
        left[pivot] = -math.inf
        picked.append(pivot)
    return picked


def _solved(factors: Tensor, right: Tensor) -> Tensor:
    return -torch.cholesky_solve(right[:, None], factors)[:, 0]


def averaged(processes: Processes, sums: Tensor) -> Tensor:
    """Return the mean over the processes, as their losses are averaged."""
    return torch.from_numpy(processes.total(sums.numpy())) / processes.size


def _row(recording: Recording, tensors: list[Tensor]) -> Tensor:
    """The tensors as one row of the ring; padding and buffers are zero."""
    ring = recording.ring
    row = torch.zeros(ring.size, dtype=ring.dtype, device=ring.device)
    torch._foreach_copy_(recording.weights(row), [t.detach() for t in tensors])
    return row


def _scaled_gradients(optimizer: Stepper, parameters: list[Tensor]) -> list[Tensor]:
    """``g / sqrt(v)`` where the optimizer keeps second moments, else ``g``; zeros without one."""
    out = []
    states = optimizer.state
    for p in parameters:
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        gradient = real(gradient.to_dense() if gradient.is_sparse else gradient)
        state = states.get(p, {})
        second = state.get("exp_avg_sq", state.get("square_avg", state.get("sum")))
        if isinstance(second, Tensor):
            gradient = gradient / real(second).sqrt().add(1e-12)
        out.append(gradient)
    return out
