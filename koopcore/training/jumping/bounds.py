"""A bound on each group's prediction: one that outruns the straight line goes on along it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from koopcore.partition.partition import Partition
from koopcore.training.parallel.processes import ALONE, Processes

#: Times the straight line's distance that a group may be predicted to go. Of 1, 1.5, 2 and 3, on
#: MNIST with quasi-nodes of 49 and 196 (seeds 0-9): 1 bends a third of all groups and costs 3 % of
#: the gain, the others differ by less than 2 %; single diverged groups lie beyond 5.
LIMIT = 1.5


class GroupBounds:
    """Keep single groups' operators from spoiling a prediction of many.

    A group of few parameters that hardly moves (a dead unit), or whose window is mostly noise, may
    have an operator whose rollout grows beyond all measure; one such group in hundreds makes the
    whole network useless. With ``x_1``, ``x_n`` the ends of the window and ``x_{n+T}`` predicted,
    a group with

        |x_{n+T} - x_n|  >  limit |T (x_n - x_1) / (n - 1)|        (Euclidean norm over the group)

    or with a non-finite element goes to ``x_n + T (x_n - x_1) / (n - 1)`` instead.

    Args:
        partition: over the rows' elements; those in no group stay as predicted.
        device: of the rows. limit: at least 1.

    Cost: about eight passes over one row per prediction. Not for one network-wide group, whose
    prediction a loss judges as a whole, nor for groups that oscillate about a fixed point, whose
    straight line goes nowhere.
    """

    def __init__(
        self, partition: Partition, device: torch.device | str = "cpu", limit: float = LIMIT
    ) -> None:
        if not limit >= 1:
            raise ValueError(f"limit is {limit!r}; give a number >= 1")
        self.limit = limit
        self._groups = partition.n_groups
        self._crossing = 0  # groups that other processes have parts of
        self._processes = ALONE
        owner = np.full(partition.size, self._groups)  # one more group, of what is in none
        for group in range(self._groups):
            owner[partition.indices(group)] = group
        self._owner = torch.from_numpy(owner).to(device)

    def share(self, counted: Partition, shared: int, processes: Processes) -> None:
        """Let the first ``shared`` groups be as long as the processes' parts of them together.

        counted: the groups of the weights, less the columns that another process counts.
        """
        owner = np.full(counted.size, self._groups)
        for group in range(shared):
            owner[counted.indices(group)] = group
        self._shared = torch.from_numpy(owner).to(self._owner.device)
        self._crossing, self._processes = shared, processes

    def __call__(self, predicted: Tensor, newest: Tensor, oldest: Tensor, windows: float) -> Tensor:
        """Return ``predicted`` with diverged groups bent to the straight line; each ``(P,)``.

        windows: ``T / (n - 1)``, the horizon over the time from ``oldest`` to ``newest``.
        """
        line = (newest - oldest) * windows
        gone = self._squares(predicted - newest)
        diverged = ~(gone <= self.limit**2 * self._squares(line))  # so has what is NaN
        diverged[-1] = False
        if not bool(diverged.any()):
            return predicted  # which needs no word to the others: each bends its own columns
        return torch.where(diverged[self._owner], newest + line, predicted)

    def _squares(self, row: Tensor) -> Tensor:
        """Sum of squares of each group, ``(n_groups + 1,)``; what overflows has diverged."""
        squares = row.square()
        sums = row.new_zeros(self._groups + 1).scatter_add_(0, self._owner, squares)
        if self._crossing:
            here = row.new_zeros(self._groups + 1).scatter_add_(0, self._shared, squares)
            whole = self._processes.total(here[: self._crossing].double().cpu().numpy())
            sums[: self._crossing] = torch.from_numpy(whole).to(sums)
        return sums
