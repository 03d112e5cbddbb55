"""The command line: light to start, clear when misused, whole pictures or none, Ctrl-C is 130."""

import os
import signal
import subprocess
import sys
import time

import pytest

import koopcore
from koopcore import cli, info
from koopcore.backends import BackendInfo

QUICK = ["--steps", "30", "--networks", "2", "--window", "6", "--stride", "3", "--horizon", "4"]
HEAVY = {"torch", "cupy", "numba", "matplotlib"}


def call(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of ``koopcore ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["koopcore", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    text = capsys.readouterr()
    return end.value.code or 0, text.out, text.err


@pytest.fixture
def koopcore_command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


def test_the_command_line_starts_without_anything_heavy(tmp_path):
    code = f"import sys, koopcore.cli; print(*sorted(set(sys.modules) & {HEAVY}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_version_and_help_succeed(koopcore_command):
    assert koopcore_command("--version") == (0, f"koopcore {koopcore.__version__}\n", "")
    code, out, _ = koopcore_command("--help")
    assert code == 0
    assert "demo" in out
    assert "info" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--optimzer", "adam"], ["--optimzer", "--optimizer", "--partition", "--output"]),
        (["--optimizer", "adm"], ["'adm'", "adagrad", "adadelta", "adam"]),
        (["--partition", "node"], ["'node'", "network", "layers", "nodes", "weights"]),
        (["--model", "cubic"], ["'cubic'", "auto", "affine", "linear", "trend"]),
        (["--precision", "half"], ["'half'", "float32", "float64"]),
        (["--networks", "0"], ["--networks", "1"]),
        (["--networks", "many"], ["--networks", "integer"]),
        (["--window", "3"], ["--window", "4"]),
        (["--horizon", "0"], ["--horizon", "1"]),
        (["--output", "picture.bmp"], ["picture.bmp", ".png", ".pdf", ".svg"]),
        (["--output", "missing/picture.png"], ["missing", "directory"]),
        (["--output", "folder.png"], ["folder.png", "is a directory"]),
    ],
)
def test_misuse_is_named_with_what_is_accepted_before_any_training(
    koopcore_command, monkeypatch, tmp_path, arguments, named
):
    from koopcore.lab.demo import command as demo_command

    def no_training(*_arguments, **_options):
        raise AssertionError("training started")

    monkeypatch.setattr(demo_command, "run_demo", no_training)
    (tmp_path / "folder.png").mkdir()
    code, out, err = koopcore_command("demo", *arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    for word in named:
        assert word in err


def test_a_misspelt_command_is_refused(koopcore_command):
    code, _, err = koopcore_command("dmo")
    assert code == 2
    assert "dmo" in err


def run_without(missing, folder, *arguments):
    """The command in a process that cannot import the package ``missing``."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"sys.argv = {['koopcore', *arguments]}\n"
        "from koopcore.__main__ import main; main()"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("missing", ["torch", "matplotlib"])
def test_a_missing_extra_is_one_line_that_says_what_to_install(missing, tmp_path):
    done = run_without(missing, tmp_path, "demo")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr
    assert 'pip install "koopcore[demo]"' in done.stderr


def test_the_demo_writes_a_table_and_a_picture(koopcore_command, tmp_path):
    code, out, _ = koopcore_command(
        "demo", *QUICK, "--partition", "nodes", "--partition", "network", "--output", "a.png"
    )
    assert code == 0
    assert "window speed-up" in out
    assert "nodes" in out
    assert "network" in out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["a.png"]


def test_no_number_is_cut_on_a_narrow_terminal(koopcore_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    several = [w for o in ("adam", "adagrad", "adadelta") for w in ("--optimizer", o)]
    code, out, _ = koopcore_command("demo", *QUICK, *several, "--partition", "nodes")
    assert code == 0
    assert "…" not in out
    assert out.count(" %") == 3


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<?xml"), ("a.PDF", b"%PDF")])
def test_pictures_in_other_formats(koopcore_command, tmp_path, name, start):
    code, _, _ = koopcore_command("demo", *QUICK, "--output", name)
    assert code == 0
    assert (tmp_path / name).read_bytes().startswith(start)


def test_an_interrupted_write_leaves_the_old_picture_and_nothing_else(tmp_path):
    from koopcore.files import write_whole

    picture = tmp_path / "a.png"
    picture.write_bytes(b"old")

    def save(path):
        path.write_bytes(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(picture, save)
    assert picture.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]
    write_whole(picture, lambda path: path.write_bytes(b"new"))
    assert picture.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.png"]


ANNOUNCED = """
import sys
from koopcore.lab.demo import command as demo_command
original = demo_command.run_demo
def announced(settings, tick):
    print("training", flush=True)
    return original(settings, tick)
demo_command.run_demo = announced
sys.argv = ["koopcore", "demo", "--steps", "1000000"]
from koopcore.__main__ import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process there")
def test_control_c_ends_with_130_one_line_and_no_file(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", ANNOUNCED],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    time.sleep(0.3)  # into the training, which would take many minutes
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.strip() == ""
    assert err.strip() == "koopcore: interrupted; what was finished is kept"
    assert os.listdir(tmp_path) == []


def test_an_interrupt_before_the_command_has_begun_is_130_too(koopcore_command, monkeypatch):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    assert koopcore_command("info")[0] == 130


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_command_line_package_is_one_line_too(missing, tmp_path):
    done = run_without(missing, tmp_path, "demo", "--steps", "1")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr
    assert 'pip install "koopcore[demo]"' in done.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_info_needs_no_command_line_package(missing, tmp_path):
    done = run_without(missing, tmp_path, "info")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"koopcore {koopcore.__version__}")
    assert done.stderr == ""


def test_info_names_version_build_backends_and_threads(koopcore_command, monkeypatch):
    monkeypatch.setenv("KOOPCORE_NUM_THREADS", "3")
    code, out, _ = koopcore_command("info")
    assert code == 0
    assert f"koopcore {koopcore.__version__}" in out
    assert "Python 3." in out
    assert "3 threads" in out
    for backend in koopcore.available_backends():
        assert backend.name in out
        assert backend.available or backend.reason in out


def test_info_shows_what_runs_and_why_others_do_not(monkeypatch):
    found = [
        BackendInfo("cpu", "broken", False, "the compiler was on holiday", ()),
        BackendInfo("cpu", "fast", True, "", ("gram_solve",)),
        BackendInfo("cpu", "slow", True, "", ()),
        BackendInfo("cuda", "gpu", False, "no driver", ()),
    ]
    monkeypatch.setattr(koopcore, "available_backends", lambda: found)
    lines = [line.strip() for line in info.report().splitlines()]
    assert "cpu: fast" in lines
    assert "cuda: nothing" in lines
    assert any(x.startswith("broken") and "the compiler was on holiday" in x for x in lines)
    assert any(x.startswith("gpu") and "no driver" in x for x in lines)


def test_info_tells_of_a_module_that_was_not_built(monkeypatch):
    absent = {"built": False, "reason": "no compiler", "compiler": "", "instruction_sets": []}
    built = {**absent, "built": True, "compiler": "GNU 12", "instruction_sets": ["avx2", "avx512"]}
    for part, expected in ((absent, "cpu   not built: no compiler"), (built, "avx2, avx512 (GNU")):
        record = {"build_type": "Release", "cpu": part}
        monkeypatch.setattr("koopcore._native.build_record", lambda record=record: record)
        assert expected in info.report()


def test_the_help_of_every_reproduction_says_how_long_its_small_version_takes():
    from typer.main import get_command

    for name, command in get_command(cli.reproduce).commands.items():
        assert "--quick: " in command.help, name
