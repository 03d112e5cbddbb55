"""ThreadSanitizer on the host teams: clean, and able to see a race where there is one."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("g++")
# Address layouts of some kernels are too random for the sanitizer's shadow memory.
STEADY = [] if shutil.which("setarch") is None else ["setarch", platform.machine(), "-R"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="needs g++")]


@pytest.fixture(scope="module")
def teams(tmp_path_factory):
    """The program tests/backends/thread_teams.cpp, instrumented."""
    out = tmp_path_factory.mktemp("teams") / "teams"
    sources = [ROOT / "tests/backends/thread_teams.cpp", ROOT / "csrc/cpu/threads.cpp"]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", f"-I{ROOT / 'csrc'}", "-pthread"]
    done = subprocess.run(
        [COMPILER, *flags, *map(str, sources), "-o", str(out)], capture_output=True, text=True
    )
    if "cannot find -ltsan" in done.stderr or "libtsan" in done.stderr:
        pytest.skip("needs the library of ThreadSanitizer (libtsan)")
    assert done.returncode == 0, done.stderr
    return out


def run(teams, *arguments):
    command = [*STEADY, str(teams), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "unexpected memory mapping" in done.stderr or "personality" in done.stderr:
        pytest.skip("the sanitizer's shadow memory does not fit this kernel's address layout")
    return done


def test_teams_are_clean(teams):
    done = run(teams)
    assert "WARNING: ThreadSanitizer" not in done.stderr, done.stderr[:3000]
    assert done.returncode == 0
    assert done.stdout == "0 wrong\n"


def test_a_race_would_be_seen(teams):
    done = run(teams, "race")
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
