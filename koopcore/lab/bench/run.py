"""What ``koopcore bench`` does: measure under a progress bar, print tables, write, compare."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from koopcore.files import write_whole
from koopcore.lab.bench.measure import run_study
from koopcore.lab.bench.report import change_table, html, picture, study_table, troubles
from koopcore.lab.bench.results import TOLERANCE, Change, Results, compare, load, rows_of
from koopcore.lab.bench.study import Size
from koopcore.lab.studies.catalogue import studies
from koopcore.lab.terminal import show

SECONDS = {Size.full: 0.6, Size.quick: 0.05}  # of timing per case


def run(
    *,
    output: Path,
    quick: bool = False,
    only: str = "*",
    against: Path | None = None,
    tolerance: float = TOLERANCE,
) -> int:
    """Run the studies whose name matches ``only``; write bench.json, .html, .png (bench-quick.*).

    Results of other studies stay in the JSON file, so that a long run may be done in pieces; a
    study that was interrupted goes on with the race at which it was.
    against: an earlier JSON file. Returns the exit code: 0, or 1 if a result was wrong or a case
    became slower than ``tolerance`` times what it was. Raises ValueError or OSError before any
    work for what cannot be used.
    """
    if not tolerance > 1:
        raise ValueError(f"tolerance is {tolerance}; give a ratio above 1")
    size = Size.quick if quick else Size.full
    matching = studies(only)
    earlier = load(against) if against is not None else None
    if earlier is not None and earlier["size"] != size.value:
        compare(earlier, {"size": size.value, "studies": {}}, tolerance)
    output.mkdir(parents=True, exist_ok=True)
    stem = "bench-quick" if quick else "bench"
    results = Results(output / f"{stem}.json", size)
    results.write()  # shows before any work that the place can be written
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        counts = [len(study.cases(size)) for study in matching]
        task = progress.add_task("", total=sum(counts))
        for study in matching:
            progress.update(task, description=study.name)
            rows = run_study(
                study,
                size,
                SECONDS[size],
                lambda _: progress.advance(task),
                results.unfinished(study),
                partial(results.keep, study),
            )
            results.add(study, rows)
            outcome = results.studies[study.name]
            console.print(f"[bold]{study.name}[/]: {outcome['question']}", highlight=False)
            if outcome["powers"] or outcome["shares"] or outcome["claims"]:
                show(study_table(outcome))
            for line in outcome["notes"]:
                console.print(f"  {line}", highlight=False, markup=False)
            for line in troubles(outcome):
                console.print(f"  {line}", style="red", highlight=False, markup=False)
    contents = {**results.head(), "studies": results.studies}
    changes: list[Change] = []
    table = None
    if earlier is not None:
        finished = {study.name: results.studies[study.name] for study in matching}
        changes = compare(earlier, {**results.head(), "studies": finished}, tolerance)
        table = change_table(changes, tolerance)
        show(table)
    drawn = list({study.name: study for study in (*studies(), *matching)}.values())
    page = html(contents, drawn, table)
    write_whole(output / f"{stem}.html", lambda path: path.write_text(page, encoding="utf-8"))
    write_whole(output / f"{stem}.png", picture(contents, drawn).savefig)
    console.print(f"results: {output / stem}.json, .html, .png", soft_wrap=True)
    wrong = any(row.wrong for study in matching for row in rows_of(results.studies[study.name]))
    return int(wrong or any(change.reason for change in changes))
