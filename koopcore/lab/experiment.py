"""What every experiment is made of: settings, cells kept on disk one by one, a table, a picture."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatch
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from rich.box import SIMPLE_HEAVY
from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

import koopcore
from koopcore.files import write_whole
from koopcore.lab.terminal import show
from koopcore.types import FloatArray

Results = Mapping[str, dict[str, Any]]
"""Name of a cell -> what it found."""


@dataclass(frozen=True)
class Context:
    """What a cell has at hand.

    tick    : to be called as often as the cell says, for the progress bar.
    results : of the cells that are finished.
    folder  : where the results are, for data too large to be among them.
    """

    tick: Callable[[], object]
    results: Results
    folder: Path


@dataclass(frozen=True)
class Cell:
    """One piece of an experiment that is worth keeping by itself.

    name  : its key in the results; may hold slashes.
    ticks : how often ``work`` calls its tick.
    work  : returns what ``json`` can hold.
    needs : names of the cells whose results it reads.
    """

    name: str
    ticks: int
    work: Callable[[Context], dict[str, Any]]
    needs: tuple[str, ...] = ()


class Experiment(Protocol):
    """What ``koopcore.lab.experiments.NAME`` offers to be run as ``koopcore reproduce NAME``.

    Optional: ``picture(results, settings) -> Figure``, drawn beside the results, and ``COMMAND``,
    the command that runs it where that is not its name.
    """

    def settings(self, quick: bool, **options: Any) -> dict[str, Any]:
        """Everything that the results depend on, seeds included, as ``json`` holds it."""

    def cells(self, settings: dict[str, Any]) -> Sequence[Cell]:
        """The cells in the order in which they need each other's results."""

    def table(self, results: Results, settings: dict[str, Any]) -> RenderableType:
        """The results, possibly of some cells only, beside the published figures."""


def run(
    name: str,
    *,
    quick: bool = False,
    output: Path,
    fresh: bool = False,
    only: str = "*",
    **options: Any,
) -> Path:
    """Compute what is missing of an experiment, print its table, and return the results' path.

    Results are in ``output/NAME.json`` (``NAME-quick.json``), rewritten whole after every cell, so
    that an interrupted run goes on where it stopped. Several processes may work on the same file
    with different ``only``, a pattern of cell names; what those need is computed too. ``fresh``
    computes the cells of the pattern again, and replaces results of other settings, which are
    otherwise a ValueError. ``options`` are the experiment's own; None leaves one at its default.
    """
    experiment: Any = import_module(f"koopcore.lab.experiments.{name.replace('-', '_')}")
    options = {option: value for option, value in options.items() if value is not None}
    settings = json.loads(json.dumps(experiment.settings(quick, **options)))
    cells = experiment.cells(settings)
    selected = [cell for cell in cells if fnmatch(cell.name, only)]
    if not selected:
        names = ", ".join(cell.name for cell in cells)
        raise ValueError(f"only is {only!r} and matches no cell; cells are {names}")
    stem = f"{name}-quick" if quick else name
    flags = [f" --{option.replace('_', '-')} {value}" for option, value in options.items()]
    command = getattr(experiment, "COMMAND", name) + " --quick" * quick + "".join(flags)
    forgotten = [cell.name for cell in selected] if fresh else []
    store = Store(output / f"{stem}.json", settings, f"koopcore reproduce {command}", forgotten)
    with _progress() as progress:
        for cell in _with_needs(cells, selected):
            if cell.name in store.results:
                continue
            task = progress.add_task(cell.name, total=cell.ticks)
            context = Context(partial(progress.advance, task), store.results, output)
            store.keep(cell.name, cell.work(context))
            progress.update(task, visible=False)
    show(experiment.table(store.results, settings))
    console = Console()
    if hasattr(experiment, "picture"):
        path = output / f"{stem}.png"
        write_whole(path, experiment.picture(store.results, settings).savefig)
        console.print(f"picture: {path}", soft_wrap=True)
    console.print(f"results: {store.path}", soft_wrap=True)
    return store.path


def _with_needs(cells: Sequence[Cell], selected: Sequence[Cell]) -> list[Cell]:
    """The selected cells and all that they need, in the order of ``cells``."""
    names = {cell.name for cell in selected}
    for cell in reversed(cells):  # a cell comes after those that it needs
        if cell.name in names:
            names.update(cell.needs)
    return [cell for cell in cells if cell.name in names]


class Store:
    """Results of one experiment in one JSON file.

    forgotten : cells whose results are dropped; if there are any, results of other settings are
                dropped whole instead of being an error.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], command: str, forgotten: Sequence[str] = ()
    ) -> None:
        self.path = path
        self._head = {
            "command": command,
            "settings": settings,
            "koopcore": koopcore.__version__,
            "torch": torch.__version__.partition("+")[0],
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        self.results = self._load(replace=bool(forgotten))
        for name in forgotten:
            self.results.pop(name, None)
        self._write()  # shows before any work that the place can be written

    def keep(self, name: str, result: dict[str, Any]) -> None:
        """Add one cell's result, and what other processes have added meanwhile."""
        stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.results.update(self._load())
        self.results[name] = {**result, "finished": stamp}
        self._write()

    def _load(self, replace: bool = False) -> dict[str, dict[str, Any]]:
        if not self.path.exists():
            return {}
        try:
            contents = json.loads(self.path.read_text(encoding="utf-8"))
            settings, results = contents["settings"], contents["results"]
        except (ValueError, KeyError, TypeError):
            if replace:
                return {}
            raise ValueError(
                f"{self.path} holds no results of an experiment; move it away or use --fresh"
            ) from None
        if settings == self._head["settings"]:
            return dict(results)
        if replace:
            return {}
        raise ValueError(
            f"{self.path} holds results of other settings; use --fresh to replace them, or "
            "another --output"
        )

    def _write(self) -> None:
        text = json.dumps({**self._head, "results": self.results}, indent=1, allow_nan=True)
        write_whole(self.path, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def packed(values: ArrayLike, form: str = ".6g") -> list[str]:
    """The columns of ``values`` (rows, columns), one line of text each: long curves, few lines."""
    return [" ".join(format(value, form) for value in column) for column in np.array(values).T]


def unpacked(lines: Iterable[str]) -> FloatArray:
    """The values (rows, columns) that `packed` wrote, to the digits that it kept."""
    return np.array([[float(value) for value in line.split()] for line in lines]).T


def sheet(title: str, heads: Sequence[str], first: str = "") -> Table:
    """An empty table: names on the left, then right-aligned figures under ``heads``."""
    table = Table(title=title, box=SIMPLE_HEAVY, title_style="bold", padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def annotated(table: Table, *notes: str) -> RenderableType:
    """The table with a paragraph for each note under it."""
    return Group(table, Text("\n".join(notes), style="dim"))


def spread(factors: Sequence[float]) -> str:
    """Median and, in brackets, the least: ``1.66x (1.11)``."""
    return f"{np.median(factors):.2f}x ({min(factors):.2f})"
