"""What a rank of test_minibatches does, where a process that was spawned can import it."""

import numpy as np
import torch
import torch.distributed as dist
from ranks import leave

from koopcore.lab.problems.flows import duffing
from koopcore.learning import MinibatchLearner, OneLayer, StateInclusive

DICTIONARY = StateInclusive(OneLayer(2, 9), constant=True)


def several(count=6, length=40, seed=0):
    return list(duffing().trajectories(count, length, np.random.default_rng(seed)))


def run_rank(rank: int, meeting: str, settings: dict, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    x = several()
    part = x[:2] if rank == 0 else x[2:]  # parts of different lengths
    learner = MinibatchLearner(DICTIONARY, n_iterations=15, distributed=True, **settings).fit(part)
    learned = learner.operator_
    np.savez(f"{out}-{rank}.npz", k=learned.operator, theta=learned.parameters, scale=learned.scale)
    leave()
