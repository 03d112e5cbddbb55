"""Tables on a terminal: on one that is too narrow lines wrap, and no number is cut."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table


def show(part: RenderableType) -> None:
    """Print to standard output, at least as wide as the columns of its tables that do not wrap.

    rich assumes 80 columns where standard output is no terminal, and would shorten what does not
    fit to "0.99…".
    """
    console = Console()
    options = console.options.update(max_width=1000)
    needed = console.width
    for table in part.renderables if isinstance(part, Group) else [part]:
        if not isinstance(table, Table):
            continue
        for column in table.columns:
            if column.no_wrap:
                cells = (column.header, *column.cells)
                column.min_width = max(
                    Measurement.get(console, options, cell).maximum for cell in cells
                )
        needed = max(needed, Measurement.get(console, options, table).minimum)
    (console if needed == console.width else Console(width=needed)).print(part)
