"""Progress bars on standard error: around an iteration, or told how far others have come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function to tell how many of ``total`` are done; with ``shown``, it moves a bar.

    Raises ImportError without rich, where the bar is to be shown.
    """
    if not shown:
        yield lambda done: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError as error:
        raise ImportError('progress=True needs rich: pip install "koopcore[demo]"') from error
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("learning", total=total)
        yield lambda done: progress.update(task, completed=done)


def counted(items: Iterable[Item], total: int, shown: bool) -> Iterator[Item]:
    """The items; with ``shown``, behind a bar that counts them."""
    with bar(total, shown) as done:
        for number, item in enumerate(items):
            yield item
            done(number + 1)
