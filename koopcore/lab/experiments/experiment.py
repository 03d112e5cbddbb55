"""Run the cells of an experiment under a progress bar; each finished one is kept on disk."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import koopcore
from koopcore.files import write_whole

Tick = Callable[[], object]
Results = Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One piece of an experiment that is worth keeping by itself.

    name  : its key in the results; may hold slashes.
    ticks : how often ``work`` calls its tick, for the progress bar.
    work  : takes (tick, results of the cells before it); returns what ``json`` can hold.
    """

    name: str
    ticks: int
    work: Callable[[Tick, Results], dict[str, Any]]


class Experiment(Protocol):
    """What a module must offer to be run as ``koopcore reproduce NAME``.

    A module may also offer ``picture(results, settings) -> Figure``, written beside the results.
    """

    def settings(self, quick: bool) -> dict[str, Any]:
        """Everything that the results depend on, seeds included, as ``json`` holds it."""

    def cells(self, settings: dict[str, Any]) -> Sequence[Cell]:
        """The cells in the order in which they need each other's results."""

    def table(self, results: Results, settings: dict[str, Any]) -> RenderableType:
        """The results, possibly of some cells only, beside the published figures."""


def run(
    name: str,
    module: str,
    *,
    quick: bool,
    output: Path,
    fresh: bool = False,
    only: str = "*",
    data: Path | None = None,
) -> Path:
    """Compute what is missing of an experiment, print its table, and return the results' path.

    Results are in ``output/NAME.json`` (``NAME-quick.json``), rewritten whole after every cell, so
    that an interrupted run goes on where it stopped. Several processes may work on the same file
    with different ``only`` patterns. ``data``, a folder for an experiment that reads digits, is one
    of the settings. Raises ValueError for results of other settings.
    """
    experiment: Any = import_module(module)
    settings = json.loads(json.dumps(experiment.settings(quick)))
    if data is not None:
        settings["data"] = str(data)
    stem = f"{name}-quick" if quick else name
    store = Store(output / f"{stem}.json", settings, f"koopcore reproduce {name}", quick, fresh)
    cells = [cell for cell in experiment.cells(settings) if fnmatch(cell.name, only)]
    if not cells:
        names = ", ".join(cell.name for cell in experiment.cells(settings))
        raise ValueError(f"only is {only!r} and matches no cell; cells are {names}")
    with _progress() as progress:
        for cell in cells:
            if cell.name in store.results:
                continue
            task = progress.add_task(cell.name, total=cell.ticks)
            # The default argument binds this task, not the loop's last one.
            done = cell.work(lambda task=task: progress.advance(task), store.results)
            store.keep(cell.name, done)
            progress.update(task, visible=False)
    console = Console()
    console.print(experiment.table(store.results, settings))
    if hasattr(experiment, "picture"):
        path = output / f"{stem}.png"
        write_whole(path, experiment.picture(store.results, settings).savefig)
        console.print(f"picture: {path}", soft_wrap=True)
    console.print(f"results: {store.path}", soft_wrap=True)
    return store.path


class Store:
    """Results of one experiment in one JSON file."""

    def __init__(
        self, path: Path, settings: dict[str, Any], command: str, quick: bool, fresh: bool
    ) -> None:
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        self._head = {
            "command": command + (" --quick" if quick else ""),
            "settings": settings,
            "koopcore": koopcore.__version__,
            "torch": torch.__version__.partition("+")[0],
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        if not fresh:
            self.results = self._load()
        self._write()  # shows before any work that the place can be written

    def keep(self, name: str, result: dict[str, Any]) -> None:
        """Add one cell's result, and what other processes have added meanwhile."""
        stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.results.update(self._load())
        self.results[name] = {**result, "finished": stamp}
        self._write()

    def _load(self) -> dict[str, dict[str, Any]]:
        if not self.path.exists():
            return {}
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            settings, results = found["settings"], found["results"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{self.path} holds no results of an experiment; move it away or use --fresh"
            ) from None
        if settings != self._head["settings"]:
            raise ValueError(
                f"{self.path} holds results of other settings; use --fresh to replace them, or "
                "another --output"
            )
        return dict(results)

    def _write(self) -> None:
        text = json.dumps({**self._head, "results": self.results}, indent=1, allow_nan=True)
        write_whole(self.path, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
