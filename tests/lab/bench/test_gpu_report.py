"""The GPU report where there is no GPU: what it says, what it would run, how it reckons."""

import json
import os
import signal
import subprocess
import sys
import time

import emulated_cuda
import gpu_report
import gpu_times
import numpy as np
import pytest

from koopcore.backends.native_cuda.cost import Costs

needs_compiler = pytest.mark.skipif(emulated_cuda.COMPILER is None, reason="needs g++")


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        gpu_report.card()
    assert ended.value.code == 2
    assert "no nvidia-smi on PATH" in capsys.readouterr().err


def stand_in(tmp_path, monkeypatch, text, code=0):
    """An nvidia-smi that prints ``text``."""
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!{sys.executable}\nimport sys\nprint({text!r})\nsys.exit({code})\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_the_card_is_read(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "NVIDIA H100 80GB HBM3, 9.0")
    assert gpu_report.card() == ("NVIDIA H100 80GB HBM3", "90")


@pytest.mark.parametrize(("text", "code"), [("", 0), ("NVIDIA-SMI has failed", 9)])
def test_a_driver_without_a_card(tmp_path, monkeypatch, capsys, text, code):
    stand_in(tmp_path, monkeypatch, text, code)
    with pytest.raises(SystemExit) as ended:
        gpu_report.card()
    assert ended.value.code == 2
    assert "nvidia-smi reports no GPU" in capsys.readouterr().err


def test_a_torch_that_sees_no_gpu_ends_it(tmp_path, monkeypatch, capsys):
    stand_in(tmp_path, monkeypatch, "NVIDIA X 1, 9.0")
    monkeypatch.setattr(sys, "argv", ["gpu_report", "--output", str(tmp_path)])
    monkeypatch.setattr(gpu_report, "torch_sees_it", lambda: False)
    assert gpu_report.main() == 3
    assert "no torch that sees the GPU" in capsys.readouterr().err
    assert list(tmp_path.glob("*.json")) == []


def rehearsal(kernels, output, *more):
    """The command, on the emulated device."""
    report = gpu_report.ROOT / "benchmarks/gpu_report.py"
    return [sys.executable, str(report), "--rehearse", kernels.__file__, "--output", str(output),
            *more]  # fmt: skip


