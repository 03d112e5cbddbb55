"""Koopman prediction inside torch training loops: record, fit, predict, accept or roll back."""

from koopcore.training.attach import attach
from koopcore.training.attached import Attached
from koopcore.training.difference_ring import DifferenceRing
from koopcore.training.guarded_loss import GuardedLoss
from koopcore.training.line_search import Candidate, Found, line_search
from koopcore.training.ring import SnapshotRing
from koopcore.training.statistics import JumpRecord, Statistics

__all__ = [
    "Attached",
    "Candidate",
    "DifferenceRing",
    "Found",
    "GuardedLoss",
    "JumpRecord",
    "SnapshotRing",
    "Statistics",
    "attach",
    "line_search",
]
