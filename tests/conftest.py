"""What every test run needs: one unambiguous koopcore under test, and the rule for GPU tests."""

import ctypes
import os
from importlib import metadata
from pathlib import Path

import hypothesis
import pytest

import koopcore

UNDER_TEST = Path(koopcore.__file__).resolve().parent

# The same examples in every run, and how to make a failing one again. HYPOTHESIS_PROFILE=search
# draws others each time.
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, print_blob=True, database=None
)
hypothesis.settings.register_profile("search", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def _installed_package():
    """Where the installed koopcore's package directory is; None for an editable or no install."""
    for distribution in metadata.distributions(name="koopcore"):
        # A source tree can hold an egg-info, which is not an installation.
        if distribution.read_text("WHEEL") is None:
            continue
        for file in distribution.files or []:
            if file.as_posix() == "koopcore/__init__.py":
                return Path(str(file.locate())).resolve().parent
        return None
    return None


def _cpu_module():
    try:
        from koopcore._native import _cpu
    except ImportError:
        from koopcore._native import build_record

        return f"no native CPU module: {build_record()['cpu']['reason']}"
    return f"native CPU module, {_cpu.isa()}"


def pytest_terminal_summary(terminalreporter):
    # A quiet run prints no header, and which koopcore was tested must not depend on verbosity.
    terminalreporter.write_line(f"tested: koopcore {koopcore.__version__} at {UNDER_TEST}")
    terminalreporter.write_line(f"        {_cpu_module()}")


def pytest_configure():
    # Child processes of tests shall import that same koopcore, not one from the working directory
    # (Python 3.10 does not know this variable; tests there rely on their own working directory).
    os.environ["PYTHONSAFEPATH"] = "1"
    # A source tree has no compiled module unless it was built in place. Testing it while a built
    # package is installed would quietly test less than what users run.
    installed = _installed_package()
    if installed not in {None, UNDER_TEST}:
        raise pytest.UsageError(
            f"koopcore is imported from {UNDER_TEST}, but {installed} is installed; "
            "run pytest (not python -m pytest) without PYTHONPATH, or install with -e"
        )


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    """The module _cuda as the host emulation has it; compiled once, in half a minute."""
    import emulated_cuda

    return emulated_cuda.compiled(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="session")
def two_float(tmp_path_factory):
    """The same as GPUs without fast fp64 have it: sums of Gram matrices in pairs of floats."""
    import emulated_cuda

    return emulated_cuda.compiled_without_fast_double(tmp_path_factory.mktemp("two_float"))


@pytest.fixture
def _host_as_device(monkeypatch):
    """NumPy arrays stand for arrays of a device."""
    import emulated_cuda

    from koopcore import arrays

    for name in ("memory", "any_memory"):
        monkeypatch.setattr(arrays, name, emulated_cuda.host_memory)
    monkeypatch.setattr(arrays, "where", lambda array: "CUDA device 0")


@pytest.fixture
def native(kernels, _host_as_device):
    """native_cuda on NumPy arrays."""
    import emulated_cuda

    return emulated_cuda.backend(kernels)


@pytest.fixture
def native_two_float(two_float, _host_as_device):
    """The same as GPUs without fast fp64 have it."""
    import emulated_cuda

    return emulated_cuda.backend(two_float)


def cuda_device_count():
    """CUDA devices that the driver reports: 0 without a driver, whatever was built or installed."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def pytest_collection_modifyitems(items):
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items or cuda_device_count() > 0:
        return
    if os.environ.get("KOOPCORE_REQUIRE_GPU") == "1":
        raise pytest.UsageError(
            f"KOOPCORE_REQUIRE_GPU=1, but the CUDA driver reports no device; "
            f"{len(gpu_items)} selected tests need one"
        )
    for item in gpu_items:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device; the driver reports none"))
