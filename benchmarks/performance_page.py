"""Writes docs/performance.md from the committed results: every figure there is from these files.

koopcore bench --output benchmarks/results      # about eight minutes; --only NAME for a part
python benchmarks/instructions.py > benchmarks/results/instructions.json
python benchmarks/performance_page.py           # docs/performance.md and its two pictures

The map of shapes and the goals have a file of their own; how it is made, says the page.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from koopcore.lab.bench.powers import Power
from koopcore.lab.bench.report import (
    SHARE_HEADINGS,
    duration,
    figure,
    percent,
    picture,
    share_cells,
    target,
    troubles,
)
from koopcore.lab.bench.results import load, rows_of
from koopcore.lab.bench.roofs import READS, fastest
from koopcore.lab.bench.study import Row, races_of, seconds_of
from koopcore.lab.studies import backpropagation, roofline, shapes
from koopcore.lab.studies.catalogue import studies
from koopcore.lab.studies.peers.study import LOADS, PEERS
from koopcore.lab.studies.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE, PICTURE = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.png"
MAP = ROOT / "docs" / "shapes.png"

INTRODUCTION = """\
# Performance

What koopcore costs, measured by `koopcore bench` on one machine in one piece of software, beside
what that machine can do and what one would use instead. This page is written by
`benchmarks/performance_page.py` from `benchmarks/results/bench.json`; nothing in it is typed in.

```sh
pip install -c constraints.txt ".[bench]"        # with the peers; without them they are left out
koopcore bench                                   # about eight minutes; --quick: about one
koopcore bench --compare earlier/bench.json      # exit code 1 if a case became slower by 1.25
koopcore bench --only 'p*'                       # a part; the file keeps the rest
```

It writes `bench.json`, a self-contained `bench.html` and a picture into `koopcore-results`. The
same studies run under pytest-benchmark: `pytest benchmarks/bench_studies.py -k horizon`.

## Method

* The cases of a race take turns, so that a slow spell of the machine meets all of them. A time is
  the best of its calls (the median stands in the report), a ratio is one of two such times of one
  race. Garbage collection is off while timing.
* Results are checked before and after the timing, in the same run. A prediction must come as near
  to the truth as orthogonal least squares in float64 on the same snapshots, times 1.2; one that
  does not has no time. Snapshots are float32, decays about a fixed point whose future is known
  exactly. The model is the affine one, the horizon 100 unless said.
* Roofs are measured in every race, by loops compiled for the widest vectors of the processor:
  multiply-adds in registers, reads of the very snapshots (the best of five ways of reading),
  writes. "Warm" is call after call, "cold" after four times the last-level cache of other data was
  read. A job's share of the roof is the larger of two: the multiply-adds of all its stages, and
  the bytes it cannot avoid to move, per second, over what the probe reached. Snapshots count
  twice, for Gram matrices and for the combination; what lies between may stay in a cache.
  Conversions from float32, differences and transpositions are work on top, so that 100 % is a
  bound and no target.
* Peers are written as their experts would: Gram matrices instead of m by m operators, powers by
  doubling, batches in blocks that stay in a cache, on as many threads as koopcore has. They are
  given their groups as one contiguous array, whose making is not timed; koopcore takes the flat
  rows. Slow ones do a part of the groups, and their time is scaled; loops of Python do it on one
  thread, and get the time that as many processes as threads could reach at best. Their answers
  are checked too: at most 3 times the error of least squares.
