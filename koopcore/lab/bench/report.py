"""A run as tables on the terminal, as one HTML file with its plots, as one picture of all plots."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO, StringIO
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from koopcore.lab.bench.powers import Power
from koopcore.lab.bench.results import Change, rows_of
from koopcore.lab.bench.study import Row, Study

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
pre { font-size: 13px; line-height: 1.25; overflow-x: auto } img { max-width: 100% }
"""
WIDTH = 120  # of a table in the page, in characters
COLUMNS = 3  # of plots in the picture


def study_table(study: Mapping[str, Any]) -> Table:
    """Exponents, shares of the roof, claims with their targets."""
    table = Table(show_header=False)
    table.add_column("figure", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("target", justify="right")
    for label, power in study["powers"].items():
        table.add_row(Text(label), str(Power(**power)), "")
    for share in study["shares"]:
        table.add_row(Text(share["text"]), percent(share["roof"]), "of the roof")
    for claim in study["claims"]:
        mark = Text("met", "green") if claim["met"] else Text("not met", "red")
        goal = Text(f"{target(claim)} ") + mark
        table.add_row(Text(claim["text"]), figure(claim["value"]), goal)
    return table


def troubles(study: Mapping[str, Any]) -> list[str]:
    """Wrong results, whose times are withheld, and cases that cannot run here."""
    lines = []
    for row in rows_of(study):
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
    table = Table(title=f"Against the earlier run (regression: more than {tolerance:g} times)")
    for heading in ("study", "race", "case", "before", "now", "ratio", ""):
        numbers = heading in ("before", "now", "ratio")
        table.add_column(heading, justify="right" if numbers else "left")
    bad = [change for change in changes if change.reason]
    for change in [*bad, *changes[len(bad) : max(shown, len(bad))]]:
        table.add_row(
            change.study,
            change.race,
            change.case,
            duration(change.before),
            duration(change.now),
            f"{change.ratio:.2f}",
            Text(change.reason, "red"),
        )
    return table


def target(claim: Mapping[str, Any]) -> str:
    return f"{'≤' if claim['at_most'] else '≥'} {claim['limit']:g}"


def figure(value: float | None) -> str:
    """Three digits; a dash for what is not known."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


SHARE_HEADINGS = ("share of", "multiply-adds", "bytes", "the roof")


def share_cells(share: Mapping[str, Any]) -> tuple[str, ...]:
    return (share["text"], *(percent(share[name]) for name in ("flops", "bytes", "roof")))


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def duration(seconds: float | None) -> str:
    """Three digits in the unit that suits."""
    if seconds is None:
        return "-"
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def html(
    contents: Mapping[str, Any], studies: Sequence[Study], changes: RenderableType | None = None
) -> str:
    """The whole page: the terminal's tables, all cases and plots; nothing from outside.

    contents: of a result file; studies: those whose plots are drawn; changes: `change_table`.
    """
    command = escape(contents["command"])
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<title>{command}</title><style>{STYLE}</style><h1>{command}</h1>",
    ]
    outcomes = contents["studies"]
    for machine in [outcome["machine"] for outcome in outcomes.values()][-1:]:
        parts.append(_pre("\n".join(f"{key}: {value}" for key, value in machine.items())))
    if changes is not None:
        parts.append(_pre(changes))
    by_name = {study.name: study for study in studies}
    for name, outcome in outcomes.items():
        parts.append(f"<h2>{escape(name)}</h2><p>{escape(outcome['question'])}</p>")
        parts.append(_pre(study_table(outcome), "\n".join([*outcome["notes"], *troubles(outcome)])))
        rows = rows_of(outcome)
        if name in by_name:
            parts.append(f"<img alt='plot of {escape(name)}' src='{_plot(by_name[name], rows)}'>")
        parts.append(f"<details><summary>{len(rows)} cases</summary>{_pre(case_table(rows))}")
        parts.append("</details>")
    return "\n".join(parts)


def case_table(rows: Sequence[Row]) -> Table:
    """Every case: times, calls, error, and the error that is accepted."""
    table = Table("race", "case", "best", "median", "calls", "error", "accepted")
    for row in rows:
        errors = ("", "") if row.missing else (f"{row.error:.2g}", f"{row.bound:.2g}")
        times = (duration(row.seconds), duration(row.median), str(row.rounds))
        table.add_row(row.race, row.case, *times, *errors)
    return table


def _pre(*parts: RenderableType) -> str:
    """What the terminal would show, as HTML; strings as they are."""
    console = Console(record=True, file=StringIO(), width=WIDTH, markup=False, highlight=False)
    for part in parts:
        console.print(part)
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def picture(contents: Mapping[str, Any], studies: Sequence[Study]) -> Figure:
    """All plots in one figure."""
    shown = [study for study in studies if study.name in contents["studies"]]
    lines = -(-len(shown) // COLUMNS)
    whole = Figure(figsize=(6.2 * COLUMNS, 4.4 * max(lines, 1)), layout="constrained")
    # Figures of their own: long names in one do not narrow the others.
    parts = whole.subfigures(max(lines, 1), COLUMNS, squeeze=False)
    for part, study in zip(parts.flat, shown, strict=False):
        _draw(part.add_subplot(), study, rows_of(contents["studies"][study.name]))
    return whole


def _plot(study: Study, rows: Sequence[Row]) -> str:
    """The study's plot as a data URI."""
    whole = Figure(figsize=(8, 4.6), layout="constrained")
    _draw(whole.add_subplot(), study, rows)
    buffer = BytesIO()
    whole.savefig(buffer, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _draw(axes: Any, study: Study, rows: Sequence[Row]) -> None:
    study.draw(axes, rows)
    axes.set_title(study.name)
    if study.x_label and not axes.get_xlabel():
        axes.set_xlabel(study.x_label)
