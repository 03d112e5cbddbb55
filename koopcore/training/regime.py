"""Smooth, between or noise: what a trajectory is, told from Gram matrices, again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

from koopcore.training.state import FLAG, Schema, Several, check, number, one_of, restore, whole

Regime: TypeAlias = Literal["undecided", "smooth", "between", "noise"]

#: A regime is a median over so many windows, never one of them.
WINDOWS = 5
#: Median hindcast error over the movement, of snapshots one step apart, above which the steps are
#: random, and below which they are no longer. Measured: full batch 1e-4 to 0.05 (networks for a
#: differential equation, jumps among them: SGD, Adagrad, Adadelta, Adam), 0.01 to 0.04 (digits);
#: batches of 2,000 of 8,000 digits 0.22, of 64 digits 0.43 to 1. At longer strides both meet, and
#: so they do by the residual where gradients have few dimensions.
RANDOM = (0.1, 0.06)
#: Windows seen before the first verdict of noise: the first steps of Adagrad and Adam shrink faster
#: than any later ones, and to wait costs nothing, for nothing is touched meanwhile.
PATIENCE = 12
#: Steps for which a run whose gradient was that of the loss counts as one of full batches.
PROVED = 1600
#: The same of snapshots as far apart as jumps are fitted on, between smooth and between.
ROUGH = (0.2, 0.1)
#: Steps from a window that agrees with the regime to the next, growing by half each time.
FIRST_GAP, MOST_GAP = 50, 800
#: A cosine, and what rounding may add to it.
COSINE = 1.0 + 1e-6
#: After a window that does not, this many of its snapshots begin the next.
KEPT = 4


class RegimeJudge:
    """Say what the trajectory is, by running medians with hysteresis, over the whole run.

    Two signals come from the Gram matrix of a window: the hindcast error over the movement, and the
    cosine of successive differences. Where each step is a random draw (minibatches, dropout), no
    window predicts its last step from those before; where steps are a function of the weights, it
    does, to a few percent, however strongly they oscillate. That is asked of short windows one step
    apart (:class:`Probe`), five overlapping ones at the beginning, one from time to time later, and
    several in a row as soon as one disagrees:

    * **noise**: median above 0.1, until it falls below 0.06. The weights are never touched. High
      rates of Adam make full batches look like that. So, before, the gradient of one step is
      compared with that of the loss (:attr:`doubt`): where they are one, there is no noise.
    * **smooth** and **between**: the others, by the median hindcast error at the stride of jumps,
      above 0.2 or below 0.1.
    * **undecided**: the first 19 steps, under noise 40, and as long as steps are lost in rounding;
      no jump either.

    Args:
        forced: the regime that the user names; nothing is judged then. "auto": judge.
    """

    def __init__(self, forced: str = "auto") -> None:
        self.auto = forced == "auto"
        self.regime: Regime = "undecided"
        if not self.auto:
            self.regime = next(r for r in get_args(Regime) if r == forced)
        self.next = 0  # step after which snapshots are due
        self.gap = FIRST_GAP
        self.seen = 0  # windows
        self.hindcasts: list[float] = []  # of the last windows, one step apart
        self.cosines: list[float] = []
        self.strided: list[float] = []  # hindcast errors of the last windows of jumps
        self.exact = 0  # step up to which steps are known to be a function of the weights
        self.doubt = False  # whether all that is missing for a verdict of noise is a gradient

    def due(self, step: int) -> bool:
        """Return whether the weights after ``step`` belong into the probe's window."""
        return self.auto and step > self.next

    @property
    def may_jump(self) -> bool:
        """Return whether the weights may be touched."""
        return self.regime in ("smooth", "between")

    def window(self, hindcast: float, cosine: float, step: int) -> int:
        """Take in a window of the probe, complete at ``step``; return how many snapshots to keep.

        hindcast: relative to the movement; NaN for a window whose steps are lost in rounding.
        """
        if math.isnan(hindcast):
            self.next = step + self.gap
            self.gap = min(self.gap + self.gap // 2, MOST_GAP)
            return 0
        self.seen += 1
        self.hindcasts = [*self.hindcasts, hindcast][-WINDOWS:]
        self.cosines = [*self.cosines, cosine][-WINDOWS:]
        self._decide(step)
        agrees = (hindcast > RANDOM[1]) if self.regime == "noise" else (hindcast < RANDOM[0])
        agrees = agrees or (self.regime != "undecided" and step <= self.exact)
        if self.regime == "undecided" or not agrees:
            self.gap = FIRST_GAP
            return KEPT
        self.next = step + self.gap
        self.gap = min(self.gap + self.gap // 2, MOST_GAP)
        return 0

    def attempt(self, hindcast: float, step: int) -> None:
        """Take in the hindcast error of a window at the stride of jumps, attempted at ``step``."""
        if hindcast > ROUGH[0]:
            self.next = min(self.next, step)  # look at once whether that is noise
        if math.isfinite(hindcast):
            self.strided = [*self.strided, hindcast][-WINDOWS:]
            if self.auto:
                self._decide(step)

    def settle(self, step: int, full: bool) -> None:
        """End a doubt. full: whether the gradient of the step was that of the loss."""
        self.doubt = False
        self.exact = step + PROVED if full else 0
        self._decide(step, asked=True)

    def restart(self, step: int) -> None:
        """Forget the window begun, which is another trajectory's; what was learned stays."""
        self.next = max(self.next, step)

    def _decide(self, step: int, asked: bool = False) -> None:
        if len(self.hindcasts) < WINDOWS:
            return
        middle = median(self.hindcasts)
        if middle > RANDOM[1 if self.regime == "noise" else 0] and step > self.exact:
            if self.regime == "undecided" and self.seen < PATIENCE:
                return
            self.doubt = self.regime != "noise" and not asked
            if self.doubt:
                return
            self.regime = "noise"
            self.strided = []
            return
        rough = ROUGH[1 if self.regime == "between" else 0]
        self.regime = "between" if median(self.strided) > rough else "smooth"

    def state_dict(self) -> dict[str, Any]:
        """Return where the judge stands."""
        names = "regime next gap seen exact doubt hindcasts cosines strided".split()
        return {name: getattr(self, name) for name in names}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError unless :meth:`load_state_dict` can go on from ``state``."""
        where = "the saved state['regime']"
        regimes = get_args(Regime) if self.auto else (self.regime,)
        windows = {
            "hindcasts": number(0.0, infinite=True),
            "cosines": number(-COSINE, COSINE),
            "strided": number(0.0),
        }
        schema: dict[str, Schema] = {
            "regime": one_of(*regimes),
            "next": whole(),
            "gap": whole(FIRST_GAP, MOST_GAP),
            "seen": whole(),
            "exact": whole(),
            "doubt": FLAG,
            **{name: Several(leaf, 0, WINDOWS) for name, leaf in windows.items()},
        }
        check(state, schema, where)
        seen = min(state["seen"], WINDOWS)
        for name in ("hindcasts", "cosines"):
            check(state[name], Several(windows[name], seen, seen), f"{where}[{name!r}]")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        restore(self, state)


def median(values: list[float]) -> float:
    """Return the middle value, the lower of two; NaN of none."""
    return sorted(values)[(len(values) - 1) // 2] if values else math.nan
