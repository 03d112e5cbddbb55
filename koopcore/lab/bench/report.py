"""The report of a run as one HTML file, plots embedded, and as one picture of all plots."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure

from koopcore.lab.bench.compare import Change
from koopcore.lab.bench.powers import Power
from koopcore.lab.bench.results import rows_of
from koopcore.lab.bench.study import Row, Study
from koopcore.lab.bench.tables import duration, figure, target, troubles

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .15rem .7rem; text-align: left }
tr { border-bottom: 1px solid #ddd } td.n { text-align: right; font-variant-numeric: tabular-nums }
.good { color: #176d2b } .bad { color: #b00020 } img { max-width: 100% } li { margin: .1rem 0 }
"""
COLUMNS = 3  # of plots in the picture


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
        parts.append(_table(_CHANGE_HEADINGS, [_change_cells(change) for change in changes]))
    by_name = {study.name: study for study in studies}
    for name, found in contents["studies"].items():
        parts += _section(name, found, by_name.get(name))
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


def _section(name: str, found: Mapping[str, Any], study: Study | None) -> list[str]:
    parts = [f"<h2>{escape(name)}</h2><p>{escape(found['question'])}</p>"]
    powers = [(label, str(Power(**power))) for label, power in found["powers"].items()]
    if powers:
        parts.append(_table(["cost", "fitted"], powers))
    if found["claims"]:
        cells = []
        for claim in found["claims"]:
            mark = ("met", "good") if claim["met"] else ("not met", "bad")
            cells.append((claim["text"], figure(claim["value"]), target(claim), mark))
        parts.append(_table(["claim", "value", "target", ""], cells))
    lines = [*found["notes"], *troubles(found)]
    if lines:
        parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>")
    rows = rows_of(dict(found))
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


_CHANGE_HEADINGS = ["study", "race", "case", "before", "now", "ratio", ""]


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
