"""Plots of studies: power laws with their fits, bars of times, bars of shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from koopcore.lab.bench.powers import fit_power
from koopcore.lab.bench.study import Row, races_of, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def legend(axes: Axes) -> None:
    """A legend, where there is anything to name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def power_law(axes: Axes, rows: Sequence[Row], fixed: bool = True) -> None:
    """Seconds against x on logarithmic axes, each race with its fitted curve."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for race in races_of(rows):
        x, seconds = series(rows, race)
        if not x:
            continue
        (line,) = axes.plot(x, seconds, "o", label=race)
        if len(x) >= 4:
            power = fit_power(x, seconds, fixed)
            fine = np.geomspace(min(x), max(x), 100)
            axes.plot(
                fine,
                power.fixed + power.factor * fine**power.exponent,
                color=line.get_color(),
                linewidth=1,
                label=f"~ x^{power.exponent:.2f}±{power.half_width:.2f}",
            )
    axes.set_ylabel("seconds")
    legend(axes)


def connected(axes: Axes, rows: Sequence[Row], races: Sequence[str] = ()) -> None:
    """Seconds against x, joined by lines, where no power law is expected."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for race in races or races_of(rows):
        x, seconds = series(rows, race)
        if x:
            axes.plot(x, seconds, "o-", label=race)
    axes.set_ylabel("seconds")
    legend(axes)


def time_bars(axes: Axes, rows: Sequence[Row]) -> None:
    """Seconds of every case that has them, as horizontal bars on a logarithmic axis."""
    timed = [row for row in rows if row.seconds is not None]
    several = len(races_of(timed)) > 1
    names = [f"{row.race}: {row.case}" if several else row.case for row in timed]
    bars(axes, names, [row.seconds or 0.0 for row in timed], "seconds")
    axes.set_xscale("log")


def share_bars(axes: Axes, names: Sequence[str], shares: Sequence[float], label: str) -> None:
    """Horizontal bars with a line at one; logarithmic where they differ by more than tenfold."""
    bars(axes, names, shares, label)
    axes.axvline(1.0, color=axes.spines["left"].get_edgecolor(), linewidth=1)
    if shares and max(shares) > 10 * min(shares):
        axes.set_xscale("log")


def bars(axes: Axes, names: Sequence[str], lengths: Sequence[float], label: str) -> None:
    """Horizontal bars from the top down."""
    axes.barh(list(names), list(lengths))
    axes.set_xlabel(label)
    axes.tick_params("y", labelsize=7)
    axes.invert_yaxis()
