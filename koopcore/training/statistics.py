"""What an attachment did: one record per attempted jump, and the totals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


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
