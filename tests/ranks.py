"""Starts real processes that train together, on gloo, and collects what each of them reports."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import koopcore

TESTS = Path(__file__).resolve().parent


def environment(paths: Iterable[Path] = ()) -> dict[str, str]:
    """This process's, with which a script finds this module too, and those in ``paths``."""
    paths = [*map(str, paths), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def launch(
    script: Path, size: int, *arguments: str, limit: float = 240.0, paths: Iterable[Path] = ()
) -> list[dict[str, Any]]:
    """Run ``script`` in ``size`` processes; return what each one wrote by :func:`report`.

    paths: where modules of the script lie.

    Each line of a process's output that begins with '{"' is a part of its report. A process that
    fails, is killed or hangs has "exit" other than 0, and "errors", what it wrote to stderr.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        **environment(paths),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": "1",
        "PYTHONSAFEPATH": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), *arguments],
            env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    deadline = time.monotonic() + limit
    reports = []
    for process in processes:
        try:
            out, errors = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
            errors += "\nkilled: it hung"
        found: dict[str, Any] = {}
        for line in out.splitlines():
            if line.startswith('{"'):
                found |= json.loads(line)
        reports.append({**found, "exit": process.returncode, "errors": errors})
    return reports


def join(seconds: float = 60.0) -> tuple[int, int]:
    """Join the group in a process that :func:`launch` started; return (rank, size)."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    return dist.get_rank(), dist.get_world_size()


def leave() -> NoReturn:
    """End a process that :func:`join` began, when all are here.

    Without what torch does at exit: the thread of its store can end rank 0 by SIGABRT there
    ("terminate called without an active exception").
    """
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def report(**values: Any) -> None:
    """Hand ``values`` to the test that launched this process."""
    print(json.dumps(values), flush=True)


def apart(model: nn.Module) -> float:
    """The largest difference between this rank's parameters and rank 0's; 0 if bits agree."""
    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    first = mine.clone()
    dist.broadcast(first, 0)
    worst = (mine - first).abs().max()
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    return float(worst)


class Run:
    """A regression by 8:12:5 networks in float64, sharded as ``how`` says, and its attachment.

    how: "plain" (this process alone), "fsdp", "tp", "2d" (fully_shard over tensor parallel).
    """

    def __init__(self, how: str, **options: Any) -> None:
        torch.manual_seed(0)
        self.x, y = torch.randn(24, 8).double(), torch.randn(24, 5).double()
        self.y = y
        self.model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 5)).double()
        layers = [self.model[0], self.model[2], self.model]
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        size = 1 if how == "plain" else dist.get_world_size()
        if how == "fsdp":
            mesh = init_device_mesh("cpu", (size,))
            for layer in layers:
                fully_shard(layer, mesh=mesh)
        elif how == "tp":
            parallelize_module(self.model, init_device_mesh("cpu", (size,)), plan)
        elif how == "2d":
            mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("dp", "tp"))
            parallelize_module(self.model, mesh["tp"], plan)
            for layer in layers:
                fully_shard(layer, mesh=mesh["dp"])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=5e-3, foreach=False)
        options.setdefault("process_group", None if how == "plain" else "auto")
        options.setdefault("loss", self.loss)
        self.koop = koopcore.attach(self.optimizer, self.model, **options)

    def loss(self) -> torch.Tensor:
        return nn.functional.mse_loss(self.model(self.x), self.y)

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    def jumps(self) -> list[Any]:
        return [[j.step, j.kind, j.horizon] for j in self.koop.stats.history]


def worst(one: list[float], other: list[float]) -> float:
    """The largest relative difference of two series."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))
