"""What do several processes send and wait for? Real ones, on gloo, on this machine.

    python benchmarks/processes.py                  # prints JSON
    python benchmarks/processes.py --only attempts  # or overhead, memory, exactness

* attempts: bytes given into reductions per attempt, counted where torch.distributed is called and
  compared with the formula of docs/parallel.md in the same run (another number ends it), exchanges,
  and the share of an attempt's time that is spent in them.
* overhead: of DDP steps in which nothing is attempted, attached and plain steps taken in turns.
* memory: of ring and averages per rank, of a model that no number of ranks divides evenly.
* exactness: how far losses of a sharded run in float64 are from the unsharded one's, beside the
  unsharded run by another backend, whose sums have another order.

Times are the machine's, and of more ranks than processors say little; all else repeats exactly.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import koopcore
from koopcore.training.parallel.processes import COMPARED

WINDOW = 9
#: Of a run of `attempts`, of one of `exactness`.
STEPS, EXACT_STEPS = 460, 100


class Run:
    """A regression by a network of tanh layers, replicated or sharded, and its attachment."""

    def __init__(
        self, how: str, widths: list[int], rows: int, rate: float = 0.03, **options: Any
    ) -> None:
        torch.manual_seed(0)
        rank = dist.get_rank() if how in ("ddp", "fsdp") else 0
        size = dist.get_world_size() if how in ("ddp", "fsdp") else 1
        dtype = options.pop("dtype", torch.float32)
        self.x = torch.randn(rows, widths[0], dtype=dtype)[rank::size]
        self.y = torch.randn(rows, widths[-1], dtype=dtype)[rank::size]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, dtype=dtype), nn.Tanh()]
        self.model: nn.Module = nn.Sequential(*layers[:-1])
        if how == "fsdp":
            mesh = init_device_mesh("cpu", (size,))
            for layer in layers[::2]:
                fully_shard(layer, mesh=mesh)
            fully_shard(self.model, mesh=mesh)
        elif how == "ddp" and size > 1:
            self.model = nn.parallel.DistributedDataParallel(self.model)
        self.optimizer = torch.optim.Adagrad(self.model.parameters(), lr=rate)
        self.koop: Any = None
        if options.pop("attached", True):
            group = None if how == "plain" else "auto"
            self.koop = koopcore.attach(
                self.optimizer, self.model, loss=self.loss, process_group=group, **options
            )

    def loss(self) -> torch.Tensor:
        return nn.functional.mse_loss(self.model(self.x), self.y)

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


class Counted:
    """Counts what is given into reductions and gathered, and how long that took."""

    def __init__(self) -> None:
        self.bytes = self.calls = 0
        self.seconds = 0.0
        self._reduce = dist.all_reduce

    def __enter__(self) -> Counted:
        dist.all_reduce = self._counting
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_reduce = self._reduce

    def _counting(self, tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        result = self._reduce(tensor, *arguments, **options)
        self.seconds += time.perf_counter() - begun
        self.bytes += tensor.numel() * tensor.element_size()
        self.calls += 1
        return result


def formula(how: str, evaluations: int) -> int:
    """Bytes of an attempt, as docs/parallel.md has them; nothing in one process."""
    if dist.get_world_size() == 1:
        return 0
    if how == "ddp":
        return 32 * (evaluations + 3)
    return 32 * (2 * evaluations + 4) + 8 * WINDOW * (WINDOW + 1) // 2


def attempts() -> dict[str, Any]:
    """Of every attempt after those whose winners are compared: bytes, exchanges, seconds."""
    report: dict[str, Any] = {}
    for how in ("ddp", "fsdp"):
        run = Run(how, [8, 63, 5], 64, regime="smooth", window=WINDOW, stride=2)
        rows = []
        while run.koop.stats.steps < STEPS:
            with Counted() as counted:
                begun = run.koop.stats.jumps
                run.step()
            if COMPARED <= begun < run.koop.stats.jumps:
                record = run.koop.stats.history[-1]
                rows.append((record, counted.bytes, counted.calls, counted.seconds))
        for record, sent, _, _ in rows:
            if sent != formula(how, record.evaluations):
                sys.exit(
                    f"{how}: an attempt with {record.evaluations} evaluations sent {sent} bytes, "
                    f"by the formula {formula(how, record.evaluations)}"
                )
        middle = sorted(rows, key=lambda row: row[1])[len(rows) // 2]
        report[how] = {
            "attempts": len(rows),
            "evaluations": middle[0].evaluations,
            "bytes": middle[1],
            "bytes_by_the_formula": formula(how, middle[0].evaluations),
            "exchanges": middle[2],
            "milliseconds": 1e3 * median(row[0].seconds for row in rows),
            "milliseconds_in_exchanges": 1e3 * median(row[3] for row in rows),
        }
    return report


def overhead() -> dict[str, Any]:
    """Attached over plain steps of DDP, without those in which something was attempted.

    By batches of each rank: recording costs as much per weight whatever a step costs. Resting steps
    are those in which nothing is recorded.
    """
    report: dict[str, Any] = {}
    for regime, rows, pairs in (("smooth", 256, 300), ("noise", 256, 300), ("smooth", 2048, 120)):
        size = rows * dist.get_world_size()
        plain = Run("ddp", [256, 256, 256, 10], size, rate=0.01, attached=False)
        other = Run("ddp", [256, 256, 256, 10], size, rate=0.01, regime=regime)
        times: dict[str, list[float]] = {"plain": [], "resting": [], "recording": []}
        for pair in range(pairs):
            for run in (plain, other) if pair % 2 else (other, plain):
                kind, jumps = "plain", 0
                if run is other:
                    due = run.koop._step + 1 >= run.koop._next
                    kind, jumps = "recording" if due else "resting", run.koop.stats.jumps
                dist.barrier()
                begun = time.perf_counter()
                run.step()
                took = time.perf_counter() - begun
                if pair >= 20 and (run is plain or run.koop.stats.jumps == jumps):
                    times[kind].append(took)
        middle = median(times["plain"])
        attached = times["resting"] + times["recording"]
        report[f"{regime}, {rows} rows"] = {
            "milliseconds_of_a_plain_step": 1e3 * middle,
            "ratio_of_medians": median(attached) / middle,
            "resting": median(times["resting"]) / middle,
            "recording": median(times["recording"]) / middle,
            "share_recording": len(times["recording"]) / len(attached),
        }
    return report


def memory() -> dict[str, Any]:
    """Bytes of the ring and of the averages on this rank, over those of the unsharded run."""
    whole, own = Run("plain", [300, 199, 101], 8), Run("fsdp", [300, 199, 101], 8)
    found = {}
    for name, run in (("whole", whole), ("here", own)):
        rows = run.koop._averages.family.rows
        found[name] = {
            "ring": run.koop._recording.ring.nbytes,
            "averages": rows.numel() * rows.element_size(),
        }
    return {
        part: {"bytes": found["here"][part], "share": found["here"][part] / found["whole"][part]}
        for part in ("ring", "averages")
    }


def exactness() -> dict[str, Any]:
    """The largest relative difference of losses from the unsharded run's, float64, 100 steps."""
    report: dict[str, Any] = {}
    for kind, limit in (("rank 2", 2), ("full rank", None)):
        expected, jumps = trained("plain", "native_cpu", limit)
        tried = {
            "sharded": ("fsdp", "native_cpu"),
            "unsharded, numba_cpu": ("plain", "numba_cpu"),
            "unsharded, reference": ("plain", "reference"),
        }
        for name, (how, backend) in tried.items():
            losses, others = trained(how, backend, limit)
            far = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
            report.setdefault(kind, {})[name] = {"difference": far, "same_jumps": others == jumps}
    return report


