"""The GPU report where there is no GPU: what it says, what it would run, how it reckons."""

import json
import subprocess
import sys

import gpu_report
import pytest
import torch
from gpu_times import cholesky, pinv
from trajectories import generic

import koopcore as kc
from koopcore.partition.partition import Partition


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="no nvidia-smi on PATH"):
        gpu_report.card()


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
def test_a_driver_without_a_card(tmp_path, monkeypatch, text, code):
    stand_in(tmp_path, monkeypatch, text, code)
    with pytest.raises(SystemExit, match="nvidia-smi reports no GPU"):
        gpu_report.card()


def test_the_whole_report_with_every_step_left_out(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "NVIDIA X 1, 9.0")
    monkeypatch.setattr(
        sys, "argv", ["gpu_report", "--output", str(tmp_path), "--skip", *gpu_report.STEPS]
    )
    assert gpu_report.main() == 0
    report = json.loads((tmp_path / "gpu-nvidia-x-1.json").read_text())
    assert report["card"] == "NVIDIA X 1"
    assert report["compute_capability"] == "90"


def test_it_builds_for_the_card_and_demands_the_gpu(monkeypatch):
    commands = gpu_report.commands("90")
    assert "-DCMAKE_CUDA_ARCHITECTURES=90" in commands["build"][0]
    assert "-DKOOPCORE_CUDA=ON" in commands["build"][0]
    assert commands["tests"] == [["pytest", "-m", "gpu", "tests"]]
    # Without compute-sanitizer there is nothing to run, but the tests it would run are there.
    monkeypatch.setattr(gpu_report.shutil, "which", lambda name: name)
    for line in gpu_report.commands("90")["sanitizer"]:
        assert all((gpu_report.ROOT / word).exists() for word in line if word.startswith("tests/"))
    assert len(commands["sanitizer"]) in {0, len(gpu_report.SANITIZERS)}


@pytest.mark.parametrize(
    ("code", "seconds", "passed", "exit_code"),
    [("print(1)", 20.0, True, 0), ("raise SystemExit(3)", 20.0, False, 3),
     ("import time; print(1, flush=True); time.sleep(30)", 1.5, False, 124)],
    ids=["passes", "fails", "takes too long"],
)  # fmt: skip
def test_a_step_ends_in_time_and_says_how(code, seconds, passed, exit_code):
    done = gpu_report.step([sys.executable, "-c", code], seconds)
    assert done["passed"] is passed
    assert done["exit_code"] == exit_code
    assert done["seconds"] < 20.0


def test_the_steps_leave_time_for_each_other():
    assert sum(gpu_report.MOST.values()) > gpu_report.LIMIT  # bounded by what is left, not by this
    assert max(gpu_report.MOST.values()) < gpu_report.LIMIT / 2


def test_floors_and_memory():
    w1, w2, w3 = gpu_report.NAMED
    # 10,000 groups of 65 parameters, 16 snapshots read and one prediction written.
    assert w1.read_bytes == 10_000 * 65 * 16 * 4
    assert w1.floor_bytes == 10_000 * 65 * 17 * 4
    assert [gpu_report.fits(w, 2**31) for w in (w1, w2, w3)] == [True, False, False]
    assert all(gpu_report.fits(w, 40 * 2**30) for w in (*gpu_report.NAMED, *gpu_report.SWEEP))


def test_the_table():
    result = {"name": "W1", "floor_seconds": 1e-5,
              "seconds": {"koopcore": 2e-5, "in_stages": 3e-5, "torch_cholesky": 4e-4}}  # fmt: skip
    lines = gpu_report.rows([result])
    assert lines[1] == ["W1", "10", "20", "2", "3", "-", "20x", "-", "-"]
    assert len({len(line) for line in gpu_report.table(lines).splitlines()}) == 1
    assert gpu_report.ratio(1.0, None) is None


@pytest.mark.parametrize("method", [cholesky, pinv])
def test_the_methods_it_compares_with_predict_the_same(method):
    workload = gpu_report.Workload("small", 3, 20, 6, 4)
    x = torch.from_numpy(generic(6, 60)).float()
    part = Partition.groups(60, [range(20 * g, 20 * g + 20) for g in range(3)])
    expected = kc.fit(x, part).predict(4)
    torch.testing.assert_close(method(x, workload), expected, rtol=1e-4, atol=1e-4)


def test_its_help_needs_no_gpu():
    path = gpu_report.ROOT / "benchmarks/gpu_report.py"
    done = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "sanitizer" in done.stdout
