"""What does recording a snapshot cost, beside copying as many bytes?

A network's parameters in float32, of 10^4 to 10^7 numbers in layers, into one row of a ring; the
other side is `numpy.copyto` of one contiguous array of the same size, one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from koopcore.lab.bench import plots
from koopcore.lab.bench.study import Case, Job, Row, Size, Study, Summary, Unavailable, series
from koopcore.lab.studies.peers import INSTALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTHS = {
    Size.full: [64, 128, 256, 512, 1024, 1800],
    Size.quick: [64, 128, 256, 512, 1024],
    Size.once: [16, 32, 64, 128],
}
LAYERS, SLOTS = 3, 4


def cases(size: Size) -> list[Case]:
    return [
        Case(race, f"width {width}", LAYERS * width * (width + 1), width)
        for race in ("capture", "copy")
        for width in WIDTHS[size]
    ]


def build(case: Case) -> Job:
    try:
        import torch

        from koopcore.training import SnapshotRing
    except ModuleNotFoundError as missing:
        raise Unavailable(f"{missing.name} is not installed: {INSTALL}") from None
    rng, width = np.random.default_rng(0), int(case.options)
    if case.race == "copy":
        source = rng.standard_normal(int(case.x), np.float32)
        target = np.zeros_like(source)
        return Job(
            call=lambda: np.copyto(target, source),
            error=lambda _: float(np.abs(target - source).max()),
            bound=0.0,
            engine=False,
        )
    shapes = [(width, width), (width,)] * LAYERS
    values = [torch.from_numpy(rng.standard_normal(shape, np.float32)) for shape in shapes]
    ring = SnapshotRing(values, SLOTS)
    ring.capture()

    def error(_: Any) -> float:
        views = ring.unflatten(ring.newest())
        return max(float((a - b).abs().max()) for a, b in zip(views, values, strict=True))

    return Job(call=ring.capture, error=error, bound=0.0)


def summary(rows: Sequence[Row]) -> Summary:
    notes = []
    copies = dict(zip(*series(rows, "copy"), strict=True))
    for size, taken in zip(*series(rows, "capture"), strict=True):
        if size in copies:
            notes.append(f"P = {size:.1e}: capture {taken / copies[size]:.2f} times a copy")
    return Summary({}, [], notes)


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    plots.connected(axes, rows)


STUDY = Study("capture", __doc__.splitlines()[0], "parameters", cases, build, summary, draw)
