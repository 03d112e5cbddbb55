"""Koopman prediction inside torch training loops: record, fit, predict, accept or roll back."""

from koopcore.training.difference_ring import DifferenceRing
from koopcore.training.ring import SnapshotRing

__all__ = ["DifferenceRing", "SnapshotRing"]
