"""The code is as docs/architecture.md draws it: who may import whom, and what an import costs."""

import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from source_tree import PACKAGE, ROOT, includes, package_imports, text_of, tracked_files

import koopcore

PAGE = ROOT / "docs/architecture.md"
USES_TORCH = {"torch_ops", "training", "learning", "lab"}
HEAVY = ("torch", "cupy", "numba")
CROWD = 14  # modules of one folder, its __init__ not counted

IMPORTS = package_imports()


def rooms():
    """Room -> rooms that it may import, from the table of the page."""
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \|([^|]*)\|$", PAGE.read_text(), re.MULTILINE)
    return {room: set(re.findall(r"`(\w+)`", allowed)) for room, allowed in rows}


def room_of(module):
    """koopcore.training.settings -> training; koopcore itself -> the empty string."""
    return module.removeprefix("koopcore").lstrip(".").partition(".")[0]


def internal(imports=IMPORTS):
    return [i for i in imports if i.target == "koopcore" or i.target.startswith("koopcore.")]


def backend_of(module):
    """koopcore.backends.numba.gram -> numba; modules of the seam -> the empty string."""
    name = module.removeprefix("koopcore.backends").lstrip(".").partition(".")[0]
    return name if name in {"reference", "numba", "native_cpu", "native_cuda", "cupy"} else ""


def test_the_table_names_every_room_and_no_other():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(rooms()) == files | folders


def test_the_table_is_in_the_order_of_the_floors():
    """A room stands below all that it may import, so that no arrow runs back up."""
    above = set()
    for room, allowed in rooms().items():
        assert allowed <= above, room
        above.add(room)


def test_rooms_import_what_the_table_allows():
    allowed = rooms()
    wrong = [
        i
        for i in internal()
        if (source := room_of(i.source)) != (target := room_of(i.target))
        # The package itself is below everything: its module-level code imports nothing.
        and target != ""
        and (source == "" or target not in allowed[source])
    ]
    assert wrong == []


def test_the_table_allows_nothing_that_nobody_imports():
    used = {(room_of(i.source), room_of(i.target)) for i in internal()}
    assert {(a, b) for a, allowed in rooms().items() for b in allowed} <= used


def test_no_module_imports_itself_in_a_circle():
    """Imports inside functions and for types count: a circle is a question about the design."""
    graph = {}
    for i in internal(package_imports(typing=True)):
        if "koopcore" not in (i.source, i.target) and i.source != i.target:
            graph.setdefault(i.source, set()).add(i.target)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_folder_is_a_crowd():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    count = {
        folder.relative_to(ROOT).as_posix(): len([*folder.glob("[!_]*.py")]) for folder in folders
    }
    assert {name: n for name, n in count.items() if n > CROWD} == {}


def test_backends_never_import_each_other():
    pairs = [(backend_of(i.source), backend_of(i.target), i) for i in internal()]
    assert [i for a, b, i in pairs if a and b and a != b] == []


def test_torch_is_imported_by_its_rooms_only():
    at_import = [i for i in IMPORTS if i.target.partition(".")[0] == "torch" and not i.deferred]
    assert [i for i in at_import if room_of(i.source) not in USES_TORCH] == []


def run_python(code, directory):
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
def test_importing_koopcore_imports_nothing_heavy(statement, tmp_path):
    code = f"import sys\n{statement}\nprint(*sorted(set(sys.modules) & {set(HEAVY)}))"
    assert run_python(code, tmp_path) == ""


def test_nothing_but_public_names_is_listed():
    assert dir(koopcore) == sorted(koopcore.__all__)


@pytest.mark.parametrize("name", koopcore.__all__)
def test_every_public_name_resolves_and_is_listed(name, tmp_path):
    assert name in dir(koopcore)
    code = f"import koopcore, types; value = koopcore.{name}; "
    code += "print(callable(value) or isinstance(value, types.ModuleType) or value)"
    expected = koopcore.__version__ if name == "__version__" else "True"
    assert run_python(code, tmp_path) == expected


def test_without_torch_attach_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import koopcore\n"
        "try:\n    koopcore.attach\nexcept ImportError as error:\n    print(error)"
    )
    assert 'pip install "koopcore[torch]"' in run_python(code, tmp_path)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = koopcore.no_such_name


@pytest.mark.parametrize(("directory", "other"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_cpu_and_cuda_sources_never_include_each_other(directory, other):
    csrc = ROOT / "csrc"
    wrong = [
        (path.relative_to(csrc).as_posix(), name)
        for path, name in includes()
        if path.relative_to(csrc).parts[0] == directory and name.startswith(f"{other}/")
    ]
    assert wrong == []


def test_shared_headers_depend_on_neither_cpu_nor_cuda():
    csrc = ROOT / "csrc"
    shared = [(p, name) for p, name in includes() if p.relative_to(csrc).parts[0] == "algorithms"]
    assert [(p.name, name) for p, name in shared if not name.startswith("algorithms/")] == []


WRITTEN = {".py", ".h", ".cpp", ".cu", ".cuh", ".md", ".toml", ".txt", ".json", ""}


def test_no_file_names_a_path_of_some_machine():
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
def test_nothing_is_left_for_later(word):
    found = [
        path.relative_to(ROOT).as_posix()
        for path in tracked_files()
        if path.suffix in WRITTEN and (text := text_of(path)) is not None
        if re.search(rf"\b{word}\b", text)
    ]
    assert found == []
