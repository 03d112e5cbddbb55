"""A run as one HTML page: what `Attached.report` writes."""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterator
from typing import Any

import koopcore
from koopcore import page, plot
from koopcore.training.statistics import JumpRecord, Spectrum, Statistics

#: Rows of the tables of attempts and of eigenvalues.
LAST, LEADING = 50, 12


def report_of(koop: Any, what: str) -> str:
    """The page of an attachment; ``what``: the model and the optimizer, in words."""
    stats: Statistics = koop.stats
    parts = [
        page.table(stats.rows()),
        page.heading("Losses, jumps, regimes"),
        _losses(koop, stats),
        page.table(
            [(regime, f"from step {step:,}") for step, regime in stats.regimes],
            caption="Regimes, as they were found",
        ),
        *_attempts(stats),
        *_spectrum(koop, stats.spectrum),
        *_averages(koop, stats),
        page.heading("Time"),
        page.table(_time(stats), ("", "seconds", "of the run"), numbers=(1, 2)),
    ]
    return page.page(f"koopcore: {what}", parts, f"koopcore {koopcore.__version__}")


def _losses(koop: Any, stats: Statistics) -> str:
    if not stats.history:
        return page.paragraph(
            "No jump was attempted: not before the regime is known, and not under noise, where the "
            "weights are left alone and averages are kept beside them."
        )
    return page.figure(
        plot.run(koop),
        plot.run(koop, dark=True),
        _losses_in_words(stats),
        "Above: the loss before each attempt, and lines down to the loss behind each jump. Below: "
        "how badly windows predict their own end, over their movement; below a tenth jumps go far, "
        "near 1 there is nothing to predict. Behind: the regime.",
    )


def _losses_in_words(stats: Statistics) -> str:
    judged = [r for r in stats.history if r.loss_before is not None and r.loss_after is not None]
    said = f"{stats.steps:,} optimizer steps, {stats.jumps} attempts, {stats.accepted} jumps"
    if judged:
        first, last = judged[0], judged[-1]
        said += (
            f"; loss {first.loss_before:.3g} at step {first.step:,}, "
            f"{last.loss_after:.3g} at step {last.step:,}"
        )
    regimes = ", ".join(f"{regime} from step {step:,}" for step, regime in stats.regimes)
    return f"{said}. Regimes: {regimes}."


def _attempts(stats: Statistics) -> Iterator[str]:
    if not stats.history:
        return
    shown = stats.history[-LAST:]
    headings = ("step", "", "skipped", "loss before", "after", "hindcast", "why")
    rows = [_attempt(record) for record in reversed(shown)]
    summary = f"The last {len(shown)} of {stats.jumps} attempts"
    yield page.folded(summary, page.table(rows, headings, numbers=(2, 3, 4, 5)))


def _attempt(record: JumpRecord) -> tuple[str, ...]:
    losses = ("" if x is None else f"{x:.4g}" for x in (record.loss_before, record.loss_after))
    return (
        f"{record.step:,}",
        record.kind if record.accepted else "in vain",
        f"{record.steps_skipped:,.0f}" if record.accepted else "",
        *losses,
        f"{record.hindcast:.2g}",
        record.reason,
    )


def _spectrum(koop: Any, spectrum: Spectrum | None) -> Iterator[str]:
    if spectrum is None:
        return
    yield page.heading("Spectrum")
    values = spectrum.eigenvalues
    largest = max(map(abs, values))
    yield page.figure(
        plot.spectrum(koop),
        plot.spectrum(koop, dark=True),
        f"{len(values)} eigenvalues in the complex plane with the unit circle; the largest "
        f"magnitude is {largest:.4g}.",
        f"Eigenvalues of the last operator, fitted at step {spectrum.step:,} to snapshots "
        f"{spectrum.stride} steps apart. Inside the circle a direction decays, on it it stays, "
        "outside it grows.",
    )
    rows = [
        (f"{value.real:.4f}{value.imag:+.4f}i", f"{abs(value):.4f}", *_pace(value, spectrum.stride))
        for value in values[:LEADING]
        if value.imag >= 0.0  # one of each pair
    ]
    yield page.table(rows, ("eigenvalue", "magnitude", "halves in", "turns in"), numbers=(1, 2, 3))


def _pace(value: complex, stride: int) -> tuple[str, str]:
    """Steps until the direction has half its size, and until it is back where it was."""
    size, angle = abs(value), cmath.phase(value)
    half = "-"
    if 0.0 < size < 1.0:
        half = f"{stride * math.log(0.5) / math.log(size):,.0f} steps"
    elif size > 1.0:
        half = f"doubles in {stride * math.log(2.0) / math.log(size):,.0f} steps"
    return half, f"{2.0 * math.pi * stride / abs(angle):,.0f} steps" if angle else "-"


def _averages(koop: Any, stats: Statistics) -> Iterator[str]:
    if not stats.averages:
        return
    yield page.heading("Averages")
    losses = list(stats.averages.values())
    best = losses.index(min(losses))
    rows = [(name, f"{loss:.5g}") for name, loss in stats.averages.items()]
    yield page.figure(
        plot.averages(koop),
        plot.averages(koop, dark=True),
        f"The loss at {len(losses)} places; lowest is {rows[best][0]} with {rows[best][1]}.",
        "The loss at the weights and at what is kept beside them, when they were last compared. "
        "Inside of koop.averaged() the best is in the weights' place.",
    )
    yield page.table(rows, ("", "loss"), numbers=(1,), best=best)


def _time(stats: Statistics) -> Iterator[tuple[str, str, str]]:
    jumping = stats.seconds - stats.seconds_recording
    parts = (
        ("recording snapshots and averages", stats.seconds_recording),
        (f"{stats.jumps} attempts, {stats.evaluations} evaluations of the loss", jumping),
        (f"comparing averages, {stats.comparisons} evaluations", stats.seconds_comparing),
        ("everything else", stats.run_seconds - stats.seconds - stats.seconds_comparing),
    )
    for name, seconds in parts:
        share = f"{seconds / stats.run_seconds:.1%}" if stats.run_seconds > 0 else "-"
        yield name, f"{max(seconds, 0.0):.3g}", share
