"""A run as tables on the terminal, as one HTML file with its plots, as one picture of all plots."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from koopcore.lab.bench.powers import Power
from koopcore.lab.bench.results import Change, rows_of
from koopcore.lab.bench.study import Row, Study

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .15rem .7rem; text-align: left }
tr { border-bottom: 1px solid #ddd } td.n { text-align: right; font-variant-numeric: tabular-nums }
.good { color: #176d2b } .bad { color: #b00020 } img { max-width: 100% } li { margin: .1rem 0 }
"""
COLUMNS = 3  # of plots in the picture
CHANGE_HEADINGS = ("study", "race", "case", "before", "now", "ratio", "")


def study_table(study: Mapping[str, Any]) -> Table:
    """Exponents, shares of the roof, claims with their targets."""
    table = Table(show_header=False)
    table.add_column("figure", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("target", justify="right")
    for label, power in study["powers"].items():
        table.add_row(label, str(Power(**power)), "")
    for share in study["shares"]:
        table.add_row(share["text"], percent(share["roof"]), "of the roof")
    for claim in study["claims"]:
        mark = "[green]met[/]" if claim["met"] else "[red]not met[/]"
        table.add_row(claim["text"], figure(claim["value"]), f"{target(claim)} {mark}")
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
    table = Table(title=f"against the earlier run (regression: more than {tolerance:g} times)")
    for heading in CHANGE_HEADINGS:
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
    contents: Mapping[str, Any], studies: Sequence[Study], changes: Sequence[Change] = ()
) -> str:
    """The whole page. contents: of a result file; studies: those whose plots are drawn."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<title>{escape(contents['command'])}</title><style>{STYLE}</style>",
        f"<h1>{escape(contents['command'])}</h1>",
    ]
    machines = [study["machine"] for study in contents["studies"].values()]
    if machines:
        rows = [(str(key), str(value)) for key, value in machines[-1].items()]
        parts.append(_table(["machine", ""], rows))
    if changes:
        parts.append("<h2>Against the earlier run</h2>")
        parts.append(_table(CHANGE_HEADINGS, [_change_cells(change) for change in changes]))
    by_name = {study.name: study for study in studies}
    for name, outcome in contents["studies"].items():
        parts += _section(name, outcome, by_name.get(name))
    return "\n".join(parts)


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


def _section(name: str, outcome: Mapping[str, Any], study: Study | None) -> list[str]:
    parts = [f"<h2>{escape(name)}</h2><p>{escape(outcome['question'])}</p>"]
    powers = [(label, str(Power(**power))) for label, power in outcome["powers"].items()]
    if powers:
        parts.append(_table(["cost", "fitted"], powers))
    if outcome["shares"]:
        parts.append(_table(SHARE_HEADINGS, [share_cells(share) for share in outcome["shares"]]))
    if outcome["claims"]:
        cells = []
        for claim in outcome["claims"]:
            mark = ("met", "good") if claim["met"] else ("not met", "bad")
            cells.append((claim["text"], figure(claim["value"]), target(claim), mark))
        parts.append(_table(["claim", "value", "target", ""], cells))
    lines = [*outcome["notes"], *troubles(outcome)]
    if lines:
        parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>")
    rows = rows_of(outcome)
    if study is not None:
        parts.append(f"<img alt='plot of {escape(name)}' src='{_plot(study, rows)}'>")
    parts.append(f"<details><summary>{len(rows)} cases</summary>")
    headings = ["race", "case", "best", "median", "calls", "error", "accepted"]
    parts.append(_table(headings, [_row_cells(row) for row in rows]) + "</details>")
    return parts


def _row_cells(row: Row) -> tuple[str, ...]:
    error = "" if row.missing else f"{row.error:.2g}"
    bound = "" if row.missing else f"{row.bound:.2g}"
    times = (duration(row.seconds), duration(row.median), str(row.rounds))
    return (row.race, row.case, *times, error, bound)


def _change_cells(change: Change) -> tuple[Any, ...]:
    times = (duration(change.before), duration(change.now), f"{change.ratio:.2f}")
    return (change.study, change.race, change.case, *times, (change.reason, "bad"))


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Cells are text, or (text, class); those that begin with a digit are set as numbers."""
    lines = ["<table><tr>" + "".join(f"<th>{escape(h)}</th>" for h in headings) + "</tr>"]
    for row in rows:
        cells = []
        for cell in row:
            text, kind = cell if isinstance(cell, tuple) else (cell, "")
            kind = kind or ("n" if text[:1].isdigit() else "")
            cells.append(f"<td class='{kind}'>{escape(text)}</td>")
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "\n".join(lines) + "</table>"


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
