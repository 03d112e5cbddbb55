"""When to record and how far to look: adaptive after each attempt, or fixed as in the paper."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from koopcore.training.jumping.line_search import geometric
from koopcore.training.optimizers import Stepper
from koopcore.training.regime import Regime
from koopcore.training.settings import NOISE_STRIDE, SCHEDULED, Settings, Steps
from koopcore.training.state import FLAG, check, number, restore, whole

#: Horizons in windows: the first rung (and the share of the last jump below which none is tried),
#: the rungs up to which the ladder is always tried, and up to which while nothing is accepted.
FIRST_RUNG = 0.25
SHARE_OF_LAST = 1 / 16
SURE = 16.0
SURE_WHEN_REJECTED = 1.0

#: Strides, where they are not given: of the first windows, the shortest and the longest, the
#: factors by which they change, and between which hindcast errors they stay as they are.
FIRST_STRIDE, LEAST_STRIDE, MOST_STRIDE = 2, 2, 10
SHORTER, LONGER = 1 / 2, 3 / 2
STEADY = (0.01, 0.1)

#: Rejections in a row, after a gain, on which the window only slides; then resting begins.
SLIDES = 2
#: Jumps in a row whose gain is gone at the next attempt, after which the last is a rejection.
LOST = 2
#: Doublings of the rest that rejections can add up to.
MAX_DOUBLINGS = 6

#: Residuals: snapshots of the window and steps between them, the fewest to begin with, steps
#: between attempts, and evaluations that cost as much as a step.
SPAN, SPAN_STRIDE, FEWEST = 60, 5, 4
INTERVAL = 10
PER_STEP = 3.0
#: Attempts of a block, the most blocks in a row, and the steps alone after them.
BLOCK, MOST_BLOCKS = 20, 16
ALONE, MOST_ALONE = 60, 2560

#: warmup="auto" waits until the median hindcast error is below this share of the movement,
READY_HINDCAST = 0.2
#: and no mode grows by more than this factor within one window.
READY_GROWTH = 3.0

#: Without a loss, the horizon in windows is this error over the hindcast error.
BLIND_ERROR = 0.1
#: Shorter blind jumps than this many windows are not worth their risk.
BLIND_LEAST = 0.5


class AdaptivePolicy:
    """Window after window; the distance between attempts and their reach follow what they gave.

    * The ladder of horizons starts at 1/4 window, each ``ladder`` times the one before; it is tried
      up to 16 windows (up to 1 while attempts are being rejected) and goes on while its end is
      the best, up to ``max_horizon`` windows. After a jump of ``h`` windows it starts at ``h/16``.
    * After an accepted jump a new window begins.
    * After a rejection that follows a gain the newer half of the window is kept, and tried again
      half a window on; twice in a row at most.
    * After any other rejection it rests ``1, 2, 4, ... 64`` windows first, recording nothing, so a
      run that gains nothing makes a number of attempts logarithmic in its length.
    * A jump whose gain is gone at the next attempt, twice in a row, counts as a rejection.
    * The stride, unless given, halves where the hindcast error is below 1 % of the movement and
      grows by half above 10 %, from 2 to 10 steps; under noise it is 40.
    * ``warmup`` steps pass before the first window; with ``"auto"`` windows are fitted but no loss
      is evaluated until hindcast error and growth say that the trajectory can be predicted.
    """

    def __init__(
        self,
        window: int,
        stride: int | None,
        max_horizon: float,
        warmup: int | str,
        ladder: float,
    ) -> None:
        self.window = window
        self.record: Steps | None = None
        self.free = stride is None
        self.stride = FIRST_STRIDE if stride is None else stride
        self.paced = self.stride  # of the next window
        self.max_horizon = float(max_horizon)
        self.ladder = float(ladder)
        self.start = 0 if warmup == "auto" else int(warmup)
        self.ready = warmup != "auto"
        self.rejections = 0
        self.slides = 0
        self.last = 0.0  # windows that the last accepted jump went, 0 after a rejection
        self.bar = math.inf  # the loss before the last jump, which the next attempt must find lower
        self.lost = 0  # jumps in a row whose gain was gone at the next attempt
        self.keep = 0
        self.over = False

    @property
    def rungs(self) -> int:
        """Return how many rungs of the ladder are tried whatever their loss."""
        sure = SURE_WHEN_REJECTED if self.rejections else SURE
        return len(self._up_to(min(sure, self.max_horizon)))

    def judge(self, hindcast: float, growth: float) -> bool:
        """Return whether a line search is worth its evaluations; growth is per window."""
        if not self.ready:
            self.ready = hindcast <= READY_HINDCAST and growth <= READY_GROWTH
        return self.ready

    def horizons(self) -> list[int]:
        """Return the ladder in snapshots, ascending."""
        return self._up_to(self.max_horizon)

    def _up_to(self, windows: float) -> list[int]:
        span = self.window - 1
        ladder = geometric(FIRST_RUNG * span, windows * span, self.ladder)
        return [h for h in ladder if h >= SHARE_OF_LAST * self.last * span] or ladder[-1:]

    def blind_horizon(self, hindcast: float) -> int:
        """Return how far to jump without a loss, in snapshots; 0 for not at all."""
        windows = min(self.max_horizon, BLIND_ERROR / max(hindcast, 1e-12))
        return round(windows * (self.window - 1)) if windows >= BLIND_LEAST else 0

    @property
    def window_steps(self) -> int:
        """Return the optimizer steps of one window."""
        return self.window * self.stride

    def enter(self, regime: Regime, step: int) -> None:
        """Plan for another regime: a new window where the stride becomes another."""
        stride = NOISE_STRIDE if regime == "noise" else min(self.stride, MOST_STRIDE)
        if self.free and stride != self.stride:
            self.stride = self.paced = stride
            self.start = max(self.start, step)
        self.rejections = self.lost = self.keep = 0
        self.bar = math.inf

    def due(self, count: int, step: int) -> bool:
        """Return whether to attempt now, with ``count`` snapshots recorded."""
        return count == self.window

    def attempted(
        self, step: int, hindcast: float, before: float | None, after: float | None, checks: int
    ) -> None:
        """Take in what an attempt found, and pace the next window.

        before, after: the losses, None without one. checks: evaluations of the loss.
        """
        if before is not None:
            self.lost = self.lost + 1 if before >= self.bar else 0
        self.bar = math.inf
        if self.free and math.isfinite(hindcast):
            low, high = STEADY
            factor = SHORTER if hindcast < low else LONGER if hindcast > high else 1.0
            stride = math.ceil(factor * self.stride)
            self.paced = min(max(stride, LEAST_STRIDE), MOST_STRIDE)

    def accepted(self, step: int, horizon: float, before: float | None = None) -> None:
        """Plan after an accepted jump of ``horizon`` snapshots: a new window, at once.

        before: the loss from which it went; if the next attempt does not find a lower one, twice in
        a row, the jump counts as a rejection.
        """
        self.bar = math.inf if before is None else before
        if self.lost >= LOST:
            self.slides = 0
            self.rejected(step)
            return
        self._repace()
        self.last = horizon / (self.window - 1)
        self.rejections = 0
        self.slides = SLIDES
        self.keep = 0
        self.start = step

    def rejected(self, step: int) -> None:
        """Plan after an attempt that changed nothing: slide the window, later rest."""
        self.last = 0.0
        if self.slides:
            self.slides -= 1
            self.keep = self.window // 2
            self.start = step
            return
        self.keep = 0
        self._repace()
        self.start = step + self.window_steps * 2 ** min(self.rejections, MAX_DOUBLINGS)
        self.rejections += 1

    def _repace(self) -> None:
        self.stride = self.paced

    def restart(self, step: int) -> None:
        """Plan a new window, where the present one has become another trajectory's."""
        self.start = max(self.start, step)
        self.keep = 0

    def state_dict(self) -> dict[str, Any]:
        """Return where the policy stands."""
        names = "start ready rejections slides last keep bar lost stride paced"
        return {name: getattr(self, name) for name in names.split()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError unless :meth:`load_state_dict` can go on from ``state``."""
        least, most = (LEAST_STRIDE, NOISE_STRIDE) if self.free else (self.stride, self.stride)
        schema = {
            "start": whole(),
            "ready": FLAG,
            "rejections": whole(),
            "slides": whole(0, SLIDES),
            "last": number(0.0),
            "keep": whole(0, self.window),
            "bar": number(infinite=True),
            "lost": whole(),
            "stride": whole(least, most),
            "paced": whole(least, most),
        }
        check(state, schema, "the saved state['policy']")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        restore(self, state)


class SpanPolicy:
    """Jumps in the span of a long window that slides on over them, as long as they pay.

    An attempt every 10 steps. What a jump gains shows only later, so blocks are compared: after 20
    attempts the steps go on alone for a while, and whichever has lowered the logarithm of the loss
    by more per unit of cost goes on for longer: a step is one unit, an evaluation a third. Blocks
    of attempts double, up to 16 times, while they pay; the steps between double, up to 2,560, while
    they do not.
    """

    def __init__(self, stride: int | None) -> None:
        self.window = SPAN
        self.stride = SPAN_STRIDE if stride is None else stride
        self.record: Steps | None = "mean"
        self.start = 0
        self.keep = SPAN
        self.ready = True
        self.over = False
        self.rungs = 1
        self.next = 0  # step of the next attempt
        self.attempts = 0  # of the present block
        self.blocks = 1  # of 20 attempts before the steps go on alone
        self.alone = ALONE  # steps
        self.trial = False  # whether they do
        self.units = 0.0  # cost of the present block
        self.first = 0.0  # the loss at its beginning
        self.rate = 0.0  # of the last block, per unit
        self.left = 0.0  # the loss that the last attempt left, and after which step
        self.left_at = 0

    def due(self, count: int, step: int) -> bool:
        """Return whether to attempt now, with ``count`` snapshots recorded."""
        return count >= FEWEST and step >= self.next

    def judge(self, hindcast: float, growth: float) -> bool:
        """There is nothing to predict."""
        return True

    def horizons(self) -> list[int]:
        """There are none."""
        return []

    def blind_horizon(self, hindcast: float) -> int:
        """Nor without a loss."""
        return 0

    def enter(self, regime: Regime, step: int) -> None:
        """Every regime in which jumps are made is the same."""

    def attempted(
        self, step: int, hindcast: float, before: float | None, after: float | None, checks: int
    ) -> None:
        """Take in what an attempt gained and cost, and what the steps before it did."""
        self.next = step + INTERVAL
        if before is None or after is None or not math.isfinite(before):
            return
        if self.trial:
            self._compare(step, before)
        if not self.attempts:
            self.first, self.units, self.left_at = before, 0.0, step
        self.units += step - self.left_at + checks / PER_STEP
        self.attempts += 1
        self.left, self.left_at = after, step
        if self.attempts >= self.blocks * BLOCK:
            self.rate = _gain(self.first, after) / self.units
            self.trial = True
            self.next = step + self.alone

    def _compare(self, step: int, loss: float) -> None:
        """Take in what the steps alone came to."""
        self.attempts = 0
        self.trial = False
        if _gain(self.left, loss) > self.rate * (step - self.left_at):
            self.blocks = 1
            self.alone = min(2 * self.alone, MOST_ALONE)
        else:
            self.blocks = min(2 * self.blocks, MOST_BLOCKS)
            self.alone = ALONE

    def accepted(self, step: int, horizon: float, before: float | None = None) -> None:
        """The window slides on."""

    def rejected(self, step: int) -> None:
        """The window slides on."""

    def restart(self, step: int) -> None:
        """Begin a new window, and a new block."""
        self.start = max(self.start, step)
        self.attempts = 0
        self.trial = False

    def state_dict(self) -> dict[str, Any]:
        """Return where the policy stands."""
        names = "start next attempts blocks alone trial units first rate left left_at"
        return {name: getattr(self, name) for name in names.split()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError unless :meth:`load_state_dict` can go on from ``state``."""
        schema = {
            "start": whole(),
            "next": whole(),
            "attempts": whole(0, MOST_BLOCKS * BLOCK),
            "blocks": whole(1, MOST_BLOCKS),
            "alone": whole(ALONE, MOST_ALONE),
            "trial": FLAG,
            "units": number(0.0),
            "first": number(0.0),
            "rate": number(),
            "left": number(0.0),
            "left_at": whole(),
        }
        check(state, schema, "the saved state['policy']")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        restore(self, state)


def _gain(before: float, after: float) -> float:
    return math.log(max(before, 1e-300)) - math.log(max(after, 1e-300))


class FixedSchedule:
    """The paper's schedule: record steps ``t1 .. t2``, jump ``horizon`` steps ahead once, stop.

    Source: Dogra & Redman 2020, Algorithm 1 (``t1 = 35,001``, ``t2 = 45,000``, ``T = 2,500``).
    """

    def __init__(self, t1: int, t2: int, horizon: int, stride: int) -> None:
        self.record: Steps | None = None
        self.start = t1 - stride  # a stride before the first snapshot, as in any window
        self.stride = stride
        self.window = (t2 - t1) // stride + 1
        self.ready = True
        self.rungs = 1
        self.keep = 0
        self.over = False
        self._horizon = max(1, round(horizon / stride))

    def judge(self, hindcast: float, growth: float) -> bool:
        """The paper jumps whatever the diagnostics say."""
        return True

    def horizons(self) -> list[int]:
        """Return the one horizon, in snapshots."""
        return [self._horizon]

    def blind_horizon(self, hindcast: float) -> int:
        """Return the one horizon, in snapshots."""
        return self._horizon

    def enter(self, regime: Regime, step: int) -> None:
        """The paper's schedule is the same in every regime."""

    def due(self, count: int, step: int) -> bool:
        """Return whether the window is whole."""
        return count == self.window

    def attempted(
        self, step: int, hindcast: float, before: float | None, after: float | None, checks: int
    ) -> None:
        """Nothing is paced."""

    def accepted(self, step: int, horizon: float, before: float | None = None) -> None:
        """Stop recording for good."""
        self.over = True

    def rejected(self, step: int) -> None:
        """Stop recording for good."""
        self.over = True

    def restart(self, step: int) -> None:
        """Record the whole window once more, from here on."""
        self.start = max(self.start, step)

    def state_dict(self) -> dict[str, Any]:
        """Return where the schedule stands."""
        return {"start": self.start, "over": self.over}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError unless :meth:`load_state_dict` can go on from ``state``."""
        schema = {"start": whole(min(0, self.start)), "over": FLAG}
        check(state, schema, "the saved state['policy']")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.start, self.over = state["start"], state["over"]


Policy: TypeAlias = AdaptivePolicy | FixedSchedule | SpanPolicy


def policy_for(settings: Settings, optimizer: Stepper, residuals: bool = False) -> Policy:
    """Return a fresh policy; ``ladder=None`` is 2 for optimizers with Adam's moments, else 4."""
    if residuals:
        return SpanPolicy(settings.stride)
    if settings.schedule is not None:
        return FixedSchedule(*settings.schedule, settings.stride or SCHEDULED)
    ladder = settings.ladder
    if ladder is None:
        ladder = 2.0 if "betas" in optimizer.defaults else 4.0
    return AdaptivePolicy(
        settings.window, settings.stride, settings.max_horizon, settings.warmup, ladder
    )
