"""Small groups whose endpoints were predicted with the fit: operators are made when asked for."""

from __future__ import annotations

from dataclasses import dataclass

from koopcore.backends import stage
from koopcore.backends.protocol import FeatureSolved, Snapshots
from koopcore.fitted.base import GroupFit
from koopcore.fitted.feature import FeatureFit
from koopcore.partition.partition import Partition
from koopcore.types import IntArray


@dataclass
class DeferredFit(GroupFit):
    """Diagnostics only: for 50,000 groups of 11 parameters, operators would be 145 MB to write.

    The snapshots are read again when operators are asked for.
    """

    holdout: int

    @classmethod
    def of(
        cls,
        part: Partition,
        groups: IntArray,
        affine: bool,
        solved: FeatureSolved,
        holdout: int,
    ) -> DeferredFit:
        """What `feature_fit` leaves when it predicts at once."""
        rank, condition, residual, hindcast = solved[:4]
        return cls(part, groups, affine, rank, residual, condition, hindcast, holdout)

    def fit(self, snapshots: Snapshots, on: str | None) -> FeatureFit:
        """The same fit with its operators."""
        solved: FeatureSolved = stage("feature_fit", backend=on)(
            snapshots, self.part, self.affine, self.holdout
        )
        return FeatureFit.of_solved(self.part, self.groups, self.affine, solved)