* Exponents are fitted above a fixed cost of a call, with Student's 95 % interval.
"""


def main() -> None:
    contents, mapped = load(RESULTS / "bench.json"), load(RESULTS / "shapes.json")
    PAGE.write_text(page(contents, instructions(), mapped), encoding="utf-8")
    picture(contents, studies()).savefig(PICTURE, dpi=70)
    drawn = Figure(figsize=(10, 5), layout="constrained")
    shapes.draw(drawn.add_subplot(), rows_of(mapped["studies"]["shapes"]))
    drawn.savefig(MAP, dpi=90)


def instructions() -> dict[str, Any]:
    counted: dict[str, Any] = json.loads((RESULTS / "instructions.json").read_text("utf-8"))
    return counted


OLDER_RUN = """The committed run is older than this table, than the peers as they are now and than
the present rule for groups of deficient rank: its ratios to torch and NumPy are to slower code
than an expert would write (the torch peer by about a factor of two), and its targets for times one
read were beyond what arithmetic allows. `koopcore bench` measures all of it anew.
"""


def page(contents: dict[str, Any], counted: dict[str, Any], mapped: dict[str, Any]) -> str:
    """The whole page from the contents of the three files."""
    names = [study.name for study in studies() if study.name in contents["studies"]]
    outcomes = {name: contents["studies"][name] for name in names}
    parts = [INTRODUCTION, _machine(contents)]
    parts += ["## Shares of the roof\n", _shares(outcomes)]
    parts += ["## Targets\n", _claims(outcomes), "![All studies as plots](performance.png)\n"]
    tables: dict[str, Callable[[dict[str, Any]], str]]
    tables = {"endpoint": _endpoint, "peers": _peers, "backpropagation": _steps}
    for name, study in outcomes.items():
        parts.append(f"## {name}\n\n{study['question']}\n")
        if name in tables:
            parts.append(tables[name](study))
        else:
            parts.append(_list(study["notes"]))
        powers = [f"{label}: {Power(**power)}" for label, power in study["powers"].items()]
        parts.append(_list([*powers, *troubles(study)]))
    parts += _shapes(mapped["studies"])
    parts.append(_instructions(counted))
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def _machine(contents: dict[str, Any]) -> str:
    machine = next(iter(contents["studies"].values()))["machine"]
    size = machine["last_level_cache_bytes"] / 2**20
    versions = ", ".join(f"{name} {machine[name]}" for name in ("numpy", "numba", "torch"))
    return (
        "## Machine\n\n"
        f"{machine['processor']}, {machine['threads']} threads, {machine['instruction_set']}, "
        f"last-level cache {size:.0f} MiB (shared with other guests of the host), memory "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; {machine['system']}, Python "
        f"{machine['python']}, {versions}. {_load(contents)}\n"
    )


def _load(contents: dict[str, Any]) -> str:
    """What else ran meanwhile, so that nobody takes these times for the machine's best."""
    known = [study["machine"].get("load_average", 0.0) for study in contents["studies"].values()]
    loads = [load for load in known if load]
    if not loads:
        return ""
    seen = f"Load average {min(loads):g} to {max(loads):g}, koopcore's own threads included."
    if max(loads) <= next(iter(contents["studies"].values()))["machine"]["threads"]:
        return seen
    return (
        f"{seen} So other work ran meanwhile: best times and ratios suffer least from it; what two "
        "threads gain, and whatever spins while it waits (OpenMP), suffers most."
    )


def _shares(outcomes: dict[str, Any]) -> str:
    """Every job and stage, with its time."""
    lines = []
    for name, study in outcomes.items():
        lines += [(name, *share_cells(share)) for share in study.get("shares", [])]
    return _table(("study", *SHARE_HEADINGS), lines) if lines else OLDER_RUN


def _claims(outcomes: dict[str, Any]) -> str:
    rows = []
    for name, study in outcomes.items():
        for claim in study["claims"]:
            verdict = "met" if claim["met"] else "**not met**"
            rows.append((name, claim["text"], figure(claim["value"]), target(claim), verdict))
    return _table(("study", "figure", "value", "target", ""), rows)


def _endpoint(study: dict[str, Any]) -> str:
    rows = rows_of(study)
    roofs = {share["text"]: share["roof"] for share in study.get("shares", [])}
    lines = []
    for race in races_of(rows):
        read = fastest(rows, race, READS)
        size = next(row.figures["bytes"] for row in rows if row.race == race and row.case in READS)
        cells = [race, f"{size / 2**20:.0f} MiB", duration(read), f"{size / read / 1e9:.1f} GB/s"]
        for backend in roofline.BACKENDS:
            seconds = seconds_of(rows, race, backend)
            cells.append(duration(seconds if seconds == seconds else None))
            cells.append(percent(roofs.get(f"{race}: {backend}")))
        lines.append(tuple(cells))
    backends = (heading for backend in roofline.BACKENDS for heading in (backend, "of the roof"))
    loads = "; ".join(f"{name}: {WORKLOADS[name]}" for name in roofline.ENDPOINT_LOADS)
    return f"{loads}.\n\n" + _table(("", "snapshots", "one read", "at", *backends), lines)


def _peers(study: dict[str, Any]) -> str:
    """Time, times koopcore's, error: a column for every workload."""
    rows = rows_of(study)
    by_case = {(row.race, row.case): row for row in rows}
    races = [load for load in LOADS if load in races_of(rows)]
    lines = []
    for case in (*roofline.BACKENDS, *PEERS):
        cells = [case]
        for race in races:
            ours = seconds_of(rows, race, roofline.BACKENDS[0])
            cells.append(_peer_cell(by_case.get((race, case)), ours))
        lines.append(tuple(cells))
    loads = "; ".join(f"{name}: {WORKLOADS[name]}" for name in races)
    note = f"Time · times {roofline.BACKENDS[0]} · error. {loads}.\n\n"
    return note + _table(("", *races), lines)


