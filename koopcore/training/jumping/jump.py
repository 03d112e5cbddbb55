"""One attempt to jump: fit, predict, search, then move or put everything back bit by bit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from koopcore.training.averaging import AverageFamily
from koopcore.training.jumping import line_search as places
from koopcore.training.jumping.guarded_loss import GuardedLoss
from koopcore.training.jumping.line_search import Ladder, SearchResult, line_search
from koopcore.training.jumping.moments import carry_over
from koopcore.training.optimizers import Stepper, members
from koopcore.training.parallel.processes import COMPARED, by_value
from koopcore.training.parallel.shards import SpreadOperators
from koopcore.training.policy import Policy
from koopcore.training.recording.recording import Recording
from koopcore.training.settings import Settings

#: Groups whose eigenvalues are kept for a report.
SHOWN = 16


@dataclass(frozen=True)
class Outcome:
    """What an attempt came to; fields as in :class:`JumpRecord`, ``postponed`` before any loss."""

    accepted: bool
    kind: str = "none"
    horizon: float = 0.0
    loss_before: float | None = None
    loss_after: float | None = None
    hindcast: float = math.nan
    evaluations: int = 0
    reason: str = ""
    postponed: bool = False


class Jump:
    """Attempts of one attachment: same loss, same optimizer, same options.

    A rejected attempt, or one that an exception ends, leaves parameters, masters, buffers,
    optimizer state and random state bit-identical; an accepted one has lowered the evaluated loss.
    """

    def __init__(
        self,
        settings: Settings,
        optimizer: Stepper,
        guarded: GuardedLoss | None,
    ) -> None:
        self.settings = settings
        self.optimizer = optimizer
        self.guarded = guarded
        self.kinds = settings.candidates
        self.eigenvalues: tuple[complex, ...] = ()  # of the last operators, where they are few
        self._compared = 0  # attempts whose winner was compared between processes

    def attempt(
        self,
        recording: Recording,
        policy: Policy,
        averages: AverageFamily | None = None,
    ) -> Outcome:
        """Fit the recorded window and jump if that lowers the loss (or hindcast allows it).

        averages: of the weights; where "mean" is a candidate, the loss at the shortest of them must
            be beaten as well, for what a mean gains is as a rule what an average has anyway.
        """
        processes = recording.processes
        recording.balance()
        rows, order = recording.ring.snapshots()
        if not math.isfinite(processes.mean(lambda: float(rows[order[-1]].sum()))):
            return Outcome(False, reason="the parameters are not finite", postponed=True)
        options = self.settings
        operators = recording.operators(options)
        self.eigenvalues = spectrum(operators, recording.n_groups)
        hindcast = processes.mean(lambda: median_hindcast(operators, recording.n_groups))
        growth = 0.0
        if not policy.ready:
            growth = processes.mean(lambda: window_growth(operators, recording))
        if not policy.judge(hindcast, growth):
            reason = f"not predictable yet: hindcast error {hindcast:.2g}, growth {growth:.3g}"
            return Outcome(False, hindcast=hindcast, reason=reason, postponed=True)
        if self.guarded is None:
            return self._blind(recording, operators, policy.blind_horizon(hindcast), hindcast)
        bound = recording.bound() if recording.n_groups > 1 else None
        ladders = self._ladders(operators, rows, order, policy.horizons(), policy.rungs, bound)
        return self._search(recording, operators, ladders, hindcast, averages)

    def _ladders(
        self,
        operators: Any,
        rows: Tensor,
        order: list[int],
        horizons: list[int],
        rungs: int,
        bound: places.Bound | None,
    ) -> list[Ladder]:
        ladders: list[Ladder] = []
        after = False  # what follows the Koopman trajectory is a last resort
        for kind in self.kinds:
            if kind == "koopman":
                ladders.append(Ladder(places.koopman(operators, horizons, rungs, bound), rungs))
            elif kind == "mean":
                ladders.append(Ladder([places.mean(rows, order)], 1, fallback=after))
            else:
                made = places.regression if kind == "regression" else places.line
                straight = made(rows, order, horizons)
                ladders.append(Ladder(straight, 1 if after else rungs, fallback=after))
            after = after or kind == "koopman"
        return ladders

    def _blind(
        self, recording: Recording, operators: Any, horizon: int, hindcast: float
    ) -> Outcome:
        if horizon == 0:
            reason = f"hindcast error {hindcast:.2g} is too large for a jump without a loss"
            return Outcome(False, hindcast=hindcast, reason=reason)
        vector = operators.predict(horizon)
        if recording.n_groups > 1:
            vector = recording.bound()(vector, horizon)
        if not recording.processes.all(bool(vector.isfinite().all())):
            return Outcome(False, hindcast=hindcast, reason="the prediction is not finite")
        recording.parameters.write(recording.weights(vector))
        recording.buffers.write(recording.buffer_values(vector))
        self._carry(recording, operators, "koopman", horizon)
        return Outcome(True, "koopman", horizon, hindcast=hindcast, reason="allowed by hindcast")

    def _search(
        self,
        recording: Recording,
        operators: Any,
        ladders: list[Ladder],
        hindcast: float,
        averages: AverageFamily | None,
    ) -> Outcome:
        guarded, parameters, buffers = self.guarded, recording.parameters, recording.buffers
        assert guarded is not None

        def move(vector: Tensor) -> list[tuple[Tensor, Tensor]]:
            parameters.write(recording.weights(vector))
            if buffers.mode == "reestimate":
                return guarded.reestimate_buffers()
            values = recording.buffer_values(vector)
            buffers.write(values)
            return list(zip(buffers.tensors, values, strict=True))

        def evaluate(vector: Tensor) -> float:
            move(vector)
            loss = guarded()
            if parameters.shards is None:
                return loss
            return loss if recording.processes.all(math.isfinite(float(vector.sum()))) else math.inf

        barred = averages is not None and "mean" in self.kinds
        copies = parameters.copy()
        result: SearchResult | None = None
        moved: list[tuple[Tensor, Tensor]] = []
        try:
            with guarded:
                base = guarded()
                if not math.isfinite(base):
                    reason = f"the present loss is {base}"
                    return Outcome(False, "none", 0.0, base, base, hindcast, 1, reason)
                bar = base
                if barred:
                    assert averages is not None
                    with parameters.exchanged(averages.values(averages.names[0])):
                        bar = min(base, finite(guarded()))
                slack, margin = self.settings.slack, self.settings.margin
                result = line_search(bar, ladders, evaluate, slack, margin)
                if result.best is not None:
                    moved = move(result.best.vector())
            if result.best is None:
                parameters.restore(copies)
            self._compare(recording, result)
        except BaseException:
            result = None
            raise
        finally:
            if result is None:
                parameters.restore(copies)
        count = 1 + barred + len(result.losses)
        best = result.best
        if best is None:
            reason = "no candidate lowered the loss"
            return Outcome(False, "none", 0.0, base, base, hindcast, count, reason)
        buffers.put(moved)  # leaving the guard has put the old ones back
        self._carry(recording, operators, best.kind, best.horizon)
        reason = f"best of {len(result.losses)} candidates"
        return Outcome(True, best.kind, best.horizon, base, result.loss, hindcast, count, reason)

    def _compare(self, recording: Recording, result: SearchResult) -> None:
        """Raise where the first winners are not the same on all ranks: they never should be."""
        if self._compared == COMPARED:
            return
        self._compared += 1
        best, processes, parameters = result.best, recording.processes, recording.parameters
        chosen = "none" if best is None else f"{best.kind} at horizon {best.horizon:g}"
        winners = processes.gather(
            "winners",
            lambda: (
                f"{chosen} with loss {result.loss!r}",
                " ".join(map(str, parameters.checksums().values())),
            ),
        )
        candidates = [candidate for candidate, _ in winners]
        if len(set(candidates)) > 1:
            raise RuntimeError(
                f"the winner of a jump differs between ranks: {by_value(candidates)}. Attach with "
                "the same options, and process_group=None where each rank is to decide alone"
            )
        if len(set(winners)) > 1:
            raise RuntimeError(
                f"{_apart(processes.gather('checksums', parameters.checksums))}. Is the model "
                "wrapped in DistributedDataParallel, are all of its parameters, and does no rank "
                "change them by itself? process_group=None lets each rank decide alone"
            )

    def _carry(self, recording: Recording, operators: Any, kind: str, horizon: float) -> None:
        slowdown = 1.0
        if self.settings.moments == "rescale" and kind == "koopman":
            slowdown = speed_ratio(operators, recording, int(horizon))
        stepped = recording.parameters.stepped
        for member in members(self.optimizer):
            held = {id(p) for group in member.param_groups for p in group["params"]}
            carry_over(
                self.settings.moments, member, [p for p in stepped if id(p) in held], slowdown
            )


def _apart(ranks: Sequence[Mapping[str, int]]) -> str:
    """Which parameters differ between ranks, by the checksums of each rank, in words."""
    names = [name for name in ranks[0] if len({of[name] for of in ranks}) > 1]
    values = by_value([f"checksum {of[names[0]]}" for of in ranks])
    more = f" and {len(names) - 1} more of {len(ranks[0])}" if len(names) > 1 else ""
    return f"the weights differ between ranks: {names[0]!r}{more} ({values})"


def finite(loss: float) -> float:
    """Return ``loss``, or infinity for one that is not finite and must not win."""
    return loss if math.isfinite(loss) else math.inf


def median_hindcast(operators: Any, n_groups: int) -> float:
    """Return the median hindcast error of the first ``n_groups`` groups (the weights')."""
    if isinstance(operators, SpreadOperators):
        return operators.hindcast()
    errors = np.asarray(operators.hindcast_error, dtype=np.float64)[:n_groups]
    known = np.sort(errors[~np.isnan(errors)])  # windows of few snapshots have no hindcast
    return float(known[known.size // 2]) if known.size else math.inf


def spectrum(operators: Any, n_groups: int) -> tuple[complex, ...]:
    """Return the eigenvalues of the weights' operators, largest first; none where there are many.

    Of parameters spread over ranks only the radius is known, and none are returned either.
    """
    if isinstance(operators, SpreadOperators) or n_groups > SHOWN:
        return ()
    values = operators.eigenvalues()[:n_groups].ravel()
    known = values[~np.isnan(values)]
    return tuple(complex(value) for value in known[np.argsort(-np.abs(known), kind="stable")])


def window_growth(operators: Any, recording: Recording) -> float:
    """Return ``max |lambda|^(n-1)`` over the weights' operators: growth within one window."""
    if isinstance(operators, SpreadOperators):
        return operators.radius() ** (recording.ring.count - 1)
    moduli = np.abs(operators.eigenvalues()[: recording.n_groups])
    radius = np.nanmax(moduli, initial=0.0)  # no eigenvalues: straight lines, and what rests
    return float(np.float64(radius) ** (recording.ring.count - 1))


def speed_ratio(operators: Any, recording: Recording, horizon: int) -> float:
    """Return the weights' movement in the last predicted snapshot over that in the first."""
    ends = operators.predict([1, 2, horizon, horizon + 1])[:, : recording.width]
    first, last = recording.norm(ends[1] - ends[0]), recording.norm(ends[3] - ends[2])
    return last / first if first > 0 else 1.0
