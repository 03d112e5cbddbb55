"""Run by test_sharded.py in 2, 3 and 4 processes: sharded runs beside the run of one process."""

import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import Run, join, leave, report, worst
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import koopcore

STEPS = 100
#: rank: operators of two modes are well conditioned, so that rounding in other orders stays small.
KINDS = {
    "network": {"rank": 2},
    "nodes": {"rank": 2, "partition": "nodes"},
    "bfloat16": {"rank": 2, "storage": "bfloat16"},
    "updates": {"rank": 2, "observables": "weights+update", "moments": "rescale"},
    "fast": {"rank": 2},
    "auto": {"operator": "auto", "partition": "layers", "warmup": "auto"},
}


def trained(run, name):
    """Train; "fast" at a rate at which full batches look like noise, and then at a low one."""
    if name != "fast":
        return run.train(STEPS)
    losses = []
    for rate in (0.15, 0.005):
        run.optimizer.param_groups[0]["lr"] = rate
        losses += run.train(60)
    return losses


def compare(how, kinds):
    for name in kinds:
        plain, sharded = Run("plain", **KINDS[name]), Run(how, **KINDS[name])
        losses = trained(plain, name), trained(sharded, name)
        report(
            **{
                f"{how} {name}": {
                    "worst": worst(losses[1], losses[0]),
                    "same": plain.jumps() == sharded.jumps(),
                    "regimes": [plain.koop.stats.regimes, sharded.koop.stats.regimes],
                    "proved": [plain.koop._judge.exact, sharded.koop._judge.exact],
                    "accepted": plain.koop.stats.accepted,
                }
            }
        )


def memory():
    """Of a layer of 60,000 weights, the share of the ring that this rank holds."""
    bytes_of = {}
    for how in ("plain", "fsdp"):
        model = nn.Linear(300, 199)
        if how == "fsdp":
            fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        koop = koopcore.attach(
            torch.optim.SGD(model.parameters(), lr=0.1),
            model,
            process_group="auto" if how == "fsdp" else None,
        )
        bytes_of[how] = koop._recording.ring.nbytes
    report(memory=bytes_of["fsdp"] / bytes_of["plain"])


def save(folder):
    """Save in the middle of a window, go on, and say what came."""
    run = Run("fsdp", rank=2)
    run.train(75)
    model, optimizer = get_state_dict(run.model, run.optimizer)
    dcp.save(
        {"model": model, "optimizer": optimizer, "koop": run.koop}, checkpoint_id=f"{folder}/saved"
    )
    losses = run.train(75)
    report(went_on={"losses": losses, "jumps": run.jumps()})


def load(folder, how="fsdp"):
    run = Run(how, rank=2)
    run.train(3)
    model, optimizer = get_state_dict(run.model, run.optimizer)
    state = {"model": model, "optimizer": optimizer, "koop": run.koop}
    dcp.load(state, checkpoint_id=f"{folder}/saved")
    set_state_dict(run.model, run.optimizer, model_state_dict=model, optim_state_dict=optimizer)
    report(resumed={"losses": run.train(75), "jumps": run.jumps()})


def averages():
    """Averages of shards are shards of the averages; all ranks take the same one."""
    run, plain = Run("fsdp"), Run("plain")
    run.train(60), plain.train(60)
    with run.koop.averaged(0.99), plain.koop.averaged(0.99):
        far = abs(float(run.loss().detach()) - float(plain.loss().detach()))
    with run.koop.averaged() as name:
        names = [None] * dist.get_world_size()
        dist.all_gather_object(names, name)
    report(averages={"far": far, "names": names})


def traffic():
    """Evaluations of each attempt, and the bytes that it sent."""
    sent = []

    def count(record):
        sent.append([record.evaluations, run.koop._processes.sent])

    run = Run("fsdp", rank=2, regime="smooth", stride=1, on_jump=count)
    run.train(50)
    report(traffic=sent)


def stale():
    """What a forward without gradients leaves gathered does not hide a jump."""
    run = Run("fsdp")
    seen = []
    for _ in range(60):
        run.train(1)
        with torch.no_grad():
            seen.append(float(run.loss()))
    plain = Run("plain")
    plain.train(60)
    with torch.no_grad():
        report(
            stale=worst([float(run.loss())], [float(plain.loss())]), jumps=run.koop.stats.accepted
        )


if __name__ == "__main__":
    rank, size = join()
    folder = sys.argv[1]
    if size == 2:
        compare("fsdp", KINDS)
        compare("tp", ["network", "nodes", "fast"])
        save(folder)
        load(folder)
        averages()
        stale()
        traffic()
        memory()
    elif size == 3:
        compare("fsdp", ["network", "nodes", "fast"])
        load(folder)
        memory()
    elif size == 4:
        compare("2d", ["network", "fast"])
    else:
        load(folder, "plain")
    leave()
