"""A progress bar on standard error around any iteration, if it is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def counted(
    items: Iterable[Item], total: int, shown: bool, title: str = "learning"
) -> Iterator[Item]:
    """The items; with ``shown``, behind a bar that counts them. ImportError without rich."""
    if not shown:
        yield from items
        return
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError as error:
        raise ImportError('progress=True needs rich: pip install "koopcore[demo]"') from error
    console = Console(stderr=True)
    yield from track(items, title, total=total, console=console, transient=True)
