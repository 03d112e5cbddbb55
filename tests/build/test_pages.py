"""Every page's code runs: README and docs/, block after block, as a reader would type it.

A page's blocks share one namespace and an empty folder. What a fragment needs besides stands in
the page itself, in a comment that readers do not see: <!-- run first ... -->. Lines of shell blocks
that call the command line are parsed, not run.
"""

import re
import shlex
import subprocess
import sys
from importlib import import_module

import pytest
from ranks import environment
from source_tree import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^```(?P<language>\w+)\n(?P<code>.*?)^```$|^<!-- run first\n(?P<hidden>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)


def program(page):
    """The page's Python, each block at its own line numbers; empty without one."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    shown = False
    for block in BLOCK.finditer(text):
        if block["hidden"] is None and block["language"] != "python":
            continue
        shown = shown or block["hidden"] is None
        code = block["hidden"] if block["hidden"] is not None else block["code"]
        begin = text.count("\n", 0, block.start()) + 1
        lines[begin : begin + code.count("\n")] = code.splitlines()
    return "\n".join(lines) if shown else ""


def named(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if program(page)], ids=named)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    code = program(page)
    if "torch.distributed" in code:
        # Leaves threads behind.
        script = tmp_path / "page.py"
        script.write_text(f"{code}\nimport ranks\n\nranks.leave()\n", encoding="utf-8")
        command = [sys.executable, str(script)]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=environment()
        )
        assert done.returncode == 0, done.stderr
    else:
        monkeypatch.chdir(tmp_path)
        exec(compile(code, named(page), "exec"), {"__name__": "page"})


def test_commands_of_shell_blocks_are_understood():
    from typer.main import get_command

    from koopcore.cli import app

    seen = 0
    for page in PAGES:
        for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
            if block["language"] != "sh":
                continue
            for line in block["code"].splitlines():
                words = shlex.split(line, comments=True)
                words = words[words.index("&&") + 1 :] if "&&" in words else words
                if words[:1] == ["koopcore"]:
                    seen += 1
                    parse(get_command(app), words[1:], named(page))
    assert seen > 3


def parse(command, words, where):
    """Every subcommand and option is one that the command line has."""
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"{where}: koopcore {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    options = {name for parameter in command.params for name in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"{where}: {word}"


def test_pages_are_reached_from_the_index():
    """By tables of contents, and every link inside leads to a file, and to a heading of it."""
    docs = ROOT / "docs"
    missing, reached = [], {docs / "index.md"}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for tree in re.findall(r"```{toctree}\n(.*?)```", text, re.DOTALL):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            reached |= {(page.parent / f"{name}.md").resolve() for name in names}
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            if ":" in target:
                continue
            if not file.exists() or (anchor and anchor not in anchors(file)):
                missing.append(f"{named(page)}: {target}")
    assert missing == []
    assert {page for page in PAGES if page.is_relative_to(docs)} <= reached


def prose(text):
    """Without blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """Of headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("room", ["", ".training", ".dmd", ".learning", ".torch_ops"])
def test_every_public_name_is_in_the_reference(room):
    reference = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    module = import_module(f"koopcore{room}")
    public = {name for name in module.__all__ if not isinstance(getattr(module, name), str)}
    lacking = [
        name
        for name in public
        if not re.search(
            rf"(auto\w+|py:data):: (koopcore\.)?([\w.]+\.)?{name}$", reference, re.MULTILINE
        )
        # Modules have a page of their own.
        and f"# koopcore.{name}\n" not in reference
    ]
    assert lacking == []
