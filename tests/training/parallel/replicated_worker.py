"""Run by test_replicated.py in 2 and 3 processes: what DDP runs decide together."""

import torch
import torch.distributed as dist
from ranks import apart, join, leave, report
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

import koopcore
from koopcore.training.jumping.guarded_loss import same_gradient

RANK, SIZE = join()
torch.manual_seed(0)
X, Y = torch.randn(48, 8), torch.randn(48, 4)
#: Every rank has its own part, of other size of the targets, so that the losses differ.
x, y = X[RANK::SIZE], Y[RANK::SIZE] * (1 + RANK)


class Replicated:
    """A DDP run with batch norm, whose loss is that of this rank's part of the batch."""

    def __init__(self, loss=None, optimizer=None, **options):
        torch.manual_seed(0)
        layers = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4)
        self.net = nn.Sequential(*layers)
        self.model = nn.parallel.DistributedDataParallel(self.net)
        make = optimizer or (lambda p: torch.optim.Adam(p, lr=2e-3))
        self.optimizer = make(self.model.parameters())
        chosen = (lambda: loss(self)) if loss else self.local
        if "residuals" in options:
            given = options["residuals"]
            options["residuals"], chosen = (lambda: given(self)), None
        self.koop = koopcore.attach(self.optimizer, self.model, loss=chosen, **options)

    def local(self):
        return nn.functional.mse_loss(self.net(x), y)

    def train(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            nn.functional.mse_loss(self.model(x), y).backward()
            self.optimizer.step()


def message(function):
    """What ``function`` raises, as "Kind: message"; "" if nothing."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def local_losses():
    run = Replicated()
    run.train(400)
    losses = [h.loss_before for h in run.koop.stats.history]
    with run.koop.averaged() as name:
        inside = apart(run.net)
    report(
        local=[apart(run.net), run.koop.stats.accepted, losses, run.koop.regime],
        averaged=[name, inside],
    )


def reduced_losses():
    """A loss that averages over the ranks itself is the mean that all losses have."""

    def both(run):
        loss = run.local()
        dist.all_reduce(loss)
        return loss / SIZE

    run = Replicated(both)
    run.train(60)
    report(reduced=[apart(run.net), [h.loss_before for h in run.koop.stats.history]])


def failing(kind):
    """On rank 1 the loss fails, or is not finite, once in the middle of a search."""
    calls = []

    def loss(run):
        calls.append(len(calls))
        if RANK == 1 and len(calls) == 9:
            if kind == "exception":
                raise ArithmeticError("no such batch")
            return torch.tensor(float("nan"))
        return run.local()

    run = Replicated(loss)
    errors = [error for _ in range(120) if (error := message(lambda: run.train(1)))]
    report(
        **{
            kind: {
                "apart": apart(run.net),
                "errors": errors,
                "reasons": [h.reason for h in run.koop.stats.history],
                "accepted": run.koop.stats.accepted,
            }
        }
    )


def misuse():
    half = dist.new_group([0])
    torch.manual_seed(0)
    net = nn.Linear(8, 4)

    def attach(loss=None, net=net, **options):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        koopcore.attach(optimizer, net, loss=loss, **options).detach()

    wide = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2 + RANK))
    deep = nn.Sequential(*[nn.Linear(4, 4) for _ in range(1 + (RANK > 0))])

    report(
        options=message(lambda: attach(stride=2 + RANK)),
        one=message(lambda: attach((lambda: net(x).square().mean()) if RANK else None)),
        failed=message(lambda: attach(window=9 if RANK else 2)),
        raised=message(lambda: attach(lambda: [net(x).square().mean()][RANK == 1])),
        wide=message(lambda: attach(net=wide)),
        deep=message(lambda: attach(net=deep)),
        stranger=message(lambda: attach(process_group=half)) if RANK else "",
        alone=message(lambda: attach(process_group=None)),
        wrong=message(lambda: attach(process_group="all")),
        never=message(lambda: attach(process_group=3)),
    )


def others():
    run = Replicated(optimizer=lambda p: ZeroRedundancyOptimizer(p, torch.optim.Adam, lr=2e-3))
    run.train(60)
    report(zero=[apart(run.net), run.koop.stats.accepted])
    scale = (x.shape[0] * 4) ** 0.5
    run = Replicated(residuals=lambda run: (run.net(x) - y).flatten() / scale)
    run.train(60)
    report(residuals=[apart(run.net), run.koop.stats.accepted])


def full_batches():
    """At a rate where full batches look like noise: the gradient says that they are none."""

    def through_the_wrapper(run):
        return nn.functional.mse_loss(run.model(x), y)

    def quiet(p):
        return torch.optim.SGD(p, lr=1e-3)

    run = Replicated(through_the_wrapper, optimizer=quiet)
    run.train(2)
    held = list(run.net.parameters())
    found = {}
    for kind, rows in (("full", slice(None)), ("half", slice(None, None, 2))):
        run.optimizer.zero_grad()
        nn.functional.mse_loss(run.model(x[rows]), y[rows]).backward()
        found[kind] = same_gradient(run.koop._guarded, held)
    run.train(2)  # the wrapper has counted nothing, and goes on
    if RANK == 1:
        run.koop._guarded.loss = lambda: float(through_the_wrapper(run))  # without a gradient
    found["failing"] = same_gradient(run.koop._guarded, held)
    report(gradient={**found, "apart": apart(run.net)})


def strayed():
    """One rank changes two of its parameters by itself; no jump is good enough to move the rest."""
    run = Replicated(regime="smooth", stride=1, margin=0.999)
    with torch.no_grad():
        run.net[1].weight.add_(RANK)
        run.net[3].bias.add_(RANK)
    error = message(lambda: run.train(30))
    report(strayed=[error, run.koop.stats.steps, run.koop._recording.parameters.checksums()])


def traffic():
    """Evaluations of each attempt, and the bytes that it sent: nothing else is judged or said."""
    sent = []

    def count(record):
        sent.append([record.evaluations, run.koop._processes.sent])

    run = Replicated(regime="smooth", stride=1, on_jump=count)
    run.train(50)
    report(traffic=sent)


local_losses()
reduced_losses()
failing("exception")
failing("nan")
misuse()
full_batches()
traffic()
if SIZE == 2:
    others()
    strayed()
leave()
