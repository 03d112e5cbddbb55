"""The object that ``attach`` returns: counts steps, records, attempts jumps, saves its state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from koopcore.training.averaging import ExponentialAverage
from koopcore.training.jumping.guarded_loss import GuardedLoss
from koopcore.training.jumping.jump import Jump, Outcome
from koopcore.training.policy import policy_for
from koopcore.training.recording.live_buffers import LiveBuffers
from koopcore.training.recording.normalized_update import check_supported
from koopcore.training.recording.parameters import Masters, TrainableParameters, unwrapped
from koopcore.training.recording.recording import Recording, partition_of
from koopcore.training.settings import Settings

#: Steps between updates of the average: neighbours are so alike that each adds little but cost.
AVERAGE_EVERY = 5


class Attached:
    """Koopman jumps in one optimizer's training run; made by :func:`koopcore.attach`.

    stats: a :class:`Statistics`. settings: the options. The optimizer and the model stay the
    user's; what is added is one post-step hook, which :meth:`detach` removes.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        settings: Settings,
        guarded: GuardedLoss | None,
        masters: Masters | None,
    ) -> None:
        self.settings = settings
        self._stats = Statistics()
        self.optimizer = optimizer
        self.model = unwrapped(model)
        self._masters = masters
        self._policy = policy_for(settings, optimizer)
        self._buffers = LiveBuffers(self.model, settings.buffers)
        if settings.observables == "weights+update":
            check_supported(optimizer)
        self._jump = Jump(settings, optimizer, guarded)
        self._recording: Recording | None = None
        self._average: ExponentialAverage | None = None
        self._averaged = frozenset(settings.averaged_steps)
        self._step = 0
        self._fresh = True
        if not any(is_lazy(p) for p in self.model.parameters()):
            self._recording = self._new_recording()
        self._hook: Any = optimizer.register_step_post_hook(self._after_step)

    @property
    def stats(self) -> Statistics:
        """Jumps, accepted ones, steps skipped, seconds spent, and a record per jump."""
        self._stats.steps = self._step
        return self._stats

    # -- while training ---------------------------------------------------------------------------

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Run after every step of the optimizer; nearly always returns at once."""
        if skipped(optimizer):
            return
        self._step += 1
        if self._average is not None and self._step % AVERAGE_EVERY == 0:
            self._average.update()
        ahead = self._step - self._policy.start
        if ahead < 0 or self._policy.over:
            return
        to_come = -ahead % self.settings.stride  # steps until the next snapshot is due
        if to_come not in self._averaged or ahead == 0:
            return
        begun = perf_counter()
        recording = self._recording
        if self._fresh or recording is None:
            recording = self._begin()
        recording.blend()
        if to_come == 0:
            recording.ring.commit()
            self._stats.snapshots += 1
        self._stats.add_recording(perf_counter() - begun)
        if recording.ring.full:
            self._attempt(recording)

    def _begin(self) -> Recording:
        """Return an empty recording of what is to be recorded now."""
        if self._buffers.update() or self._recording is None:
            self._recording = None  # frees the old ring before the new one is allocated
            self._recording = self._new_recording()
        self._recording.parameters.check()
        self._recording.ring.clear()
        self._fresh = False
        return self._recording

    def _attempt(self, recording: Recording) -> None:
        begun = perf_counter()
        policy = self._policy
        recording.parameters.check()
        # An exception in the loss ends the attempt with everything put back: begin a new window.
        self._fresh = True
        outcome = self._jump.attempt(recording, policy, self._average)
        if outcome.accepted:
            if self._average is not None:
                self._average.restart()
            policy.accepted(self._step, outcome.horizon)
        else:
            policy.rejected(self._step)
            if policy.keep:
                recording.ring.keep(policy.keep)
                self._fresh = False
        self._report(outcome, perf_counter() - begun)

    def _report(self, outcome: Outcome, seconds: float) -> None:
        self._stats.add(
            JumpRecord(
                step=self._step,
                accepted=outcome.accepted,
                kind=outcome.kind,
                horizon=float(outcome.horizon),
                stride=self.settings.stride,
                loss_before=outcome.loss_before,
                loss_after=outcome.loss_after,
                hindcast=outcome.hindcast,
                evaluations=outcome.evaluations,
                seconds=seconds,
                reason=outcome.reason,
            )
        )

    def _new_recording(self) -> Recording:
        include, exclude = self.settings.include, self.settings.exclude
        parameters = TrainableParameters(
            self.model, self.optimizer, include, exclude, self._masters
        )
        if self.settings.average is not None and self._average is None:
            decay = self.settings.average**AVERAGE_EVERY
            self._average = ExponentialAverage(parameters.sources, decay)
        return Recording(
            parameters,
            self.optimizer,
            self._buffers,
            partition_of(parameters.layout, self.settings.partition),
            self._policy.window,
            self.settings.storage,
            self.settings.observables == "weights+update",
        )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average of the weights in their place for the block, then the weights again.

        What to validate or save in a run dominated by minibatch noise: jumps and an average of
        what follows each. Needs ``average=``; RuntimeError without it, or after :meth:`detach`.
        Batch-norm statistics stay those of the training weights.
        """
        if self._average is None or self._recording is None:
            raise RuntimeError("there is no average; attach with average=0.98, and stay attached")
        with self._recording.parameters.exchanged(self._average.average):
            yield

    # -- before and after -------------------------------------------------------------------------

    def detach(self) -> None:
        """Remove the hook and free the ring; the optimizer and the model are as if never attached.

        :attr:`stats` stays. Detaching twice does nothing.
        """
        self._hook.remove()
        self._recording = None
        self._average = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to continue bit-identically.

        Tensors, numbers, strings, lists and dicts only, so ``torch.save`` and
        ``torch.load(weights_only=True)`` carry it. Save it together with the model's, the
        optimizer's and the loader's state. Size: one ring.
        """
        recording = self._recording
        return {
            "settings": self.settings.identity(),
            "layout": None if recording is None else recording.parameters.layout.fingerprint(),
            "buffers": list(self._buffers.names),
            "step": self._step,
            "fresh": self._fresh,
            "policy": self._policy.state_dict(),
            "recording": None if recording is None else recording.state_dict(),
            "average": None if self._average is None else self._average.copy(),
            "statistics": self.stats.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, in a run attached with the same options.

        Raises ValueError, before anything changes, for the state of another model, window,
        stride, schedule or way of recording.
        """
        for name, value in self.settings.identity().items():
            given = state["settings"].get(name)
            given = tuple(given) if isinstance(given, list) else given
            if given != value:
                raise ValueError(
                    f"the saved state was recorded with {name}={given!r}, this run is attached "
                    f"with {name}={value!r}; attach with the options of the saved run"
                )
        if state["recording"] is not None:
            recording = self._recording or self._new_recording()
            if state["layout"] != recording.parameters.layout.fingerprint():
                raise ValueError(
                    "the saved state belongs to another layout: names, shapes or order of the "
                    "recorded parameters differ; load it into the model that it was saved from, "
                    "with the same include= and exclude="
                )
            if list(state["buffers"]) != self._buffers.names:
                self._buffers.adopt(state["buffers"])
                self._recording = None
                recording = self._new_recording()
            recording.load_state_dict(state["recording"])
            self._recording = recording
        if self._average is not None and state["average"] is not None:
            with torch.no_grad():
                torch._foreach_copy_(self._average.average, list(state["average"]))
        self._step = int(state["step"])
        self._fresh = bool(state["fresh"])
        self._policy.load_state_dict(state["policy"])
        self._stats.load_state_dict(state["statistics"])


def skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a fused optimizer left the step out because GradScaler found infinities.

    Other optimizers are not called at all then. Reading the flag waits for the device; GradScaler
    sets it only on optimizers that take it.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


@dataclass(frozen=True)
class JumpRecord:
    """One attempt.

    step: optimizer steps taken when it was made.
    accepted: whether the parameters moved.
    kind: of the winner: "koopman", "line" or "mean"; of a rejected attempt, "none".
    horizon: snapshots ahead (0 for the mean, which lies inside the window, and for none).
    stride: optimizer steps per snapshot; ``horizon * stride`` steps were skipped.
    loss_before, loss_after: as evaluated; equal if rejected; None without a loss.
    hindcast: median over groups of the operators' hindcast error, relative to the movement.
    evaluations: of the loss. seconds: for fit, candidates, evaluations and writing.
    reason: why, in words.
    """

    step: int
    accepted: bool
    kind: str
    horizon: float
    stride: int
    loss_before: float | None
    loss_after: float | None
    hindcast: float
    evaluations: int
    seconds: float
    reason: str

    @property
    def steps_skipped(self) -> float:
        """Optimizer steps that the jump stands for."""
        return self.horizon * self.stride if self.accepted else 0.0


@dataclass
class Statistics:
    """Totals of an attachment since it was made, resumed runs included.

    steps: optimizer steps seen. snapshots: recorded. jumps: attempts. accepted: of them.
    steps_skipped: optimizer steps that accepted jumps stand for. evaluations: of the loss.
    seconds: wall time spent recording (:attr:`seconds_recording`) and jumping, as the host sees it:
    on a CUDA device, copies that run behind the host are not in it. history: the last records.
    """

    HISTORY = 10_000

    steps: int = 0
    snapshots: int = 0
    jumps: int = 0
    accepted: int = 0
    steps_skipped: float = 0.0
    evaluations: int = 0
    seconds: float = 0.0
    seconds_recording: float = 0.0
    history: list[JumpRecord] = field(default_factory=list)

    def add(self, record: JumpRecord) -> None:
        """Count one attempt; records older than the last 10,000 are dropped from the history."""
        self.jumps += 1
        self.accepted += record.accepted
        self.steps_skipped += record.steps_skipped
        self.evaluations += record.evaluations
        self.seconds += record.seconds
        self.history.append(record)
        del self.history[: -self.HISTORY]

    def add_recording(self, seconds: float) -> None:
        """Count time spent on snapshots."""
        self.seconds_recording += seconds
        self.seconds += seconds

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)
        self.history = [JumpRecord(**record) for record in state["history"]]

    def __str__(self) -> str:
        return (
            f"{self.accepted} of {self.jumps} jumps accepted, {self.steps_skipped:.0f} steps "
            f"skipped in {self.steps} taken, {self.seconds:.3g} s spent"
        )
