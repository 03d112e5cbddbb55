"""What does recording cost, beside copying as many bytes, beside training, and when nothing is won?

Three questions. The parameters of a network in float32, 10^4 to 10^7 numbers in layers, into one
row of a ring, beside `numpy.copyto` of one contiguous array of the same size, one thread. The same
for 10 million parameters beside a training step (784-2048-2048-2048-10, batches of 256, Adam): at
a stride of 10, 1 % of the ten steps. And whole runs in which every jump is rejected (noise, taken
for smooth; a margin that nothing meets; the loss is evaluated on a batch as large as the training
batch): what recording, fits, candidates and evaluations took, as a share of the rest of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np

import koopcore as kc
from koopcore.lab.bench import plots
from koopcore.lab.bench.study import (
    INSTALL,
    Case,
    Claim,
    Job,
    Row,
    Size,
    Study,
    Summary,
    Unavailable,
    seconds_of,
    series,
    shared,
)

WIDTHS = {
    Size.full: [64, 128, 256, 512, 1024, 1800],
    Size.quick: [64, 128, 256, 512, 1024],
    Size.once: [16, 32, 64, 128],
}
LAYERS, SLOTS = 3, 4
TRAINING, STRIDE, TRAINING_SLOTS = "beside a training step", 10, 9
HIDDEN = {Size.full: 2048, Size.quick: 256, Size.once: 32}  # width of three layers
RINGS = {"capture": "SnapshotRing", "capture of differences": "DifferenceRing"}
NOTHING = "a run that gains nothing"
RUNS = {Size.full: [(20, 6000), (512, 2000)], Size.quick: [(20, 600)], Size.once: [(20, 60)]}
"""(width, steps)"""


def cases(size: Size) -> list[Case]:
    return [
        *(
            Case(race, f"width {width}", LAYERS * width * (width + 1), width)
            for race in ("capture", "copy")
            for width in WIDTHS[size]
        ),
        *(Case(TRAINING, name, options=HIDDEN[size]) for name in ("step", *RINGS)),
        *(Case(NOTHING, f"width {w}, {s} steps", options=(w, s)) for w, s in RUNS[size]),
    ]


def build(case: Case) -> Job:
    try:
        if case.race == TRAINING:
            return _beside_training(case)
        if case.race == NOTHING:
            return _run_that_gains_nothing(*case.options)
        return _copy_job(int(case.x)) if case.race == "copy" else _capture_job(int(case.options))
    except ModuleNotFoundError as missing:
        raise Unavailable(f"{missing.name} is not installed: {INSTALL}") from None


def _copy_job(size: int) -> Job:
    source = np.random.default_rng(0).standard_normal(size, np.float32)
    target = np.zeros_like(source)
    return Job(
        call=lambda: np.copyto(target, source),
        error=lambda _: float(np.abs(target - source).max()),
        bound=0.0,
        engine=False,
    )


def _capture_job(width: int) -> Job:
    import torch

    from koopcore.training import SnapshotRing

    rng = np.random.default_rng(0)
    shapes = [(width, width), (width,)] * LAYERS
    values = [torch.from_numpy(rng.standard_normal(shape, np.float32)) for shape in shapes]
    ring = SnapshotRing(values, SLOTS)
    ring.capture()
    return Job(call=ring.capture, error=lambda _: _difference(ring, values), bound=0.0)


def _difference(ring: Any, values: Sequence[Any]) -> float:
    """The largest between the newest row and what was recorded."""
    views = ring.unflatten(ring.newest())
    return max(float((a - b.detach()).abs().max()) for a, b in zip(views, values, strict=True))


def network(*widths: int) -> Any:
    """A ReLU network of these widths, the same at every call."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@shared
def _training(hidden: int) -> tuple[Any, Callable[[], float]]:
    """The network of 10 million parameters (hidden = 2048), and a step of Adam on it."""
    import torch
    from torch.nn.functional import cross_entropy

    model = network(784, hidden, hidden, hidden, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = torch.randn(256, 784), torch.randint(0, 10, (256,))

    def step() -> float:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    step()
    return model, step


def _beside_training(case: Case) -> Job:
    from koopcore import training

    model, step = _training(case.options)
    if case.name == "step":
        return Job(step, lambda loss: 0.0 if np.isfinite(loss) else 1.0, 0.0, most=12, engine=False)
    parameters = list(model.parameters())
    ring = getattr(training, RINGS[case.name])(parameters, TRAINING_SLOTS)

    def before() -> None:
        """Other cases step too, and a difference has to be that of one step."""
        ring.capture()
        step()

    # float32 rows are exact; bfloat16 differences are within 2^-8 of Adam's step of 1e-3, and the
    # rounding of weights below 1 in float32.
    bound = 0.0 if case.name == "capture" else 1e-3 * 2**-8 + 2**-24
    return Job(
        call=ring.capture,
        error=lambda _: _difference(ring, parameters),
        bound=bound,
        figures={"ring_bytes": float(ring.nbytes)},
        before=before,
        most=12,
    )


def _run_that_gains_nothing(width: int, steps: int) -> Job:
    """A run from the start at every call; figures: the least share of its time that koopcore took.

    From the start, because a run that has gained nothing for long is asked ever less often.
    """
    import torch
    from torch.nn.functional import cross_entropy

    x, y = torch.randn(2048, 784), torch.randint(0, 10, (2048,))
    figures: dict[str, float] = {}

    def run() -> Any:
        model = network(784, width, width, 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def loss() -> Any:
            return cross_entropy(model(x[:64]), y[:64])

        koop = kc.attach(optimizer, model, loss=loss, margin=0.999, regime="smooth")
        begun = perf_counter()
        for batch in torch.randint(0, 2048, (steps, 64)):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        spent = koop.stats.seconds
        share = spent / (perf_counter() - begun - spent)
        figures["share"] = min(share, figures.get("share", share))
        return koop.stats

    def error(stats: Any) -> float:
        """Jumps that were accepted, of which there must be none; and there must be attempts."""
        return float(stats.accepted) if stats.jumps else float("nan")

    return Job(run, error, 0.0, figures=figures, most=1)


def summary(rows: Sequence[Row]) -> Summary:
    claims, notes = [], []
    copies = dict(zip(*series(rows, "copy"), strict=True))
    for size, taken in zip(*series(rows, "capture"), strict=True):
        if size in copies:
            notes.append(f"P = {size:.1e}: capture {taken / copies[size]:.2f} times a copy")
    step = seconds_of(rows, TRAINING, "step")
    for name in RINGS:
        share = seconds_of(rows, TRAINING, name) / (STRIDE * step)
        claims.append(Claim(f"{name} / {STRIDE} training steps", share, 0.01, True))
    for row in rows:
        if row.race == NOTHING:
            share = row.figures.get("share", float("nan")) if row.seconds else float("nan")
            claims.append(Claim(f"{NOTHING}, {row.case}: overhead", share, 0.03, True))
    return Summary(claims=claims, notes=notes)


draw = partial(plots.connected, races=("capture", "copy"))
STUDY = Study("capture", __doc__.splitlines()[0], "parameters", cases, build, summary, draw)
