"""Who may import whom, what importing koopcore costs, and how long files may be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import PACKAGE, ROOT, Import, includes, package_imports, text_of, tracked_files

import koopcore

# Levels from the bottom. A module may import from lower levels; within a level only what PEERS
# lists, and what lies in its own subpackage. Every top-level module must be named here.
LEVELS: list[set[str]] = [
    {"_native"},
    {"arrays", "layout", "layout_torch", "partition", "own_groups", "unit_groups", "segments"},
    {"backends"},
    {"operators", "checks", "fitting", "fitted", "selection", "spectrum"},
    {"training", "learning"},
    {"problems"},
    {"studies"},
    {"cli", "info"},
    {"__main__"},
]
# The leaves describe one thing, a grouping of parameters, between them; fit() selects models and
# reports spectra; the command line prints info's report. training and learning stay strangers.
PEERS = [LEVELS[1], LEVELS[3], LEVELS[7]]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

USES_TORCH = {"training", "learning", "problems"}
HEAVY = ("torch", "cupy", "numba")

IMPORTS = package_imports()


def top(module: str) -> str:
    """koopcore.training.recording.ring -> training; koopcore itself -> the empty string."""
    return module.removeprefix("koopcore").lstrip(".").partition(".")[0]


def internal() -> list[Import]:
    return [i for i in IMPORTS if i.target == "koopcore" or i.target.startswith("koopcore.")]


def backend_family(module: str) -> str:
    """koopcore.backends.numba.backend -> numba; shared modules of the seam -> the empty string."""
    name = module.removeprefix("koopcore.backends").lstrip(".").partition(".")[0]
    for family in ("reference", "numba", "native_cpu", "native_cuda", "cupy"):
        if name.startswith(family):
            return family
    return ""


def test_every_module_has_a_place_in_the_architecture() -> None:
    files = {path.stem for path in PACKAGE.glob("*.py")}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert (files | packages) - {"__init__"} - set(LEVEL) == set()


def test_imports_go_downwards_only() -> None:
    def allowed(source: str, target: str) -> bool:
        if source == target or (source == "" and target == ""):
            return True
        if any({source, target} <= peers for peers in PEERS):
            return True
        # The package itself is below everything: its module-level code imports nothing.
        return target == "" or (source != "" and LEVEL[target] < LEVEL[source])

    wrong = [i for i in internal() if not allowed(top(i.source), top(i.target))]
    assert wrong == []


def test_backends_never_import_each_other() -> None:
    families = [(backend_family(i.source), backend_family(i.target), i) for i in internal()]
    assert [i for a, b, i in families if a and b and a != b] == []


def test_torch_is_imported_by_training_learning_and_problems_only() -> None:
    torch_at_import = [i for i in IMPORTS if top_level(i.target) == "torch" and not i.deferred]
    assert [i for i in torch_at_import if top(i.source) not in USES_TORCH] == []


def top_level(module: str) -> str:
    return module.partition(".")[0]


def run_python(code: str, directory: Path) -> str:
    # Not in the source tree: a child process would prefer it over the installed package.
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        "import koopcore",
        "import koopcore; koopcore.Layout, koopcore.Partition",
        "from koopcore import _native; _native.build_record()",
    ],
)
def test_importing_koopcore_imports_nothing_heavy(statement: str, tmp_path: Path) -> None:
    code = f"import sys\n{statement}\nprint(*sorted(set(sys.modules) & {set(HEAVY)}))"
    assert run_python(code, tmp_path) == ""


@pytest.mark.parametrize("name", koopcore.__all__)
def test_every_public_name_resolves_and_is_listed(name: str, tmp_path: Path) -> None:
    assert name in dir(koopcore)
    code = f"import koopcore; value = koopcore.{name}; print(callable(value) or value)"
    expected = koopcore.__version__ if name == "__version__" else "True"
    assert run_python(code, tmp_path) == expected


@pytest.mark.parametrize(
    "before",
    ["", "import koopcore.backends", "from koopcore.backends import reference", "kc.fit"],
)
def test_backends_is_callable_however_its_package_was_imported_first(
    before: str, tmp_path: Path
) -> None:
    # koopcore.backends is a package, and the public function of the same name.
    code = f"import koopcore as kc\n{before}\nassert kc.available_backends()"
    assert run_python(code, tmp_path) == ""


def test_without_torch_attach_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import koopcore\n"
        "try:\n    koopcore.attach\nexcept ImportError as error:\n    print(error)"
    )
    assert 'pip install "koopcore[torch]"' in run_python(code, tmp_path)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = koopcore.no_such_name


@pytest.mark.parametrize(("directory", "other"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_cpu_and_cuda_sources_never_include_each_other(directory: str, other: str) -> None:
    csrc = ROOT / "csrc"
    wrong = [
        (path.relative_to(csrc).as_posix(), name)
        for path, name in includes()
        if path.relative_to(csrc).parts[0] == directory and name.startswith(f"{other}/")
    ]
    assert wrong == []


def test_shared_headers_depend_on_neither_cpu_nor_cuda() -> None:
    csrc = ROOT / "csrc"
    shared = [(p, name) for p, name in includes() if p.relative_to(csrc).parts[0] == "koopcore"]
    assert [(p.name, name) for p, name in shared if not name.startswith("koopcore/")] == []


WRITTEN = {".py", ".h", ".cpp", ".cu", ".cuh", ".md", ".toml", ".txt", ".json", ""}


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): text.count("\n")
        for path in tracked_files()
        if path.suffix in WRITTEN and "data" not in path.parts and "results" not in path.parts
        if (text := text_of(path)) is not None
    }
    assert lengths
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_the_source_files_of_the_package_are_short_on_the_median() -> None:
    lengths = sorted(p.read_text().count("\n") for p in PACKAGE.rglob("*.py"))
    assert lengths[len(lengths) // 2] <= 120


def test_no_file_names_a_path_of_some_machine() -> None:
    machine = re.compile(r"(?<![\w.~/-])/(?:work|tmp|home|root|Users)/\w")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked_files()
        if (text := text_of(path)) is not None
        for number, line in enumerate(text.splitlines(), 1)
        if machine.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("word", ["TO" + "DO", "FIX" + "ME", "pragma: no " + "cover"])
def test_nothing_is_left_for_later(word: str) -> None:
    found = [
        path.relative_to(ROOT).as_posix()
        for path in tracked_files()
        if path.suffix in WRITTEN and (text := text_of(path)) is not None
        if re.search(rf"\b{word}\b", text)
    ]
    assert found == []
