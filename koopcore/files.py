"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write beside ``path``, then put it in place in one step.

    Whatever interrupts it, ``path`` holds what it held before, or the whole new file, and nothing
    is left beside it.
    """
    partial = beside(path)
    try:
        save(partial)
        os.replace(partial, path)
    except BaseException:
        with suppress(FileNotFoundError):
            partial.unlink()
        raise


def beside(path: Path) -> Path:
    """A hidden name in the same directory, so that `os.replace` stays on one file system."""
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
