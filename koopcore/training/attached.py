"""The object that ``attach`` returns: counts steps, records, attempts jumps, saves its state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields
from time import perf_counter
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from koopcore.training.averaging import ExponentialAverage
from koopcore.training.hooks import Hooks
from koopcore.training.jumping.guarded_loss import GuardedLoss
from koopcore.training.jumping.jump import Jump, Outcome
from koopcore.training.policy import policy_for
from koopcore.training.recording.live_buffers import LiveBuffers
from koopcore.training.recording.normalized_update import check_supported
from koopcore.training.recording.parameters import (
    Masters,
    NothingToRecordError,
    Recorded,
    TrainableParameters,
    has_lazy,
    matched,
    real,
    unwrapped,
)
from koopcore.training.recording.recording import Recording
from koopcore.training.settings import Settings
from koopcore.training.state import check_like, check_range

#: Steps between updates of the average: neighbours are so alike that each adds little but cost.
AVERAGE_EVERY = 5

#: Of the format of saved states.
VERSION = 1


class Attached:
    """Koopman jumps in one optimizer's training run; made by :func:`koopcore.attach`.

    stats: a :class:`Statistics`. settings: the options. recorded: which parameters, and why the
    others are not. The optimizer and the model stay the user's; what is added are hooks around
    steps and after the loading of states, which :meth:`detach` removes.

    What is recorded is looked at again at every window: parameters frozen by then stay where they
    are, unfrozen and added ones (``add_param_group``) are recorded. A window in which that changed,
    or into which another state of the model or the optimizer was loaded, is given up.

    It belongs to one optimizer: it cannot be copied or pickled, and a copy of the optimizer is a
    plain one. ``attach`` to the copy, and ``load_state_dict(koop.state_dict())`` there.
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
        self.optimizer = optimizer
        self.model = unwrapped(model)
        self._stats = Statistics()
        self._masters = matched(self.model, masters)
        self._policy = policy_for(settings, optimizer)
        self._buffers = LiveBuffers(self.model, settings.buffers)
        if settings.observables == "weights+update":
            check_supported(optimizer)
        self._guarded = guarded
        self._jump = Jump(settings, optimizer, guarded)
        self._recording: Recording | None = None
        self._recorded = Recorded((), {})
        self._average: ExponentialAverage | None = None
        self._averaged = frozenset(settings.averaged_steps)
        self._step = 0
        self._checked = False  # whether settings and loss were tried on the model
        self._fresh = True  # whether the next snapshot begins a window
        self._loaded = False  # whether a state of the model or the optimizer was loaded, and
        self._resumed = False  # whether one of this attachment was, which goes with it
        if not has_lazy(self.model):
            self._record()
            self._check()
        self._hooks: Hooks | None = Hooks(optimizer, self.model, self._after_step, self._after_load)

    @property
    def stats(self) -> Statistics:
        """Jumps, accepted ones, steps skipped, seconds spent, and a record per jump."""
        self._stats.steps = self._step
        return self._stats

    @property
    def recorded(self) -> Recorded:
        """The names of the parameters recorded now, and why the others are left out."""
        if self._hooks is not None:
            self._look()
        return self._recorded

    # -- while training ---------------------------------------------------------------------------

    def _after_step(self) -> None:
        """Run after every step of the optimizer; nearly always returns at once."""
        if self._loaded and not self._resumed:
            self.reset()
        self._loaded = self._resumed = False
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
        recording = self._begin() if self._fresh else self._recording
        if recording is None:  # everything is frozen
            return
        try:
            recording.blend()
        except RuntimeError:
            if not recording.parameters.changed():
                raise
            self._restart()
            return
        if to_come == 0:
            recording.ring.commit()
            self._stats.snapshots += 1
        self._stats.add_recording(perf_counter() - begun)
        if recording.ring.full:
            self._attempt(recording)

    def _after_load(self) -> None:
        self._loaded = True

    def _begin(self) -> Recording | None:
        """Return an empty recording of what trains now; None where nothing does."""
        others = self._buffers.update()
        if others or self._recording is None or self._recording.parameters.changed():
            self._record()
        if self._recording is None:
            return None
        if not self._checked:
            self._check()
        self._recording.ring.clear()
        self._fresh = False
        return self._recording

    def _attempt(self, recording: Recording) -> None:
        begun = perf_counter()
        policy = self._policy
        if not self._look():
            return
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

    # -- what is recorded -------------------------------------------------------------------------

    def _look(self) -> bool:
        """Return whether the recording is still of what trains; if not, a new window begins."""
        if self._recording is not None and not self._recording.parameters.changed():
            return True
        if self._recording is None and not self._checked and has_lazy(self.model):
            return False  # not before the first step
        self._record()
        self._restart()
        return False

    def _record(self) -> None:
        """Make the recording of what trains now, or none."""
        self._recording = None  # frees the old ring before the new one is allocated
        settings = self.settings
        try:
            parameters = TrainableParameters(
                self.model, self.optimizer, settings.include, settings.exclude, self._masters
            )
        except NothingToRecordError as error:
            if not self._checked:
                raise
            if error.lost:
                raise RuntimeError(
                    f"{error}. Were the model's parameters replaced after koopcore attached? "
                    "detach() before that, and attach after"
                ) from error
            self._recorded = Recorded((), error.left_out)
            return
        self._recorded = parameters.recorded
        if settings.average is not None:
            if self._average is None:
                decay = settings.average**AVERAGE_EVERY
                self._average = ExponentialAverage(parameters.stepped, decay)
            else:
                self._average.follow(parameters.stepped)
        self._recording = Recording(parameters, self._buffers, settings, self._policy.window)

    def _check(self) -> None:
        """Say now what a fit or the loss would complain of later."""
        assert self._recording is not None
        self._recording.check(self.settings)
        if self._guarded is not None:
            self._guarded.rehearse()
        self._checked = True

    def _restart(self) -> None:
        self._fresh = True
        self._policy.restart(self._step)

    def reset(self) -> None:
        """Begin a new window, and the average anew, with the weights as they are.

        Call it after changing weights by hand: of two trajectories no operator can be fitted.
        ``load_state_dict`` of the model, its modules and the optimizer is noticed without it.
        """
        self._restart()
        if self._average is not None:
            self._average.restart()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average of the weights in their place for the block, then the weights again.

        What to validate or save in a run dominated by minibatch noise: jumps and an average of
        what follows each. Needs ``average=``; RuntimeError without it, or after :meth:`detach`.
        Batch-norm statistics stay those of the training weights.
        """
        if self._hooks is not None:
            self._look()
        if self._average is None or self._recording is None:
            raise RuntimeError("there is no average; attach with average=0.98, and stay attached")
        average = [real(a) for a in self._average.average]
        with self._recording.parameters.exchanged(average):
            yield

    # -- before and after -------------------------------------------------------------------------

    def detach(self) -> None:
        """Remove the hooks and free the ring; the optimizer and the model are as if never attached.

        :attr:`stats` stays; the state does not, so take :meth:`state_dict` before. Detaching twice
        does nothing.
        """
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = None
        self._recording = None
        self._average = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to continue bit-identically.

        Tensors, numbers, strings, bytes, lists and dicts only, of the same keys and shapes for the
        same settings and parameters: ``torch.save``, ``torch.load(weights_only=True)`` and
        ``torch.distributed.checkpoint`` carry it. Save it together with the model's, the
        optimizer's and the loader's state. Size: one ring. RuntimeError after :meth:`detach`.
        """
        self._stay_attached("state_dict()")
        self._look()
        recording = self._recording
        return {
            "version": VERSION,
            "settings": self.settings.identity(),
            "layout": self._fingerprint(),
            "step": self._step,
            "fresh": self._fresh,
            "policy": self._policy.state_dict(),
            "recording": {} if recording is None else recording.state_dict(),
            "average": {name: a.clone() for name, a in self._averages().items()},
            "statistics": self.stats.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, in a run attached with the same options.

        Load the model's and the optimizer's state as well, before or after. Raises ValueError,
        before anything changes, for the state of another model, window, stride, schedule, way of
        recording or version, and for one that lacks something; RuntimeError after :meth:`detach`.
        """
        self._stay_attached("load_state_dict()")
        self._look()
        names = self._check_state(state)
        recording, buffers = self._recording, (self._buffers.names, self._buffers.tensors)
        if state["layout"] and recording is not None:
            try:
                if names != self._buffers.names:
                    self._buffers.adopt(names)
                    recording = Recording(
                        recording.parameters, self._buffers, self.settings, recording.ring.slots
                    )
                recording.check_state(state["recording"])
            except BaseException:
                self._buffers.names, self._buffers.tensors = buffers
                raise
            recording.load_state_dict(state["recording"])
            self._recording = recording
        with torch.no_grad():
            for name, average in self._averages().items():
                average.copy_(state["average"][name])
        self._step = state["step"]
        self._fresh = state["fresh"]
        self._policy.load_state_dict(state["policy"])
        self._stats.load_state_dict(state["statistics"])
        self._resumed = True

    def _check_state(self, state: Mapping[str, Any]) -> list[str]:
        """Raise ValueError for what :meth:`load_state_dict` does not take; return the buffers."""
        where = "the saved state"
        settings = self.settings.identity()
        like = {"version": 1, "step": 1, "fresh": True, "layout": ""}
        parts = ("settings", "policy", "recording", "average", "statistics")
        if not isinstance(state, Mapping):
            raise ValueError(
                f"{where} is a {type(state).__name__}; give what state_dict() returned"
            )
        if state.get("version", VERSION) != VERSION:
            raise ValueError(
                f"{where} has version {state['version']!r}, this koopcore reads {VERSION}; load it "
                "with the version that saved it"
            )
        shallow = {k: {} if k in parts and isinstance(v, Mapping) else v for k, v in state.items()}
        check_like(shallow, {**like, **{k: {} for k in parts}}, where)
        check_range(state["step"], 0, 1 << 62, f"{where}['step']")
        if lacking := [name for name in settings if name not in state["settings"]]:
            raise ValueError(f"the settings in {where} lack {lacking[0]!r}")
        for name, value in settings.items():
            given = state["settings"][name]
            given = tuple(given) if isinstance(given, list) else given
            if given != value:
                raise ValueError(
                    f"{where} was recorded with {name}={given!r}, this run is attached with "
                    f"{name}={value!r}; attach with the options of the saved run"
                )
        if state["layout"] not in ("", self._fingerprint()):
            raise ValueError(
                f"{where} belongs to another layout: names, shapes or order of the recorded "
                "parameters differ; load it into the model that it was saved from, after its first "
                "forward pass, with the same parameters frozen and the same include= and exclude="
            )
        if not state["layout"] and not state["fresh"]:
            raise ValueError(f"{where} has a window but no layout; was it altered?")
        if state["layout"]:
            check_like(state["average"], self._averages(), f"the average in {where}")
        self._policy.check_state(state["policy"])
        self._stats.check_state(state["statistics"])
        names = state["recording"].get("buffers", []) if state["layout"] else []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"the buffers in {where} are {names!r}; a list of names is needed")
        return names

    def _fingerprint(self) -> str:
        return "" if self._recording is None else self._recording.parameters.layout.fingerprint()

    def _averages(self) -> dict[str, Tensor]:
        if self._average is None or self._recording is None:
            return {}
        return dict(zip(self._recording.parameters.names, self._average.average, strict=True))

    def _stay_attached(self, what: str) -> None:
        if self._hooks is None:
            raise RuntimeError(
                f"{what} after detach(): the snapshots are freed; call it before, or attach again"
            )

    def __copy__(self) -> NoReturn:
        raise TypeError(
            "an attachment belongs to one optimizer and cannot be copied or pickled; copy the "
            "model and the optimizer, attach(...) to the copies, and there load_state_dict() what "
            "state_dict() gives here"
        )

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self.__copy__()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self.__copy__()


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
        """Return plain numbers, and the history as a list of tuples."""
        totals = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "history"}
        return {**totals, "history": [astuple(record) for record in self.history]}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError unless :meth:`load_state_dict` can go on from ``state``."""
        where = "the statistics in the saved state"
        check_like(state, self.state_dict(), where)
        for entry in state["history"]:
            values = list(entry) if isinstance(entry, tuple | list) else []
            kinds = [_KINDS[f.type] for f in fields(JumpRecord)]
            if len(values) != len(kinds) or not all(map(isinstance, values, kinds)):
                raise ValueError(f"{where} have the record {entry!r}, which is none of a jump")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)
        self.history = [JumpRecord(*entry) for entry in state["history"]]

    def __str__(self) -> str:
        return (
            f"{self.accepted} of {self.jumps} jumps accepted, {self.steps_skipped:.0f} steps "
            f"skipped in {self.steps} taken, {self.seconds:.3g} s spent"
        )


#: What the values of a saved :class:`JumpRecord` may be, by the field's annotation.
_KINDS: dict[Any, Any] = {
    "bool": bool,
    "int": int,
    "float": int | float,
    "float | None": int | float | None,
    "str": str,
}
