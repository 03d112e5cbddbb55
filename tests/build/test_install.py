"""The three ways to install koopcore, really done, and the ways in which a build must fail."""

import platform
import re
import shutil
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
from installation import NO_COMPILERS, ROOT, build_sdist, copy_source, install, run

from koopcore import _native

pytestmark = pytest.mark.slow

HAS_COMPILER = shutil.which("g++") is not None or shutil.which("clang++") is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="needs g++ or clang++ on PATH")

# Instruction sets that processors of this architecture may lack.
WIDE = ["avx2", "avx512"] if platform.machine() in {"x86_64", "AMD64"} else []

# Fits and predicts an exactly linear trajectory, x_{k+1} = 0.9 x_k, through the public API.
FIT = (
    "import numpy, koopcore\n"
    "x = 0.9 ** numpy.arange(8.0)[:, None] * numpy.arange(1.0, 23.0)\n"
    "layout = koopcore.Layout.from_shapes([(2, 10, True)])\n"
    "ops = koopcore.fit(x, koopcore.Partition.nodes(layout), model='linear')\n"
    "error = abs(ops.predict(5) - 0.9 ** 12 * numpy.arange(1.0, 23.0)).max()\n"
    # 22 * 0.9**12 is about 6; 1e-8 leaves seven digits for the rank-one fit in double precision.
    "assert error < 1e-8, error\n"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return copy_source(tmp_path_factory.mktemp("source") / "koopcore")


@pytest.fixture(scope="module")
def native(source, tmp_path_factory):
    # Without CUDA, which takes a minute more and has its own tests (test_cuda_build.py).
    return install(source, tmp_path_factory.mktemp("native"), {"CUDACXX": "/nonexistent"})


@pytest.fixture(scope="module")
def native_objects(native, tmp_path_factory):
    """The object files that `native` was linked from; a later install would remove them."""
    [built] = (native.source / "build").glob("temp.*/_skbuild/CMakeFiles")
    return Path(shutil.copytree(built, tmp_path_factory.mktemp("objects") / "CMakeFiles"))


@pytest.fixture(scope="module")
def pure(native_objects, source, tmp_path_factory):
    # Built after `native` in the same tree, whose build directory still holds the CPU module.
    return install(source, tmp_path_factory.mktemp("pure"), NO_COMPILERS)


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    return build_sdist(source, tmp_path_factory.mktemp("dist"))


def package_files(directory):
    return {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@needs_compiler
def test_with_a_compiler_the_cpu_module_is_built_and_used(native):
    where, cpu, record = native.facts()
    assert Path(where).parent == native.package
    assert cpu is not None, record
    assert Path(cpu[0]).parent == native.package / "_native"
    assert record["cpu"]["built"] is True
    assert record["cpu"]["reason"] == ""
    assert record["cpu"]["compiler"].split()[0] in {"GNU", "Clang", "AppleClang", "IntelLLVM"}
    assert cpu[1] in record["cpu"]["instruction_sets"]


def test_without_a_compiler_the_install_is_quiet_and_pure(pure):
    _, cpu, record = pure.facts()
    assert cpu is None
    assert record["cpu"]["built"] is False
    assert "no C++ compiler found" in record["cpu"]["reason"]
    assert record["cuda"]["built"] is False
    assert "no C++ compiler found" in record["cuda"]["reason"]
    assert "CMake Error" not in pure.output
    assert "CMake Warning" not in pure.output


def test_a_pure_install_holds_no_module_of_an_earlier_build(pure):
    compiled = [name for name in package_files(pure.package) if name.endswith((".so", ".pyd"))]
    assert compiled == []


@needs_compiler
def test_the_sdist_installs_with_the_cpu_module(sdist, tmp_path):
    # Unoptimised, which compiles faster: what is in question is whether the sources are complete.
    # The CUDA sources are the same files as in the source tree, and are compiled there.
    options = {"SKBUILD_CMAKE_BUILD_TYPE": "Debug", "SKBUILD_CMAKE_DEFINE": "KOOPCORE_CUDA=OFF"}
    environment = install(sdist, tmp_path / "env", options)
    _, cpu, record = environment.facts()
    assert cpu is not None, record
    assert record["build_type"] == "Debug"
    done = environment.python(FIT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["native", "pure"])
def test_every_install_fits_and_predicts(how, request):
    environment = request.getfixturevalue(how)
    done = environment.python(FIT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["native", "pure"])
def test_the_package_is_complete(how, request):
    environment = request.getfixturevalue(how)
    installed = package_files(environment.package)
    built = {name for name in installed if name.startswith(("_native/_cpu.", "_native/_cuda."))}
    expected = package_files(environment.source / "koopcore")
    assert installed - built == expected | {"_native/build.json"}


@pytest.mark.parametrize("how", ["native", "pure"])
def test_nothing_but_the_package_is_installed(how, request):
    environment = request.getfixturevalue(how)
    names = {path.name for path in environment.site_packages.iterdir()}
    assert names == {"borrowed.pth", "koopcore", "koopcore-0.1.0.dist-info"}


@needs_compiler
def test_the_wheel_is_tagged_for_this_python_and_platform(native):
    [wheel] = native.site_packages.glob("koopcore-*.dist-info/WHEEL")
    system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"Tag: {python}-{python}-{system}\n" in wheel.read_text(encoding="utf-8")
    assert "Root-Is-Purelib: false\n" in wheel.read_text(encoding="utf-8")


def test_the_sdist_holds_the_whole_source_tree(sdist, source):
    with tarfile.open(sdist) as archive:
        members = {
            Path(m.name).relative_to(sdist.name[: -len(".tar.gz")]).as_posix()
            for m in archive.getmembers()
            if m.isfile()
        }
    produced = {"build", "koopcore.egg-info"}
    tree = {n for n in package_files(source) if n.partition("/")[0] not in produced}
    # Only of use with the repository's history or in an editor.
    assert tree - members <= {".gitignore"}


@pytest.mark.parametrize("service", [False, True], ids=["here", "where releases are made"])
def test_the_metadata_of_a_release_lead_to_its_source(service, source, tmp_path, monkeypatch):
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    where = {
        "GITHUB_SERVER_URL": "https://example.invalid",
        "GITHUB_REPOSITORY": "owner/koopcore",
        "GITHUB_REF_NAME": "v9.9",
    }
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    done = run(command, source, where if service else {})
    assert done.returncode == 0, done.stdout + done.stderr
    written = (tmp_path / "koopcore.egg-info/PKG-INFO").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", written)
    assert len(links) > 20
    if service:
        assert "Project-URL: Source, https://example.invalid/owner/koopcore\n" in written
        assert "(https://example.invalid/owner/koopcore/raw/v9.9/docs/demo.png)" in written
        assert [link for link in links if not link.startswith("https://")] == []
    else:
        assert "(docs/demo.png)" in written
        assert "Project-URL" not in written
    assert "License-Expression: MIT AND CC-BY-SA-3.0\n" in written


def test_the_command_is_installed(native):
    done = run([str(native.scripts / "koopcore"), "info"], native.directory)
    assert done.returncode == 0, done.stderr
    assert "native_cpu" in done.stdout
    assert "numba_cpu" in done.stdout


def test_the_command_says_how_to_get_what_it_is_built_on(pure):
    done = pure.python(
        "import sys; sys.modules['typer'] = None\nfrom koopcore.__main__ import main; main()"
    )
    assert done.returncode == 1
    assert 'pip install "koopcore[demo]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_the_koopcore_under_test_has_the_cpu_module_that_was_built():
    # In the running environment: what every other test file imports.
    cpu = _native.build_record()["cpu"]
    if cpu["built"]:
        from koopcore._native import _cpu

        assert Path(_cpu.__file__).parent == Path(_native.__file__).parent
        assert set(_cpu.supported_isas()) <= set(cpu["instruction_sets"])
    else:
        assert cpu["reason"]
        assert list(Path(_native.__file__).parent.glob("_cpu.*")) == []


@pytest.mark.parametrize(
    ("search_path", "exit_code"),
    [("sys.path.pop(0)", pytest.ExitCode.OK), ("pass", pytest.ExitCode.USAGE_ERROR)],
    ids=["installed", "shadowed"],
)
def test_the_test_run_refuses_a_source_tree_that_shadows_the_installed_package(
    pure, search_path, exit_code
):
    # With `python -m pytest`, as with -c here, the working directory heads the search path.
    code = (
        f"import sys; {search_path}; import pytest\n"
        "sys.exit(pytest.main(['tests/test_architecture.py', '-k', 'unknown_name']))"
    )
    done = run([str(pure.scripts / "python"), "-c", code], pure.source)
    assert done.returncode == exit_code, done.stdout + done.stderr
    if exit_code == pytest.ExitCode.OK:
        assert f"at {pure.package.resolve()}" in done.stdout
    else:
        assert f"koopcore is imported from {pure.source.resolve()}" in done.stderr


def configure(source, build, *options, **env):
    command = ["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", *options]
    return run([*command, f"-DPython_EXECUTABLE={sys.executable}"], source, env)


@pytest.mark.parametrize(
    ("options", "env", "message"),
    [
        (["-DKOOPCORE_CPU=ON"], NO_COMPILERS, "KOOPCORE_CPU=ON, but no C++ compiler found"),
        (["-DKOOPCORE_CUDA=ON"], NO_COMPILERS, "KOOPCORE_CUDA=ON, but no C++ compiler found"),
        (
            ["-DKOOPCORE_CUDA=ON", "-DKOOPCORE_CPU=OFF"],
            {"CUDACXX": "/nonexistent"},
            "KOOPCORE_CUDA=ON, but no CUDA compiler found",
        ),
        (["-DKOOPCORE_CUDA=1"], {}, "KOOPCORE_CUDA is '1'; accepted are AUTO, ON, OFF and LIBRARY"),
        (["-DKOOPCORE_CPU=YES"], {}, "KOOPCORE_CPU is 'YES'; accepted are AUTO, ON and OFF"),
    ],
)
def test_a_build_that_cannot_do_what_was_asked_says_so(options, env, message, tmp_path):
    done = configure(ROOT, tmp_path, *options, **env)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())


def test_switched_off_needs_no_compiler_and_builds_nothing(tmp_path):
    off = ("-DKOOPCORE_CPU=OFF", "-DKOOPCORE_CUDA=OFF")
    done = configure(ROOT, tmp_path, *off, **NO_COMPILERS)
    assert done.returncode == 0, done.stderr
    record = (tmp_path / "build.json").read_text()
    assert "switched off (KOOPCORE_CPU=OFF)" in record
    assert "switched off (KOOPCORE_CUDA=OFF)" in record


@needs_compiler
def test_broken_code_fails_the_build_even_under_auto(source, tmp_path):
    broken = copy_source(tmp_path / "koopcore")
    with (broken / "csrc/cpu/isa.cpp").open("a", encoding="utf-8") as file:
        file.write("#error deliberately broken\n")
    assert configure(broken, tmp_path / "build").returncode == 0
    one_object = "CMakeFiles/_cpu.dir/csrc/cpu/isa.cpp.o"
    build = ["cmake", "--build", str(tmp_path / "build"), "--target", one_object]
    done = run(build, tmp_path)
    assert done.returncode != 0
    assert "deliberately broken" in done.stdout + done.stderr


@needs_compiler
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm (binutils)")
def test_no_wide_code_can_leak_into_the_portable_path(native_objects):
    # The linker keeps one copy of each weak symbol (inline functions, templates). A copy compiled
    # for AVX-512 would then also serve processors without it, so weak symbols that are not in the
    # namespace of their instruction set must not leave the objects compiled with wide flags.
    for isa in WIDE:
        objects = sorted((native_objects / f"cpu_{isa}.dir").rglob("*.o"))
        assert objects
        symbols = run(["nm", "--defined-only", "--demangle", *map(str, objects)], native_objects)
        shared = [
            line
            for line in symbols.stdout.splitlines()
            if line[17:18] in {"W", "V", "u"} and f"::{isa}::" not in line
        ]
        assert shared == []