def trained(how: str, backend: str, limit: int | None) -> tuple[list[float], list[Any]]:
    """Losses and jumps of a run of operators of at most ``limit`` modes."""
    os.environ["KOOPCORE_BACKEND"] = backend
    run = Run(how, [8, 12, 5], 24, dtype=torch.float64, rank=limit)
    # Every rank has the same batch, so that gradients have the same bits as of one.
    generator = torch.Generator().manual_seed(0)
    run.x, run.y = (torch.randn(24, n, generator=generator).double() for n in (8, 5))
    losses = [run.step() for _ in range(EXACT_STEPS)]
    return losses, [[j.step, j.kind, j.horizon] for j in run.koop.stats.history]


#: What is measured, and on how many ranks.
PARTS: dict[str, tuple[Callable[[], dict[str, Any]], tuple[int, ...]]] = {
    "attempts": (attempts, (1, 2, 4)),
    "overhead": (overhead, (1, 2)),
    "memory": (memory, (1, 2, 3)),
    "exactness": (exactness, (2,)),
}


def rank(number: int, size: int, part: str, folder: str) -> None:
    """Body of one process."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=size
    )
    found = PARTS[part][0]()
    Path(folder, f"{number}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def measured(part: str, size: int) -> list[dict[str, Any]]:
    """What each of ``size`` ranks reports."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank, (size, part, folder), nprocs=size)
        return [json.loads(Path(folder, f"{k}.json").read_text()) for k in range(size)]


def main() -> None:
    parser = argparse.ArgumentParser(description="What several processes send and wait for.")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--ranks", type=int, choices=(1, 2, 3, 4), help="as many alone")
    arguments = parser.parse_args()
    only = arguments.only
    report: dict[str, Any] = {
        "command": "python benchmarks/processes.py",
        "torch": torch.__version__,
    }
    for part, (_, sizes) in PARTS.items():
        if only in (None, part):
            sizes = tuple(n for n in sizes if arguments.ranks in (None, n))
            found = {f"{n} ranks": measured(part, n) for n in sizes}
            # All ranks send and wait alike; what they hold is each one's own.
            report[part] = found if part == "memory" else {n: all_[0] for n, all_ in found.items()}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
