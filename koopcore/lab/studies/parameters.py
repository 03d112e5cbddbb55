"""How does the cost of fit and predict grow with the number of parameters P?

n = 8 snapshots in float32, groups of 100, horizon 100, P from 10^3 to 10^8 (or what half of the
free memory holds): linear, above the cost of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from koopcore.lab.bench import machine, plots
from koopcore.lab.bench.powers import powers_of
from koopcore.lab.bench.study import (
    Case,
    Claim,
    Job,
    Row,
    Size,
    Study,
    Summary,
    Unavailable,
    series,
)
from koopcore.lab.studies.decays import decays
from koopcore.lab.studies.endpoint_job import endpoint_job, equal_groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N, M, HORIZON = 8, 100, 100
SIZES = {
    Size.full: [10**3, 10**4, 10**5, 10**6, 10**7, 10**8],
    Size.quick: [10**3, 10**4, 10**5, 10**6, 4 * 10**6],
    Size.once: [10**3, 2 * 10**3, 5 * 10**3, 10**4, 10**5],
}
BYTES = 4 * (2 * N + 8)  # of memory per parameter: two windows, what made them, the endpoint


def cases(size: Size) -> list[Case]:
    """One race of all sizes that fit in half of the memory that is free."""
    fitting = [p for p in SIZES[size] if p * BYTES < machine.memory()[1] / 2]
    return [Case("P", f"P = {p:.0e}", p, max(fitting)) for p in fitting]


def build(case: Case) -> Job:
    size, largest = int(case.x), int(case.options)
    whole = decays(N, largest)
    if size % M:
        raise Unavailable(f"{size} parameters are not whole groups of {M}")
    part = slice(0, size)
    data = (
        whole
        if size == largest
        else whole._replace(
            rows=whole.rows[:, part].copy(),
            fixed=whole.fixed[part],
            amplitudes=whole.amplitudes[:, part],
        )
    )
    return endpoint_job(data, equal_groups(size // M, M), HORIZON)


def summary(rows: Sequence[Row]) -> Summary:
    powers = powers_of("fit and predict, P", *series(rows, "P"))
    notes = [
        f"{row.case}: {1e9 * row.seconds / row.x:.2f} ns a parameter" for row in rows if row.seconds
    ]
    claims = [
        Claim("|exponent of P - 1|", abs(p.exponent - 1), 0.05, True) for p in powers.values()
    ]
    return Summary(powers, claims, notes)


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    plots.power_law(axes, rows, "P")


STUDY = Study("parameters", __doc__.splitlines()[0], "parameters", cases, build, summary, draw)
