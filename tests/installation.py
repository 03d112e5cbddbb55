"""Real installations of koopcore into throw-away virtual environments, for test_install.py."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NO_COMPILERS = {"CXX": "/nonexistent", "CUDACXX": "/nonexistent"}

# Not part of the project: what builds, caches and version control leave in a checkout.
_LEFTOVERS = shutil.ignore_patterns(
    *(".git", ".venv", ".*_cache", ".hypothesis", ".benchmarks", "__pycache__"),
    *("build", "dist", "*.egg-info", "*.so", "*.pyd", "*.dylib", "build.json"),
)


def copy_source(destination: Path) -> Path:
    """A copy of the source tree as a fresh clone would have it, safe to build in."""
    shutil.copytree(ROOT, destination, ignore=_LEFTOVERS)
    return destination


def run(
    command: list[str], cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end, output captured; compilers and Python paths of the caller do not leak in."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in {"CXX", "CXXFLAGS", "CUDACXX", "CMAKE_ARGS", "KOOPCORE_ISA"}
        and not key.startswith(("SKBUILD", "PYTHON"))
    }
    # One architecture: six take minutes, and what is in question is the way to the module.
    inherited.setdefault("CUDAARCHS", "90")
    return subprocess.run(
        command, cwd=cwd, env={**inherited, **(env or {})}, capture_output=True, text=True
    )


@dataclass(frozen=True)
class Environment:
    """A virtual environment that has koopcore for itself and sees the rest of the running one."""

    directory: Path
    source: Path
    output: str

    @property
    def site_packages(self) -> Path:
        scheme = {"base": str(self.directory), "platbase": str(self.directory)}
        return Path(sysconfig.get_path("platlib", "venv", scheme))

    @property
    def package(self) -> Path:
        return self.site_packages / "koopcore"

    @property
    def scripts(self) -> Path:
        return self.directory / ("Scripts" if os.name == "nt" else "bin")

    def python(self, code: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run code away from any source tree, so that only the installed koopcore is found."""
        return run([str(self.scripts / "python"), "-c", code], self.directory, env)

    def facts(self) -> Any:
        """Where koopcore and its CPU module are imported from, and the record of the build."""
        done = self.python(
            "import json, koopcore\n"
            "from koopcore import _native\n"
            "try:\n"
            "    from koopcore._native import _cpu\n"
            "except ImportError:\n"
            "    cpu = None\n"
            "else:\n"
            "    cpu = [_cpu.__file__, _cpu.isa()]\n"
            "print(json.dumps([koopcore.__file__, cpu, _native.build_record()]))"
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def install(what: Path, directory: Path, env: dict[str, str] | None = None) -> Environment:
    """pip install a source tree or an sdist, without network, into a new virtual environment."""
    venv.EnvBuilder(with_pip=False).create(directory)
    environment = Environment(directory, what, "")
    # The build tools, NumPy, Numba and pip itself come from the running environment. A .pth line
    # appends to the search path, so the koopcore installed here wins over one installed there.
    borrowed = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    pth = environment.site_packages / "borrowed.pth"
    pth.write_text("\n".join(dict.fromkeys(borrowed)) + "\n", encoding="utf-8")
    done = run(
        [
            *(str(environment.scripts / "python"), "-m", "pip", "install", "--verbose"),
            *("--no-deps", "--no-index", "--no-build-isolation", str(what)),
        ],
        directory,
        # Ninja and CMake of the running environment.
        {"PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"], **(env or {})},
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return Environment(directory, what, output)


def build_sdist(source: Path, destination: Path) -> Path:
    """The source distribution, through the build backend's own hook (what pip and build call)."""
    hook = "from scikit_build_core.setuptools.build_meta import build_sdist as b; b({!r})"
    done = run([sys.executable, "-c", hook.format(str(destination))], source)
    assert done.returncode == 0, done.stdout + done.stderr
    [archive] = destination.glob("koopcore-*.tar.gz")
    return archive
