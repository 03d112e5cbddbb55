"""Koopman prediction inside torch training loops: record, fit, predict, accept or roll back."""

from koopcore.training.attach import attach
from koopcore.training.attached import Attached
from koopcore.training.averaging import AverageFamily, ExponentialAverage, WindowAverage
from koopcore.training.jumping.guarded_loss import GuardedLoss
from koopcore.training.jumping.line_search import Candidate, Ladder, SearchResult, line_search
from koopcore.training.recording.parameters import Recorded
from koopcore.training.recording.ring import DifferenceRing, SnapshotRing
from koopcore.training.settings import Options, Settings
from koopcore.training.statistics import JumpRecord, Spectrum, Statistics

__all__ = [
    "Attached",
    "AverageFamily",
    "Candidate",
    "DifferenceRing",
    "ExponentialAverage",
    "GuardedLoss",
    "JumpRecord",
    "Ladder",
    "Options",
    "Recorded",
    "SearchResult",
    "Settings",
    "SnapshotRing",
    "Spectrum",
    "Statistics",
    "WindowAverage",
    "attach",
    "line_search",
]
