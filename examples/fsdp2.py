"""Koopman jumps of a model that is sharded by FSDP2, saved and loaded in shards.

torchrun --nproc-per-node 2 examples/fsdp2.py

Each process holds a part of every weight and of its snapshots, and has batches of its own.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import koopcore


class Run:
    """A network, sharded, its optimizer, this process's points of a sine, and koopcore."""

    def __init__(self, accelerated: bool = True) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 1)]
        self.model = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(self.model)
        self.optimizer = torch.optim.Adagrad(self.model.parameters(), lr=0.1)
        self.x = torch.linspace(-3, 3, 100)[dist.get_rank() :: dist.get_world_size(), None]
        self.koop = None
        if accelerated:
            self.koop = koopcore.attach(self.optimizer, self.model, loss=self.loss)

    def loss(self) -> torch.Tensor:
        """The mean squared error on this process's points."""
        return nn.functional.mse_loss(self.model(self.x), torch.sin(2 * self.x))

    def train(self, steps: int) -> float:
        """Train, and return the loss on all points."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
        loss = self.loss().detach()
        dist.all_reduce(loss)
        return float(loss) / dist.get_world_size()

    def state(self) -> dict[str, Any]:
        """All of it, for ``torch.distributed.checkpoint``."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "koop": self.koop}

    def load(self, folder: str) -> None:
        """Go on from a saved run, of however many processes."""
        state = self.state()
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )


def main(steps: int = 1000) -> None:
    """Train with koopcore and without; save the former half way, and go on from there again."""
    # On GPUs: init_process_group("nccl") and torch.cuda.set_device(local rank).
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0
    plain = Run(accelerated=False).train(steps)
    folders = [tempfile.mkdtemp() if first else ""]
    dist.broadcast_object_list(folders)
    run = Run()
    run.train(steps // 2)
    dcp.save(run.state(), checkpoint_id=folders[0])
    jumping = run.train(steps - steps // 2)
    again = Run()
    again.load(folders[0])
    resumed = again.train(steps - steps // 2)
    if first:
        print(f"    plain: loss {plain:.2e} after {steps} steps")
        print(f" koopcore: loss {jumping:.2e}; resumed half way: {resumed:.2e}")
        print(run.koop.stats)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
