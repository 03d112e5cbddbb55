"""A report as one HTML file: nothing from outside, light and dark, legible on a narrow screen.

What is wide (tables, figures) scrolls by itself, and the page does not. A figure comes twice, for
light and for dark ground, as SVG inside the page, with a text that says what it shows.
"""

from __future__ import annotations

import base64
from collections.abc import Container, Iterable, Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --text: #22262b; --soft: #5d6570;
  --line: #dfe3e8; --tint: #f5f6f8; --accent: #b3420f }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --text: #e6e9ed;
  --soft: #a3abb6; --line: #343b44; --tint: #1d2228; --accent: #ff9a5c } }
body { background: var(--ground); color: var(--text); font: 16px/1.55 system-ui, sans-serif;
  max-width: 58rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; margin: 0 0 .25rem } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem }
p { margin: .4rem 0 .8rem } .soft, caption, figcaption { color: var(--soft) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
caption { text-align: left; padding: .3rem 0; white-space: nowrap }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: normal }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
tr.best td, tr.best th { color: var(--accent); font-weight: 600 }
figure { margin: .5rem 0 } figure img { display: block; width: 100% }
figcaption { font-size: .9rem } details { margin: .6rem 0 } summary { cursor: pointer }
"""


def page(title: str, parts: Iterable[str], subtitle: str = "") -> str:
    """The whole file; ``parts`` are HTML, title and subtitle text."""
    below = f'<p class="soft">{escape(subtitle)}</p>' if subtitle else ""
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>",
            f"<h1>{escape(title)}</h1>{below}",
            *parts,
            "</main></body></html>\n",
        )
    )


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def listed(lines: Iterable[str]) -> str:
    """An unordered list; nothing of no lines."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def folded(summary: str, part: str) -> str:
    """``part`` behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary>{part}</details>"


def table(
    rows: Iterable[Sequence[str]],
    headings: Sequence[str] = (),
    *,
    caption: str = "",
    numbers: Container[int] = (),
    best: int | None = None,
) -> str:
    """Rows of text, the first cell of each its heading; ``numbers``: columns set to the right."""
    right = ' class="number"'
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in headings)
    body = []
    for index, (first, *rest) in enumerate(rows):
        cells = "".join(
            f"<td{right if column in numbers else ''}>{escape(cell)}</td>"
            for column, cell in enumerate(rest, 1)
        )
        mark = ' class="best"' if index == best else ""
        body.append(f'<tr{mark}><th scope="row">{escape(first)}</th>{cells}</tr>')
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    titles = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{named}{titles}<tbody>{"".join(body)}</tbody></table></div>'


def figure(light: Figure, dark: Figure, alternative: str, caption: str = "") -> str:
    """A figure for either ground; ``alternative`` says in words what it shows."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    wide = light.get_figwidth() * light.dpi  # of its own; smaller than three fifths is illegible
    sizes = f"max-width:{wide:.0f}px;min-width:{0.6 * wide:.0f}px"
    image = f'<img src="{_svg(light)}" style="{sizes}" alt="{escape(alternative)}">'
    return (
        '<figure><div class="wide"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{_svg(dark)}">'
        f"{image}</picture></div>{below}</figure>"
    )


def _svg(drawn: Figure) -> str:
    """A figure as a data URI."""
    buffer = BytesIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
