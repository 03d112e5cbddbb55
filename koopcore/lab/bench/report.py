"""A run as tables on the terminal, as one HTML file with its plots, as one picture of all plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from koopcore import page
from koopcore.lab.bench.machine import in_words
from koopcore.lab.bench.powers import Power
from koopcore.lab.bench.results import Change, rows_of
from koopcore.lab.bench.study import Row, Study

COLUMNS = 3  # of plots in the picture


def study_table(study: Mapping[str, Any]) -> Table:
    """Exponents, shares of the roof, claims with their targets."""
    table = Table(show_header=False)
    table.add_column("figure", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("target", justify="right", no_wrap=True)
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
    """Wrong results, whose times are withheld, and cases that cannot run here, each named once."""
    absent: dict[tuple[str, str], list[str]] = {}
    lines = []
    for row in rows_of(study):
        if row.missing:
            absent.setdefault((row.case, row.missing), []).append(row.race)
        elif row.wrong:
            lines.append(
                f"{row.race}: {row.case}: wrong, no time: error {row.error:.2g}, at most "
                f"{row.bound:.2g} is accepted"
            )
    for (case, reason), races in absent.items():
        lines.append(f"{case}: not run: {reason} ({', '.join(races)})")
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
    contents: Mapping[str, Any], studies: Sequence[Study], changes: Table | None = None
) -> str:
    """The whole page: the terminal's tables, all cases and plots; nothing from outside.

    contents: of a result file; studies: those whose plots are drawn; changes: `change_table`.
    """
    outcomes = contents["studies"]
    parts = []
    for machine in [outcome["machine"] for outcome in outcomes.values()][-1:]:
        parts.append(page.table(in_words(machine)))
    if changes is not None:
        parts += [page.heading(str(changes.title)), _as_html(changes)]
    by_name = {study.name: study for study in studies}
    for name, outcome in outcomes.items():
        parts += _study_in_html(name, outcome, by_name.get(name))
    return page.page(contents["command"], parts)


def _study_in_html(name: str, outcome: Mapping[str, Any], study: Study | None) -> Iterator[str]:
    yield page.heading(name)
    yield page.paragraph(outcome["question"])
    figures = study_table(outcome)
    if figures.row_count:
        yield _as_html(figures)
    yield page.listed([*outcome["notes"], *troubles(outcome)])
    rows = rows_of(outcome)
    if study is not None:
        timed = [row for row in rows if row.seconds is not None]
        words = f"{name}: {outcome['question']} Best times of {len(timed)} cases"
        if timed:
            quick, slow = (duration(f(r.seconds or 0.0 for r in timed)) for f in (min, max))
            words += f", {quick} to {slow}"
        yield page.figure(_plot(study, rows), _plot(study, rows, dark=True), f"{words}.")
    yield page.folded(f"{len(rows)} cases", _as_html(case_table(rows)))


def _as_html(table: Table) -> str:
    """A table of the terminal for the page."""
    headings = [str(column.header) for column in table.columns] if table.show_header else []
    numbers = [k for k, column in enumerate(table.columns) if column.justify == "right"]
    cells = zip(*(map(str, column.cells) for column in table.columns), strict=True)
    return page.table(list(cells), headings, numbers=numbers)


def case_table(rows: Sequence[Row]) -> Table:
    """Every case: times, calls, error, and the error that is accepted."""
    table = Table("race", "case")
    for heading in ("best", "median", "calls", "error", "accepted"):
        table.add_column(heading, justify="right")
    for row in rows:
        errors = ("", "") if row.missing else (f"{row.error:.2g}", f"{row.bound:.2g}")
        times = (duration(row.seconds), duration(row.median), str(row.rounds))
        table.add_row(row.race, row.case, *times, *errors)
    return table


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


#: The ground of dark plots: that of the page.
DARK = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "#14171b")


def _plot(study: Study, rows: Sequence[Row], dark: bool = False) -> Figure:
    with style.context(["dark_background", DARK] if dark else []):
        whole = Figure(figsize=(8, 4.6), layout="constrained")
        _draw(whole.add_subplot(), study, rows)
    return whole


def _draw(axes: Any, study: Study, rows: Sequence[Row]) -> None:
    study.draw(axes, rows)
    axes.set_title(study.name)
    if study.x_label and not axes.get_xlabel():
        axes.set_xlabel(study.x_label)
