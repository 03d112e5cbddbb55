"""The project's own files and imports, read without running them, for test_architecture.py."""

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "koopcore"


class Import(NamedTuple):
    """One imported module; `deferred` when it is imported inside a function."""

    source: str
    target: str
    deferred: bool


def tracked_files() -> list[Path]:
    """What version control knows, new files included; everything, where there is no history."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0 and listed.stdout:
        return [p for name in listed.stdout.split("\0") if name and (p := ROOT / name).is_file()]
    produced = re.compile(
        r"(^|/)(build|dist|\.[a-z_]+_cache|\.hypothesis|__pycache__|[^/]*\.egg-info)(/|$)|\.so$"
    )
    found = (Path(top) / name for top, _, names in os.walk(ROOT) for name in names)
    return [p for p in found if not produced.search(p.relative_to(ROOT).as_posix())]


def text_of(path: Path) -> str | None:
    """The text, or None for a binary file."""
    data = path.read_bytes()
    return None if b"\0" in data else data.decode("utf-8", errors="replace")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    }


def _imports(node: ast.AST, source: str, deferred: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if _is_type_checking(child) and not typing:
            continue
        if isinstance(child, ast.Import):
            yield from (Import(source, alias.name, deferred) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            # `from a import b` may mean the module a.b or a name in a: a module if it is a file.
            for alias in child.names:
                path = ROOT.joinpath(*child.module.split("."), alias.name)
                is_module = path.is_dir() or path.with_suffix(".py").is_file()
                target = f"{child.module}.{alias.name}" if is_module else child.module
                yield Import(source, target, deferred)
        inner = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from _imports(child, source, deferred or inner, typing)


def package_imports(typing: bool = False) -> list[Import]:
    """Every import in the package, those that only a type checker sees if ``typing``."""
    return [
        found
        for path in sorted(PACKAGE.rglob("*.py"))
        for found in _imports(
            ast.parse(path.read_text(encoding="utf-8")), module_name(path), False, typing
        )
    ]


def includes() -> Iterator[tuple[Path, str]]:
    """Every quoted `#include` of the C++ and CUDA sources, as (file, path relative to csrc)."""
    csrc = ROOT / "csrc"
    for path in sorted(csrc.rglob("*")):
        if path.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE):
            beside = path.parent / name
            resolved = beside if beside.is_file() else csrc / name
            yield path, Path(os.path.normpath(resolved)).relative_to(csrc).as_posix()
