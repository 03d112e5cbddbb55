"""What an attachment did: a record per attempt, totals, and a page that a person can read."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, fields
from typing import Any, get_args

from koopcore.training.regime import Regime, median
from koopcore.training.settings import Kind
from koopcore.training.state import (
    FLAG,
    TEXT,
    Schema,
    Several,
    check,
    number,
    one_of,
    or_none,
    restore,
    whole,
)


@dataclass(frozen=True)
class JumpRecord:
    """One attempt.

    Attributes:
        step: optimizer steps taken when it was made.
        accepted: whether the parameters moved.
        kind: of the winner: "koopman", "line", ...; of a rejected attempt, "none".
        horizon: snapshots ahead (0 for a mean, which lies inside the window, and for none).
        stride: optimizer steps per snapshot; ``horizon * stride`` steps were skipped.
        loss_before, loss_after: as evaluated; equal if rejected; None without a loss.
        hindcast: median over groups of the operators' hindcast error, relative to the movement.
        evaluations: of the loss.
        seconds: for fit, candidates, evaluations and writing.
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


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the operators of one attempt, per snapshot.

    Attributes:
        step: optimizer steps taken when it was made.
        stride: optimizer steps per snapshot.
        eigenvalues: of all groups, largest first.
    """

    step: int
    stride: int
    eigenvalues: tuple[complex, ...]


@dataclass
class Statistics:
    """Totals of an attachment since it was made, resumed runs included.

    ``print`` it, or let a notebook or rich show it as a table.

    Attributes:
        steps: optimizer steps seen.
        snapshots: recorded.
        jumps: attempts.
        accepted: of them.
        steps_skipped: optimizer steps that accepted jumps stand for.
        evaluations: of the loss.
        seconds: wall time spent recording (:attr:`seconds_recording`) and jumping, as the host
            sees it: on a CUDA device, copies that run behind the host are not in it.
        history: the last records.
        lasting: of accepted jumps that were followed by another attempt, how many had still a
            lower loss there than before the jump.
        followed: of how many.
        regimes: (step, regime) of every change.
        averages: name -> loss, when they were last compared.
        comparisons, seconds_comparing: evaluations of the loss to choose among them, and their
            time.
        run_seconds: wall time since attaching.
        spectrum: a :class:`Spectrum` of the last attempt that fitted operators, 16 at most; None of
            others. These five are of this process, not of a saved state.
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
    lasting: int = 0
    followed: int = 0
    regimes: list[tuple[int, str]] = field(default_factory=list)
    history: list[JumpRecord] = field(default_factory=list)
    averages: dict[str, float] = field(default_factory=dict, compare=False)
    run_seconds: float = field(default=0.0, compare=False)
    comparisons: int = field(default=0, compare=False)
    seconds_comparing: float = field(default=0.0, compare=False)
    spectrum: Spectrum | None = field(default=None, compare=False)

    def add(self, record: JumpRecord) -> None:
        """Count one attempt; records older than the last 10,000 are dropped from the history."""
        before = self.history[-1] if self.history else None
        if before is not None and before.accepted and record.loss_before is not None:
            self.followed += 1
            self.lasting += record.loss_before < (before.loss_before or -math.inf)
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

    @property
    def regime(self) -> str:
        """The present regime: "undecided", "smooth", "between" or "noise"."""
        return self.regimes[-1][1] if self.regimes else "undecided"

    @property
    def hindcast(self) -> float:
        """Median hindcast error over the movement, of the last hundred attempts; NaN of none."""
        return median([r.hindcast for r in self.history[-100:] if math.isfinite(r.hindcast)])

    @property
    def winners(self) -> dict[str, int]:
        """Accepted jumps by kind, most frequent first."""
        return dict(Counter(r.kind for r in self.history if r.accepted).most_common())

    @property
    def share(self) -> float:
        """Share of the run's time that went into koopcore, since attaching."""
        spent = self.seconds + self.seconds_comparing
        return spent / self.run_seconds if self.run_seconds > 0 else math.nan

    def rows(self) -> list[tuple[str, str]]:
        """What is worth knowing, as (name, value) in words."""
        since = self.regimes[-1][0] if self.regimes else 0
        rows = [("regime", f"{self.regime} since step {since}" if since else self.regime)]
        rows.append(("steps", f"{self.steps:,} taken, {self.steps_skipped:,.0f} skipped"))
        if self.jumps:
            won = ", ".join(f"{kind} {count}" for kind, count in self.winners.items())
            rows.append(
                ("jumps", f"{self.accepted} of {self.jumps} accepted" + (f": {won}" * bool(won)))
            )
            if self.followed:
                rows.append(
                    ("gains that lasted", f"{self.lasting} of {self.followed} at the next attempt")
                )
            rows.append(("hindcast error", f"{self.hindcast:.2g} of the movement (median)"))
        if self.averages:
            best = min(self.averages, key=self.averages.__getitem__)
            at = self.averages.get("weights", math.nan)
            rows.append(
                ("loss", f"{at:.4g} at the weights, {self.averages[best]:.4g} at average {best}")
            )
        share = "" if math.isnan(self.share) else f", {self.share:.1%} of the run"
        spent, checks = self.seconds + self.seconds_comparing, self.evaluations + self.comparisons
        rows.append(("time", f"{spent:.3g} s{share}; {checks} loss checks"))
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, and the histories as lists of tuples."""
        kept = [f.name for f in fields(self) if f.compare and f.name != "history"]
        totals = {name: getattr(self, name) for name in kept}
        totals["regimes"] = [tuple(change) for change in self.regimes]
        return {**totals, "history": [astuple(record) for record in self.history]}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError unless :meth:`load_state_dict` can go on from ``state``."""
        where = "the saved state['statistics']"
        totals: dict[str, Schema] = {
            "steps": whole(),
            "snapshots": whole(),
            "jumps": whole(),
            "accepted": whole(),
            "steps_skipped": number(0.0),
            "evaluations": whole(),
            "seconds": number(0.0),
            "seconds_recording": number(0.0),
            "lasting": whole(),
            "followed": whole(),
        }
        lists: dict[str, Schema] = {"regimes": Several(_CHANGE, 1), "history": Several(_RECORD)}
        check(state, {**totals, **lists}, where)
        relations = (
            ("snapshots", "steps"),
            ("jumps", "steps"),
            ("accepted", "jumps"),
            ("followed", "accepted"),
            ("lasting", "followed"),
        )
        for name, most in relations:
            check(state[name], whole(0, state[most]), f"{where}[{name!r}]")
        attempts = min(state["jumps"], self.HISTORY)
        check(state["history"], Several(_RECORD, attempts, attempts), f"{where}['history']")
        for name in ("history", "regimes"):
            for k, entry in enumerate(state[name]):
                check(entry[0], whole(0, state["steps"]), f"{where}[{name!r}][{k}][0]")
        if attempts == state["jumps"]:
            accepted = sum(entry[1] for entry in state["history"])
            check(state["accepted"], whole(accepted, accepted), f"{where}['accepted']")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        restore(self, state)
        self.regimes = [(int(step), str(regime)) for step, regime in state["regimes"]]
        self.history = [JumpRecord(*entry) for entry in state["history"]]

    def __str__(self) -> str:
        return "\n".join(f"{name:>18}: {value}" for name, value in self.rows())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self.rows()
        )
        return f"<table><caption>koopcore</caption>{cells}</table>"

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title="koopcore", show_header=False)
        for name, value in self.rows():
            table.add_row(name, value)
        return table


#: A regime's step and name, and the fields of a :class:`JumpRecord`, in saved states.
_CHANGE: Schema = (whole(), one_of(*get_args(Regime)))
_LOSS = or_none(number(infinite=True, nan=True))
_RECORD: Schema = (
    whole(1),
    FLAG,
    one_of("none", "span", *get_args(Kind)),
    number(0.0),
    whole(1),
    _LOSS,
    _LOSS,
    number(0.0, infinite=True, nan=True),
    whole(),
    number(0.0),
    TEXT,
)
