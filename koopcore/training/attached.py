"""The object that ``attach`` returns: counts steps, records, attempts jumps, saves its state."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

from torch import Tensor, nn

from koopcore.files import write_whole
from koopcore.partition.layout import Layout
from koopcore.training.averaged import AveragedWeights, Which
from koopcore.training.averaging import AverageFamily
from koopcore.training.hooks import Hooks
from koopcore.training.jumping.guarded_loss import GuardedLoss, same_gradient
from koopcore.training.jumping.jump import Jump, Outcome
from koopcore.training.jumping.span import Residuals, SpanJump
from koopcore.training.optimizers import Stepper, check_whole, members
from koopcore.training.parallel.processes import ALONE, PeerError, Processes, by_value
from koopcore.training.policy import INTERVAL, policy_for
from koopcore.training.recording.live_buffers import LiveBuffers
from koopcore.training.recording.normalized_update import check_supported
from koopcore.training.recording.parameters import (
    Masters,
    NothingToRecordError,
    Recorded,
    TrainableParameters,
    has_lazy,
    matched,
    unwrapped,
)
from koopcore.training.recording.recording import Recording
from koopcore.training.regime import RegimeJudge
from koopcore.training.report import report_of
from koopcore.training.settings import Settings
from koopcore.training.state import FLAG, PART, TEXT, Leaf, Several, check, one_of, same, whole
from koopcore.training.statistics import JumpRecord, Spectrum, Statistics

#: Of the format of saved states.
VERSION = 3
_ANYTHING = Leaf(lambda _: True, "a value")

#: Attempts in vain, and steps under noise without a look at the averages, after which a warning
#: says that the run gains nothing.
IN_VAIN = 8
UNSEEN = 2000


class Attached:
    """Koopman jumps in one optimizer's training run; made by :func:`koopcore.attach`.

    Attributes:
        stats: a :class:`Statistics`.
        settings: the options.
        recorded: which parameters, and why the others are not.

    The optimizer and the model stay the user's; what is added are hooks around steps and after the
    loading of states, which :meth:`detach` removes.

    What is recorded is looked at again at every window: parameters frozen by then stay where they
    are, unfrozen and added ones (``add_param_group``) are recorded. A window in which that changed,
    or into which another state of the model or the optimizer was loaded, is given up.

    It belongs to one optimizer: it cannot be copied or pickled, and a copy of the optimizer is a
    plain one. ``attach`` to the copy, and ``load_state_dict(koop.state_dict())`` there.
    """

    def __init__(
        self,
        optimizer: Stepper,
        model: nn.Module,
        settings: Settings,
        guarded: GuardedLoss | None,
        residuals: Residuals | None,
        masters: Masters | None,
        processes: Processes = ALONE,
        on_jump: Callable[[JumpRecord], object] | None = None,
    ) -> None:
        self.settings = settings
        self._processes = processes
        self.optimizer = optimizer
        self.model = unwrapped(model)
        self._stats = Statistics()
        self._masters = matched(self.model, masters)
        self._policy = policy_for(settings, optimizer, residuals is not None)
        self._judge = RegimeJudge(settings.regime if settings.schedule is None else "smooth")
        self._buffers = LiveBuffers(self.model, settings.buffers)
        if settings.observables == "weights+update":
            check_supported(optimizer)
        check_whole(optimizer, settings.moments, settings.observables)
        self._guarded = guarded
        self._residuals = residuals
        self._jump: Jump | SpanJump = Jump(settings, optimizer, guarded)
        if residuals is not None and guarded is not None:
            self._jump = SpanJump(optimizer, guarded, residuals)
        self._recording: Recording | None = None
        self._recorded = Recorded((), {})
        self._averages = AveragedWeights(None, guarded)
        self._begun = perf_counter()
        self._pace = 0  # the stride that the steps below belong to
        self._blended: frozenset[int] = frozenset()  # steps of a stride, counted back from its last
        self._step = 0
        self._next = 0  # step after which there is something to do again
        self._past: list[Tensor] | None = None  # weights before a step whose gradient is compared
        self._counted = 0  # steps that the averages know of
        self._checked = False  # whether settings and loss were tried on the model
        self._fresh = True  # whether the next snapshot begins a window
        self._resumed = False  # whether a state was loaded that goes with those of model, optimizer
        self._warned = False
        self._paused = False
        self._on_jump = on_jump
        self._seen = False  # whether averages were ever asked for
        self._enter()
        if not has_lazy(self.model):
            self._record()
            self._check()
        self._hooks: Hooks | None = Hooks(
            members(optimizer), self.model, self._after_step, self._weights, self._on_any_rank
        )

    @property
    def stats(self) -> Statistics:
        """The regime, jumps, gains, averages and what it took; ``print`` it."""
        self._stats.steps = self._step
        self._stats.averages = dict(self._averages.losses)
        self._stats.comparisons = self._averages.evaluations
        self._stats.seconds_comparing = self._averages.seconds
        if self._hooks is not None:
            self._stats.run_seconds = perf_counter() - self._begun
        return self._stats

    @property
    def regime(self) -> str:
        """What the trajectory is now: "undecided", "smooth", "between" or "noise"."""
        return self._judge.regime

    @property
    def is_attached(self) -> bool:
        """Whether :meth:`detach` was not called yet."""
        return self._hooks is not None

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are DTensors, whose state every rank has a part of.

        :meth:`state_dict` has to be called on all ranks then, and torch.distributed.checkpoint
        saves and loads it.
        """
        return self._recording is not None and self._recording.parameters.shards is not None

    def __repr__(self) -> str:
        stats = self.stats
        what = f"{stats.accepted} of {stats.jumps} jumps accepted"
        if self._judge.regime == "noise":
            what = "the weights are left alone, averages are kept"
        state = "" if self._hooks is not None else ", detached"
        return f"<koopcore.Attached: {self._judge.regime}, step {self._step:,}, {what}{state}>"

    @property
    def recorded(self) -> Recorded:
        """The names of the parameters recorded now, and why the others are left out."""
        if self._hooks is not None:
            self._look()
        return self._recorded

    # -- while training ---------------------------------------------------------------------------

    def _after_step(self) -> None:
        """Run after every step of the optimizer; nearly always returns at once."""
        if self._hooks is not None and self._hooks.loaded and not self._resumed:
            self.reset()
        self._step += 1
        if self._step >= self._next and not self._paused:
            self._wake()
            self._next = self._plan()

    def _plan(self) -> int:
        """Return the next step after which there is something to do."""
        step, policy, family = self._step, self._policy, self._averages.family
        due = []
        if family is not None:
            due.append(step + family.to_come)
        if self._judge.auto:
            due.append(max(step, self._judge.next) + 1)
        if not policy.over:
            ahead = max(step + 1 - policy.start, 1)
            soonest = min((-ahead - k) % policy.stride for k in self._blended_steps())
            due.append(policy.start + ahead + soonest)
        return min(due, default=1 << 62)

    def _blended_steps(self) -> frozenset[int]:
        """Which steps of a stride are recorded, counted back from its last."""
        policy = self._policy
        if policy.stride != self._pace:
            self._pace = policy.stride
            self._blended = frozenset(self.settings.averaged_steps(policy.stride, policy.record))
        return self._blended

    def _count(self) -> AverageFamily | None:
        """Tell the averages how many steps there were since the last time; return them."""
        family = self._averages.family
        if family is not None:
            family.taken += self._step - self._counted
        self._counted = self._step
        return family

    def _wake(self) -> None:
        """Do what is due after this step."""
        self._resumed = False
        if self._past is not None:
            self._settle()
        family = self._count()
        if family is not None and family.due:
            begun = perf_counter()
            self._took(family.blend)
            self._stats.add_recording(perf_counter() - begun)
        policy = self._policy
        if self._judge.due(self._step):
            self._probe()
        ahead = self._step - policy.start
        if ahead < 0 or policy.over:
            return
        to_come = -ahead % policy.stride  # steps until the next snapshot is due
        if to_come not in self._blended_steps() or ahead == 0:
            return
        begun = perf_counter()
        recording = self._begin() if self._fresh else self._recording
        if recording is None:  # everything is frozen
            return
        if not self._took(recording.blend):
            return
        if to_come == 0:
            recording.ring.commit()
            self._stats.snapshots += 1
        self._stats.add_recording(perf_counter() - begun)
        ready = to_come == 0 and policy.due(recording.ring.count, self._step)
        if ready and self._judge.may_jump:
            self._attempt(recording)

    def _probe(self) -> None:
        """Take a snapshot of the few parameters that tell the regime; at their ninth, judge."""
        begun = perf_counter()
        recording = self._begin() if self._fresh else self._recording
        if recording is None or not self._took(recording.probe.capture):
            return
        if recording.probe.ring.full:
            before = self._judge.regime
            try:
                with self._processes.together(self._step, "judging the regime"):
                    hindcast, cosine = recording.probe.signals()
            except BaseException as error:
                recording.probe.ring.clear()  # on all ranks alike
                if isinstance(error, PeerError):
                    return
                raise
            recording.probe.ring.keep(self._judge.window(hindcast, cosine, self._step))
            self._turn(before)
            self._warn()
        self._stats.add_recording(perf_counter() - begun)

    def _turn(self, before: str) -> None:
        """Take in what the judge has found, or compare a gradient for it first."""
        if self._judge.doubt and self._hooks is not None:
            self._hooks.before = self._settle
        if self._judge.regime != before:
            self._enter()

    def _settle(self, later: bool = False) -> None:
        """Tell the judge, before a step, whether its gradient is that of the loss.

        later: the gradient is not there yet; compare it after the step, at the weights of now.
        """
        begun, before = perf_counter(), self._judge.regime
        parameters = None if self._recording is None else self._recording.parameters
        if later and parameters is not None:
            self._past, self._next = parameters.copy(), 0
            return
        past, self._past = self._past, None
        full = False
        if self._guarded is not None and parameters is not None:
            copies = parameters.copy()
            try:
                if past is not None:
                    parameters.restore(past)
                with self._processes.together(self._step, "comparing a gradient"):
                    full = same_gradient(self._guarded, parameters.stepped, parameters.shards)
            except PeerError:
                full = False
            finally:
                if past is not None:
                    parameters.restore(copies)
        self._judge.settle(self._step, full)
        self._turn(before)
        self._stats.add_recording(perf_counter() - begun)

    def _enter(self) -> None:
        """Go on in the regime that the judge has found."""
        regime = self._judge.regime
        start = self._policy.start
        self._policy.enter(regime, self._step)
        if self._policy.start != start:
            self._fresh = True
        self._next = 0
        self._stats.regimes.append((self._step, regime))

    def _warn(self) -> None:
        """Say once that the run gains nothing, why, and what would."""
        stats = self._stats
        if self._warned or self._processes.rank:
            return
        if self._judge.regime == "noise":
            if self._seen or self._averages.family is None or self._step < UNSEEN:
                return
            message = (
                "the steps of this run are random (minibatches, dropout, or a rate at the edge of "
                "divergence), so koopcore leaves the weights alone; what it gains are averages: "
                "validate and save inside `with koop.averaged():`, or detach()"
            )
        elif stats.jumps >= IN_VAIN and not stats.accepted and self._guarded is not None:
            message = (
                f"none of {stats.jumps} jumps lowered the loss: the trajectory cannot be "
                f"predicted (median hindcast error {stats.hindcast:.2g} of the movement). A lower "
                "or decaying learning rate may help; else detach()"
            )
        else:
            return
        self._warned = True
        warnings.warn(f"koopcore: {message}", stacklevel=2)

    def _took(self, action: Callable[[], None]) -> bool:
        """Read the parameters; False, and a new window, where they have become others."""
        try:
            action()
        except RuntimeError:
            if self._recording is None or self._look():
                raise
            return False
        return True

    def _on_any_rank(self, value: bool) -> bool:
        with self._processes.together(self._step, "a step"):
            return not self._processes.all(not value)

    def _weights(self) -> list[Tensor]:
        return [] if self._recording is None else self._recording.parameters.written()

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
        self._recording.probe.ring.clear()
        self._judge.restart(self._step - 1)
        self._fresh = False
        return self._recording

    def _attempt(self, recording: Recording) -> None:
        begun = perf_counter()
        policy = self._policy
        if not self._look():
            return
        # An exception in the loss ends the attempt with everything put back: begin a new window.
        self._fresh = True
        family, before = self._averages.family, self._judge.regime
        failure: Exception | None = None
        try:
            with self._processes.together(self._step, "a jump"):
                outcome = self._jump.attempt(recording, policy, family)
        except Exception as error:
            if self._processes.size == 1:
                raise
            # To all ranks this was a rejection; the one that it comes from raises it in the end.
            outcome = Outcome(False, reason=str(error))
            failure = None if isinstance(error, PeerError) else error
        losses = outcome.loss_before, outcome.loss_after
        policy.attempted(self._step, outcome.hindcast, *losses, outcome.evaluations)
        self._judge.attempt(outcome.hindcast, self._step)
        stride = policy.stride
        if outcome.accepted:
            if family is not None:
                family.restart()
            policy.accepted(self._step, outcome.horizon, outcome.loss_before)
            recording.probe.ring.clear()
            if isinstance(self._jump, SpanJump):
                self._judge.restart(self._step + INTERVAL)  # once the optimizer has settled
        else:
            policy.rejected(self._step)
        if policy.keep:
            recording.ring.keep(policy.keep)
            self._fresh = False
        self._note(outcome, stride, perf_counter() - begun)
        self._turn(before)
        self._warn()
        if self._on_jump is not None:
            self._on_jump(self._stats.history[-1])
        if failure is not None:
            raise failure

    def _note(self, outcome: Outcome, stride: int, seconds: float) -> None:
        if isinstance(self._jump, Jump) and self._jump.eigenvalues:
            self._stats.spectrum = Spectrum(self._step, stride, self._jump.eigenvalues)
        self._stats.add(
            JumpRecord(
                step=self._step,
                accepted=outcome.accepted,
                kind=outcome.kind,
                horizon=float(outcome.horizon),
                stride=stride,
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
        began = self._recording is not None
        if self._checked or not has_lazy(self.model):  # else not before the first step
            self._record()
        if began:
            self._restart()
        return False

    def _record(self) -> None:
        """Make the recording of what trains now, or none."""
        self._recording = None  # frees the old ring before the new one is allocated
        settings = self.settings
        try:
            parameters = TrainableParameters(
                self.model,
                self.optimizer,
                settings.include,
                settings.exclude,
                self._masters,
                self._processes,
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
        if parameters.shards is not None and self._residuals is not None:
            raise ValueError(
                "residuals= needs whole parameters on each rank, and these are sharded; give loss= "
                "instead"
            )
        self._recorded = parameters.recorded
        if settings.averages:
            family = self._averages.family
            if family is None:
                self._averages.family = AverageFamily(parameters.stepped, settings.decays)
            else:
                family.follow(parameters.stepped)
        self._recording = Recording(
            parameters, self._buffers, settings, self._policy.window, self._processes
        )

    def _check(self) -> None:
        """Say now what a fit or the loss would complain of later."""
        assert self._recording is not None
        with self._processes.together(self._step, "attach"):
            self._recording.check(self.settings)
            self._processes.same("what is attached", self._described)
            self._same_layout(self._recording.parameters.layout)
            if self._guarded is not None:
                self._guarded.rehearse()
                if self._residuals is not None:
                    self._residuals.check(self._guarded)
        self._checked = True

    def _described(self) -> dict[str, str]:
        """What has to be the same on all ranks."""
        options = {
            f"the option {field.name}": getattr(self.settings, field.name)
            for field in fields(self.settings)
        }
        shown = {name: "a function" if callable(v) else repr(v) for name, v in options.items()}
        guard = "none" if self._guarded is None else "a function"
        return {
            **shown,
            "loss": guard if self._residuals is None else "residuals",
            "the optimizer": self._optimizers(),
        }

    def _same_layout(self, layout: Layout) -> None:
        """Raise RuntimeError, on all ranks, unless all record the same: it says what first differs.

        Fingerprints first, for the names of a large model's parameters are long.
        """
        processes = self._processes
        if len(set(processes.gather("layouts", layout.fingerprint))) == 1:
            return
        shown = [f"{tensor.name!r} of shape {tuple(tensor.shape)}" for tensor in layout.tensors]
        for of_ranks in zip_longest(
            *processes.gather("recorded parameters", lambda: shown), fillvalue="none"
        ):
            if len(set(of_ranks)) > 1:
                raise RuntimeError(
                    "the model differs between ranks: the first parameter that is not the same is "
                    f"{by_value(of_ranks)}; attach the same model, frozen alike, on all of them"
                )
        raise RuntimeError(
            "the model differs between ranks: its parameters are the same, its layers are not"
        )

    def _restart(self) -> None:
        self._fresh = True
        self._past = None
        self._next = 0
        self._judge.restart(self._step)
        self._policy.restart(self._step)

    def pause(self) -> None:
        """Leave the run alone until :meth:`resume`: steps are counted, and nothing else is done.

        On all ranks alike. Twice is as once. It is no part of the state: pause a resumed run again.
        """
        self._paused = True

    def resume(self) -> None:
        """Go on after :meth:`pause`, as after :meth:`reset`."""
        if self._paused:
            self._paused = False
            self.reset()

    def reset(self) -> None:
        """Begin a new window, and the average anew, with the weights as they are.

        Call it after changing weights by hand: of two trajectories no operator can be fitted.
        ``load_state_dict`` of the model, its modules and the optimizer is noticed without it.
        """
        self._restart()
        family = self._count()
        if family is not None:
            family.restart()

    @contextmanager
    def averaged(self, which: Which = None) -> Iterator[str]:
        """Put an average of the weights in their place for the block, then the weights again.

        What to validate and save in a run of minibatches::

            with koop.averaged() as name:
                validate(model)

        Args:
            which: None for the one at which ``loss`` is lowest, the weights themselves
                included; a decay of ``averages=`` (0.99); or a name: "weights", "line 0.98"
                (the averages of 0.98 and the next decay extrapolated to where the weights are
                now), "lawa" (the mean of the last snapshots), "regression" (the end of the line
                through them). Without ``loss``, None is the longest average whose memory is a
                tenth of the steps at most.

        Yields the name. Batch-norm statistics are re-estimated at the average by one run of
        ``loss``. Asking ``loss`` for all candidates costs one evaluation each; when that would
        take more than 0.5 % of the run, the last answer stands, so name one where each call must
        give the same. RuntimeError before the first step, after :meth:`detach`, and where
        nothing trains; ValueError for what there is not.
        """
        self._stay_attached("averaged()")
        self._look()
        if self._recording is None:
            raise RuntimeError("averaged(): no parameter is recorded, so there are no averages")
        if not self._step:
            raise RuntimeError(
                "averaged() before the first step: averages begin with it; call it after"
            )
        self._seen = True
        self._count()
        with ExitStack() as stack:
            with self._processes.together(self._step, "averaged()"):
                name = stack.enter_context(self._averages.applied(which, self._recording))
            yield name

    def averaged_state_dict(self, which: Which = None) -> dict[str, Any]:
        """Return copies of ``model.state_dict()`` with an average in place of the weights.

        which, errors: as in :meth:`averaged`.
        """
        with self.averaged(which):
            return {
                name: value.detach().clone() if isinstance(value, Tensor) else value
                for name, value in self.model.state_dict().items()
            }

    def report(self, path: str | Path) -> Path:
        """Write the run as one HTML page, and return where it lies.

        Losses, jumps, regimes, hindcast errors, the spectrum of the last operators, averages, and
        what it all took; also in the middle of a run, and after :meth:`detach`. The file needs
        nothing besides it, and is written whole or not at all.

        Args:
            path: of the file; ``.html`` is usual.

        Raises ImportError, with what to install, without matplotlib; OSError for a path that cannot
        be written. Of several processes the first one writes it.
        """
        place = Path(path)
        if not self._processes.rank:
            text = report_of(self, f"{type(self.model).__name__}, {self._optimizers()}")
            write_whole(place, lambda partial: partial.write_text(text, encoding="utf-8"))
        return place

    def _optimizers(self) -> str:
        return ", ".join(type(member).__name__ for member in members(self.optimizer))

    # -- before and after -------------------------------------------------------------------------

    def detach(self) -> None:
        """Remove the hooks and free the ring; the optimizer and the model are as if never attached.

        :attr:`stats` stays; the state does not, so take :meth:`state_dict` before. Detaching twice
        does nothing.
        """
        if self._hooks is not None:
            self._hooks.remove()
        _ = self.stats  # whose clock stops here
        self._hooks = None
        self._recording = None
        self._averages.family = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to continue bit-identically.

        Tensors, numbers, strings, bytes, lists and dicts only, of the same keys and shapes for the
        same settings and parameters: ``torch.save``, ``torch.load(weights_only=True)`` and
        ``torch.distributed.checkpoint`` carry it. Save it together with the model's, the
        optimizer's and the loader's state. Size: one ring. RuntimeError after :meth:`detach`.
        """
        self._stay_attached("state_dict()")
        self._look()
        self._count()
        recording = self._recording
        return {
            "version": VERSION,
            "settings": self.settings.identity(),
            "layout": self._fingerprint(),
            "step": self._step,
            "fresh": self._fresh,
            "regime": self._judge.state_dict(),
            "policy": self._policy.state_dict(),
            "recording": {} if recording is None else recording.state_dict(),
            "averages": self._averages_state(),
            "jumps": self._jumps_state(),
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
                        recording.parameters,
                        self._buffers,
                        self.settings,
                        recording.ring.slots,
                        self._processes,
                    )
                recording.check_state(state["recording"])
            except BaseException:
                self._buffers.names, self._buffers.tensors = buffers
                raise
            recording.load_state_dict(state["recording"])
            self._recording = recording
        family = self._averages.family
        if state["layout"] and family is not None and self._recording is not None:
            parameters = self._recording.parameters
            family.load_state_dict(parameters.pieces(state["averages"]), parameters.names)
        elif family is not None:  # saved before anything was recorded
            family.restart()
        self._step = self._counted = state["step"]
        self._next = 0
        self._fresh = state["fresh"]
        if state["jumps"] and isinstance(self._jump, SpanJump) and self._recording is not None:
            self._jump.load_state_dict(state["jumps"], self._recording)
        self._judge.load_state_dict(state["regime"])
        if self._hooks is not None:
            self._hooks.before = self._settle if self._judge.doubt else None
        self._policy.load_state_dict(state["policy"])
        self._stats.load_state_dict(state["statistics"])
        self._resumed = True

    def _check_state(self, state: Mapping[str, Any]) -> list[str]:
        """Raise ValueError for what :meth:`load_state_dict` does not take; return the buffers."""
        where = "the saved state"
        settings = self.settings.identity()
        parts = "settings regime policy recording averages jumps statistics".split()
        schema = {
            "version": one_of(VERSION),
            "step": whole(),
            "fresh": FLAG,
            "layout": TEXT,
            **dict.fromkeys(parts, PART),
        }
        if not isinstance(state, Mapping):
            raise ValueError(
                f"{where} is a {type(state).__name__}; give what state_dict() returned"
            )
        if not same(state.get("version", VERSION), VERSION):
            raise ValueError(
                f"{where} has version {state['version']!r}, this koopcore reads {VERSION}; load it "
                "with the version that saved it"
            )
        check(state, schema, where)
        check(state["settings"], dict.fromkeys(settings, _ANYTHING), f"{where}['settings']")
        for name, value in settings.items():
            given = state["settings"][name]
            if not same(given, value):
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
            self._check_averages(state["averages"])
            if isinstance(self._jump, SpanJump) and self._recording is not None:
                self._jump.check_state(state["jumps"], self._recording)
            else:
                check(state["jumps"], {}, f"{where}['jumps']")
        self._judge.check_state(state["regime"])
        self._policy.check_state(state["policy"])
        self._stats.check_state(state["statistics"])
        self._check_relations(state, where)
        names = state["recording"].get("buffers", []) if state["layout"] else []
        check(names, Several(TEXT), f"{where}['recording']['buffers']")
        return list(names)

    def _check_relations(self, state: Mapping[str, Any], where: str) -> None:
        """Raise ValueError where parts that fit, each by itself, do not fit each other."""
        statistics, step = state["statistics"], state["step"]
        check(step, one_of(statistics["steps"]), f"{where}['step']")
        if "taken" in state["averages"]:
            check(state["averages"]["taken"], whole(0, step), f"{where}['averages']['taken']")
        if "bar" in state["policy"]:
            before = [record[5] for record in statistics["history"][-1:]]
            check(state["policy"]["bar"], one_of(math.inf, *before), f"{where}['policy']['bar']")

    def _fingerprint(self) -> str:
        return "" if self._recording is None else self._recording.parameters.layout.fingerprint()

    def _averages_state(self) -> dict[str, Any]:
        family, recording = self._averages.family, self._recording
        if family is None or recording is None:
            return {}
        return recording.parameters.spread(family.state_dict(recording.parameters.names))

    def _jumps_state(self) -> dict[str, Any]:
        if self._recording is None or not isinstance(self._jump, SpanJump):
            return {}
        return self._jump.state_dict(self._recording)

    def _check_averages(self, state: Mapping[str, Any]) -> None:
        family, recording = self._averages.family, self._recording
        if family is None or recording is None:
            check(state, {}, "the saved state['averages']")
        else:
            state = recording.parameters.pieces(state)
            family.check_state(state, recording.parameters.names)

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
