"""Koopman prediction inside torch training loops: record, fit, predict, accept or roll back."""

from koopcore.training.attach import attach
from koopcore.training.attached import Attached
from koopcore.training.averaging import ExponentialAverage, WindowAverage
from koopcore.training.jumping.guarded_loss import GuardedLoss
from koopcore.training.jumping.line_search import Candidate, Found, Ladder, line_search
from koopcore.training.recording.difference_ring import DifferenceRing
from koopcore.training.recording.ring import SnapshotRing
from koopcore.training.statistics import JumpRecord, Statistics

__all__ = [
    "Attached",
    "Candidate",
    "DifferenceRing",
    "ExponentialAverage",
    "Found",
    "GuardedLoss",
    "JumpRecord",
    "Ladder",
    "SnapshotRing",
    "Statistics",
    "WindowAverage",
    "attach",
    "line_search",
]
