"""What ``koopcore bench`` prints: a table of claims and exponents per study, one of changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from koopcore.lab.bench.compare import Change
from koopcore.lab.bench.powers import Power
from koopcore.lab.bench.results import rows_of

NUMBERS = ("before", "now", "ratio")


def study_table(study: Mapping[str, Any]) -> Table:
    """Exponents, and claims with their targets."""
    table = Table(show_header=False)
    table.add_column("figure", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("target", justify="right")
    for label, power in study["powers"].items():
        table.add_row(label, str(Power(**power)), "")
    for claim in study["claims"]:
        mark = "[green]met[/]" if claim["met"] else "[red]not met[/]"
        table.add_row(claim["text"], figure(claim["value"]), f"{target(claim)} {mark}")
    return table


def troubles(study: Mapping[str, Any]) -> list[str]:
    """Wrong results, whose times are withheld, and cases that cannot run here."""
    lines = []
    for row in rows_of(dict(study)):
        if row.missing:
            lines.append(f"{row.race}: {row.case}: not run: {row.missing}")
        elif row.wrong:
            lines.append(
                f"{row.race}: {row.case}: wrong, no time: error {row.error:.2g}, at most "
                f"{row.bound:.2g} is accepted"
            )
    return lines


def change_table(changes: Sequence[Change], tolerance: float, shown: int = 12) -> Table:
    """Regressions, and the largest changes besides."""
    table = Table(title=f"against the earlier run (regression: more than {tolerance:g} times)")
    for heading in ("study", "race", "case", "before", "now", "ratio", ""):
        table.add_column(heading, justify="right" if heading in NUMBERS else "left")
    bad = [change for change in changes if change.reason]
    for change in [*bad, *changes[len(bad) : max(shown, len(bad))]]:
        table.add_row(
            change.study,
            change.race,
            change.case,
            duration(change.before),
            duration(change.now),
            f"{change.ratio:.2f}",
            f"[red]{change.reason}[/]" if change.reason else "",
        )
    return table


def target(claim: Mapping[str, Any]) -> str:
    return f"{'≤' if claim['at_most'] else '≥'} {claim['limit']:g}"


def figure(value: float | None) -> str:
    """Three digits; a dash for what is not known."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Three digits in the unit that suits."""
    if seconds is None:
        return "-"
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
