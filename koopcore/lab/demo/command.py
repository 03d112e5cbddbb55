"""What ``koopcore demo`` does: check, train under a progress bar, print the table, write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from koopcore.files import beside, write_whole
from koopcore.lab.demo.demo import DemoSettings, Outcome, run_demo
from koopcore.lab.demo.figure import demo_figure
from koopcore.lab.demo.table import demo_table
from koopcore.lab.terminal import show

FORMATS = (".png", ".pdf", ".svg")


def run(*, output: Path, precision: str = "float32", **options: Any) -> list[Outcome]:
    """Run the demonstration with the options of `DemoSettings` and write the picture to ``output``.

    The table goes to standard output, the progress bar to standard error. The picture appears
    whole or not at all. Raises ValueError or OSError before training for options that cannot work
    and a path that cannot be written.
    """
    settings = DemoSettings(dtype=getattr(torch, precision), **options)
    output = checked_output(output)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("steps,"),
        TimeRemainingColumn(),
    )
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, transient=True) as progress:
        names = ", ".join(settings.optimizers)
        task = progress.add_task(
            f"Training {settings.networks} networks ({names})", total=settings.total_steps
        )
        outcomes = run_demo(settings, tick=lambda: progress.advance(task))
    show(demo_table(outcomes))
    write_whole(output, demo_figure(outcomes).savefig)
    Console().print(f"picture: {output}", soft_wrap=True)
    return outcomes


def checked_output(path: Path) -> Path:
    """The path, if a picture can be written there now; otherwise ValueError or OSError says why."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"output is {path}; its ending must be one of {', '.join(FORMATS)}")
    if path.is_dir():
        raise IsADirectoryError(f"output {path} is a directory; give the name of a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"output {path}: there is no directory {path.parent}; create it or choose another"
        )
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"output {path} is write-protected; choose another name")
    probe = beside(path)
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PermissionError(
            f"output {path}: cannot write in {path.parent} ({error.strerror}); choose another"
        ) from None
    return path
