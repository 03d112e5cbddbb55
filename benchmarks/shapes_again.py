"""Measures cells of the map again in which a peer was faster, and puts them into its file.

koopcore bench --only shapes --output shapes; cp shapes/bench.json benchmarks/results/shapes.json
python benchmarks/shapes_again.py benchmarks/results/shapes.json

The map runs for half an hour, in which the machine has slow spells; a cell counts as lost if it is
so twice. Best on a machine that does nothing else. ``--seconds`` ends it earlier, and the next call
goes on; ``--cells PATTERN`` takes cells by name instead, whoever was faster.
"""

import argparse
import time
from fnmatch import fnmatch
from pathlib import Path

from koopcore.lab.bench.measure import run_race
from koopcore.lab.bench.results import Results
from koopcore.lab.bench.run import SECONDS
from koopcore.lab.bench.study import Row, Size, forget
from koopcore.lab.studies import shapes

AGAIN = "again"  # figure of rows that were measured twice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--cells", default="", metavar="PATTERN")
    arguments = parser.parse_args()
    results = Results(arguments.file, Size.full)
    begin = time.perf_counter()
    for race in races(results.rows("shapes"), arguments.cells):
        if time.perf_counter() - begin > arguments.seconds:
            break
        cases = [case for case in shapes.cases(Size.full) if case.race == race]
        rows = run_race(
            shapes.STUDY, cases, SECONDS[Size.full] * shapes.STUDY.share, lambda _: None
        )
        forget()
        for row in rows:
            row.figures[AGAIN] = 1.0
        old = results.rows("shapes")
        at = next(k for k, row in enumerate(old) if row.race == race)
        rest = [row for row in old if row.race != race]
        results.add(shapes.STUDY, [*rest[:at], *rows, *rest[at:]])
        for cell in shapes.standings([*roofs(old), *rows]):
            print(f"{cell.text}: {cell.peer} takes {cell.times:.2f} of the time", flush=True)


def races(rows: list[Row], pattern: str) -> list[str]:
    """Cells to measure, the quickest first."""
    again = {row.race for row in rows if AGAIN in row.figures}
    seconds = {row.race: row.seconds or 0.0 for row in rows if row.engine}
    cells = sorted(shapes.standings(rows), key=lambda cell: seconds[cell.text])
    if pattern:
        cells = [cell for cell in cells if fnmatch(cell.text, pattern)]
    else:
        cells = [cell for cell in cells if cell.times < 1.0]
    return [cell.text for cell in cells if cell.text not in again]


def roofs(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.race == shapes.ROOFS]


if __name__ == "__main__":
    main()
