"""The site: ``sphinx-build -W --keep-going docs site``, with the packages of ``koopcore[docs]``."""

from __future__ import annotations

import re
from typing import Any

import koopcore

project = "koopcore"
author = "The koopcore developers"
version = release = koopcore.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say shapes and ranges, which types would hide
autodoc_mock_imports = ["cupy"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# The headings of `koopcore.training.Settings`.
napoleon_custom_sections = [
    (name, "params_style") for name in ("Recording", "Fitting", "Searching", "After a jump")
]
default_role = "py:obj"  # a link where the name is known, else code

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

html_theme = "pydata_sphinx_theme"
html_title = "koopcore"
html_static_path = ["_static"]
html_css_files = ["koopcore.css"]
html_theme_options = {
    "header_links_before_dropdown": 7,
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_show_sourcelink = False
html_sidebars = {"install": [], "gallery": []}  # nothing is below them


def plain_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written to be read by ``help``: what is indented is a formula, a bar a bar."""
    text = re.sub(r"(?<![`\w])\|", r"\|", "\n".join(lines))
    text = re.sub(r"(?<=\w)\|", r"\|", text)
    # An indented paragraph after one that is not, and that announces no block of its own.
    text = re.sub(r"(?m)^(\S.*[^:\n])\n\n(?=    \S)", r"\1\n\n::\n\n", text)
    lines[:] = text.split("\n")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", plain_text, priority=100)  # before napoleon
