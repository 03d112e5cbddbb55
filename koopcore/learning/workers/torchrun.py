"""`DistributedLearner` on ranks that somebody else started: each brings its own columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from koopcore.learning.exact_step import exact_operator
from koopcore.learning.history import History
from koopcore.learning.learned_operator import LearnedOperator
from koopcore.learning.persistence import save_part
from koopcore.learning.readout import check_readout, fit_readout
from koopcore.learning.trajectories import Trajectories, pairs, scaled
from koopcore.learning.workers.collectives import Collectives, RanksLost, Traffic
from koopcore.learning.workers.ranks import Iterations
from koopcore.learning.workers.share import Division, share_of
from koopcore.learning.workers.supervisor import WorkerError
from koopcore.types import FloatArray

if TYPE_CHECKING:
    from koopcore.learning.workers.distributed import DistributedLearner


def learn_here(
    learner: DistributedLearner,
    division: Division,
    part: Trajectories,
    start: tuple[FloatArray, FloatArray],
) -> tuple[LearnedOperator, History, list[Traffic]]:
    """This rank's part of the learning, and the whole operator, which every rank gets.

    Each rank solves for the read-out of its own states: it has everybody's features, not states.
    """
    number = dist.get_rank()
    states, widths = division.states(number), division.widths()
    made = scaled(pairs(part, len(states)), learner.standardize)
    data = made.data
    mine = share_of(division, number, data, *start)
    nccl = dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
    collectives = Collectives(widths, number, device)
    iterations = Iterations(mine, collectives, learner.rules())
    try:
        tracker, history = iterations.run(lambda *_: None)
        mine.parameters, rows = tracker.parameters, tracker.operator
        features, _ = collectives.gather(mine.linearize(), (0.0, 0.0))
    except RanksLost as error:
        raise _own_part_kept(learner, number, iterations, error) from error
    if learner.polish:
        rows = exact_operator(features, data, learner.ridge, mine.own)
    kind = check_readout(learner.readout, division.blocks)
    if kind == "state-inclusive":
        readout = fit_readout(division.blocks, features, data.states, kind)[states]
    else:
        readout = fit_readout(mine.blocks, features, data.states, kind)
    gathered: list[Any] = [None] * len(widths)
    own = (mine.parameters, rows, readout, made.shift, made.scale, states, collectives.traffic)
    dist.all_gather_object(gathered, own)
    order = np.argsort([s for g in gathered for s in g[5]])
    theta, k, c, shifts, scales = (np.concatenate([g[i] for g in gathered]) for i in range(5))
    whole = LearnedOperator(division.blocks, theta, k, c[order], shifts[order], scales[order])
    return whole, history, [g[6] for g in gathered]


def _own_part_kept(
    learner: DistributedLearner, number: int, iterations: Iterations, error: RanksLost
) -> WorkerError:
    """The error to raise where the other ranks are lost: this rank's part is all it has."""
    kept, done = iterations.tracker, len(iterations.history)
    where = "; set checkpoint to keep its part"
    if learner.checkpoint is not None:
        path = save_part(learner.checkpoint, number, done, kept.parameters, kept.operator)
        where = f"; its part of the last good iterate is in {path}"
    return WorkerError(f"rank {number}, iteration {done}: {error}{where}", number)