@needs_compiler
def test_a_rehearsal_runs_to_its_end_and_leaves_what_was_done_when_killed(kernels, tmp_path):
    path = tmp_path / "gpu-rehearsal.json"
    with subprocess.Popen(
        rehearsal(kernels, tmp_path), stdout=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        until = time.monotonic() + 120.0
        while not path.exists() or len(json.loads(path.read_text())["items"]) < 3:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    killed = json.loads(path.read_text())
    assert killed["finished"] is False
    assert all(done["passed"] for done in killed["items"].values())
    assert killed["items"]["own: endpoint W1"]["result"]["seconds"]["endpoint"]["python"] > 0

    done = subprocess.run(rehearsal(kernels, tmp_path), capture_output=True, text=True)
    report = json.loads(path.read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["finished"] is True
    planned = gpu_report.plan("90", kernels.__file__)
    assert list(report["items"]) == [f"{item.part}: {item.name}" for item in planned]
    assert not any("left_out" in item for item in report["items"].values())
    for name in gpu_report.OWN[2:5]:
        result = report["items"][f"own: {name}"]["result"]
        assert set(result["seconds"]) == {"endpoint", "stages", "one pass"}
        assert result["error endpoint"] < 1e-4
    costs = report["items"]["own: costs"]["result"]
    assert set(costs["costs"]) == set(Costs._fields)
    assert len(costs["timings"]) == 4
    for name in gpu_report.PEERS[:2]:
        assert f"peers: {name}" in done.stdout


def test_every_timing_of_the_plan_exists():
    for rehearse in (None, "module"):
        for item in gpu_report.plan("90", rehearse):
            if gpu_report.TIMES in item.command:
                name = item.command[item.command.index(gpu_report.TIMES) + 1]
                assert name in gpu_times.items(rehearsed=False)
    names = {item.name for item in gpu_report.plan("90", None)}
    assert set(gpu_times.items(False)) - {"sanitized"} <= names


def test_it_builds_for_the_card_alone_and_demands_it():
    configure, _, test = gpu_report.plan("90", None)[:3]
    assert "-DCMAKE_CUDA_ARCHITECTURES=90-real" in configure.command
    assert "-DKOOPCORE_CUDA=ON" in configure.command
    assert test.environment == {"KOOPCORE_REQUIRE_GPU": "1"}
    assert (gpu_report.ROOT / next(w for w in test.command if w.startswith("tests/"))).exists()


def test_a_wrong_result_is_no_pass():
    for printed, passed in (("0.001", True), ("0.5", False), ("NaN", False)):
        line = f"print('{{\"error endpoint\": {printed}}}')"
        item = gpu_report.Item("own", "x", [sys.executable, "-c", line], 20.0, {}, True)
        done = gpu_report.run(item, 20.0)
        assert done["passed"] is passed
        assert "result" in done


def test_the_error_that_is_reported_sees_a_wrong_prediction():
    of = gpu_times.Workload(20, 65, 16, 20)

    class Host:
        random = staticmethod(lambda *shape: generator.normal(size=shape).astype(np.float32))
        empty = staticmethod(lambda *shape: np.empty(shape, np.float32))
        host = staticmethod(np.asarray)

    generator = np.random.default_rng(0)
    part, window = gpu_times.partition(of), gpu_times.ring(Host, of)
    right = gpu_times.kc.fit(window, part, backend="reference").predict(of.horizon)
    assert gpu_times.error(Host, window, right, of, part) < 1e-6
    wrong = right + 0.1 * (right - window[-1])
    assert gpu_times.error(Host, window, wrong, of, part) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("code", "seconds", "passed", "exit_code"),
    [("print(1)", 20.0, True, 0), ("raise SystemExit(3)", 20.0, False, 3),
     ("import time; print(1, flush=True); time.sleep(30)", 1.5, False, 124)],
    ids=["passes", "fails", "takes too long"],
)  # fmt: skip
def test_an_item_ends_in_time_and_says_how(code, seconds, passed, exit_code):
    item = gpu_report.Item("own", "x", [sys.executable, "-c", code], seconds, {}, False)
    done = gpu_report.run(item, seconds)
    assert done["passed"] is passed
    assert done["exit_code"] == exit_code
    assert done["wall_seconds"] < 20.0
    assert passed or done["last_lines"] == ([] if exit_code == 3 else ["1"])


def test_what_a_kind_of_item_may_take_leaves_time_for_the_others():
    assert sum(gpu_report.PARTS.values()) <= gpu_report.LIMIT + 40  # bounded by what is left too
    assert max(gpu_report.PARTS.values()) < gpu_report.LIMIT / 2


def test_floors():
    # 10,000 groups of 65 parameters, 16 snapshots read and one prediction written.
    assert gpu_times.NAMED["W1"].floor_bytes == 10_000 * 65 * 17 * 4


def test_the_table():
    items = {
        "own: copy": {"passed": True, "result": {"seconds": {"copy": {"graph": 1e-3}},
                                                 "floor_bytes": 1e9}},
        "own: endpoint W1": {"passed": True, "result": {
            "seconds": {"endpoint": {"graph": 2e-5, "python": 4e-5}, "stages": {"python": 1e-4}},
            "floor_bytes": 1e7}},
        "own: capture": {"passed": False, "exit_code": 124},
    }  # fmt: skip
    _, _, first, second, failed = map(str.split, gpu_report.table({"items": items}).splitlines())
    assert first == ["own:", "endpoint", "W1", "endpoint", "20", "40", "2"]
    assert second == ["own:", "endpoint", "W1", "stages", "-", "100", "10"]
    assert failed == ["own:", "capture", "FAILED", "(124)"]