def _peer_cell(row: Row | None, ours: float) -> str:
    if row is None or row.seconds is None:
        return "-"
    ratio = row.seconds / ours
    times = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
    return f"{duration(row.seconds)} · {times} · {row.error:.1e}"


def _steps(study: dict[str, Any]) -> str:
    """Steps per prediction, and with a line search in brackets: a row per network."""
    rows = rows_of(study)
    batches = sorted({row.x for row in rows if row.x == row.x})
    lines = []
    for race in races_of(rows):
        predicted = seconds_of(rows, race, backpropagation.PREDICT)
        cells = [race, duration(predicted)]
        for batch in batches:
            step = seconds_of(rows, race, f"step, batch {batch:.0f}")
            searched = seconds_of(rows, race, f"{backpropagation.SEARCH}{batch:.0f}")
            brackets = f" ({searched / step:.1f})" if searched == searched else ""
            cells.append(f"{predicted / step:.2f}{brackets}")
        lines.append(tuple(cells))
    headings = ("", "fit and predict", *(f"steps of batch {batch:.0f}" for batch in batches))
    note = "Training steps that take as long as one prediction (with a line search).\n\n"
    return note + _table(headings, lines)


def _instructions(counted: dict[str, Any]) -> str:
    return (
        "## Instructions\n\n"
        f"`{counted['command']}`: {counted['instructions']:,} instructions for one endpoint of "
        f"{counted['groups']:,} groups of {counted['parameters_per_group']}, n = "
        f"{counted['snapshots']}, horizon {counted['horizon']} ({counted['instruction_set']}, one "
        f"thread, callgrind): {counted['instructions_per_element']:.1f} for each number in the "
        "snapshots. A count repeats where a time does not, so a change of the kernels is compared "
        "by it.\n"
    )


SHAPES = """## Shapes

A map of groups of 1 to 10,000 parameters in windows of 3 to 20,000 snapshots, float32 and float64,
linear and affine, as many groups as have 16 MiB of snapshots, and one. Each cell is timed beside
NumPy group by group, stacked NumPy, torch's batched Cholesky in blocks on threads, and JAX, and
each answer checked. The map was made beside other work, at load averages of 9 to 15; most cells in
which a peer was faster were then measured once more, on a machine that did nothing else, and with
them the load average below: the table says which.

```sh
pip install -c constraints.txt ".[bench]"
koopcore bench --only shapes --output map        # half an hour; if stopped, it goes on where it was
koopcore bench --only goals --output map         # three minutes
cp map/bench.json benchmarks/results/shapes.json
python benchmarks/shapes_again.py benchmarks/results/shapes.json
python benchmarks/performance_page.py
```

![Times faster than the fastest peer, and share of the roof](shapes.png)
"""


def _shapes(studies: dict[str, Any]) -> list[str]:
    """The map, the cells in which a peer is faster, and the goals."""
    behind = [cell for cell in shapes.standings(rows_of(studies["shapes"])) if cell.times < 1.0]
    behind.sort(key=lambda cell: cell.times)
    rows = [row for row in rows_of(studies["shapes"]) if row.engine]
    twice = {row.race for row in rows if "again" in row.figures}
    earlier = sum("earlier" in row.figures for row in rows)
    cells = [
        (cell.text, cell.peer, f"{cell.times:.2f}", "twice" if cell.text in twice else "once")
        for cell in behind
    ]
    counted = next(note for note in studies["shapes"]["notes"] if "cells:" in note)
    lost = f"{len(cells)} are lost to a peer:\n\n" if cells else "None is lost to a peer.\n"
    if earlier:
        lost = f"{earlier} of them are of an earlier run, with the kernels of then. {lost}"
    parts = [SHAPES, f"{_load({'studies': studies})} {counted}. {lost}"]
    if cells:
        parts.append(_table(("cell", "the fastest", "its time / koopcore's", "measured"), cells))
    goals = {"goals": studies["goals"]}
    parts += ["## Goals\n", f"{studies['goals']['question']}\n", _claims(goals)]
    return [*parts, _list(studies["goals"]["notes"])]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    escaped = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
    return "\n".join(f"| {line} |" for line in escaped) + "\n"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines) + ("\n" if lines else "")


if __name__ == "__main__":
    main()
