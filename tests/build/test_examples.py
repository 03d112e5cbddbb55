"""The examples run, and do what they claim."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import environment

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_attach_reaches_a_lower_loss_than_plain_training(capsys):
    losses = load("attach").main(steps=600)
    assert losses["koopcore"] < losses["plain"] / 2  # 10 times and more; a factor 2 is no accident
    assert "accepted: koopman" in capsys.readouterr().out


def test_the_hand_written_loop_reaches_a_lower_loss_than_plain_training(capsys):
    example = load("hand_written_loop")
    assert example.main(steps=600) < example.main(steps=600, jumps=False) / 2
    assert "0 jumps" in capsys.readouterr().out


def test_gradients_through_a_prediction_tune_the_rate(capsys):
    first, last = load("hypergradient").main(rounds=20)
    assert last < first / 5  # 2.3e-1 to 1.5e-2: the prediction is exact, and so is its gradient
    assert "predicted" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "package", "length"),
    [
        ("lightning_trainer", "lightning", 300),
        ("hugging_face_trainer", "transformers", 60),
        ("peft_lora", "peft", 500),
    ],
)
def test_runs_of_frameworks_reach_a_lower_loss_with_koopcore(name, package, length):
    pytest.importorskip(package)
    losses = load(name).main(length)
    assert losses["koopcore"] < losses["plain"] / 2


def test_a_sharded_run_jumps_and_goes_on_from_its_shards():
    torchrun = "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    ran = subprocess.run(
        [sys.executable, *torchrun, EXAMPLES / "fsdp2.py", "120"],
        env={**environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    plain, jumping, resumed = map(float, re.findall(r"\d\.\d+e[-+]\d+", ran.stdout)[:3])
    assert jumping < 0.8 * plain
    assert resumed == jumping


def test_the_wake_of_a_cylinder_is_forecast(tmp_path):
    found = load("dmd_cylinder_wake").main(str(tmp_path / "wake.png"))
    assert (tmp_path / "wake.png").stat().st_size > 10_000
    assert 0.15 < found["strouhal"] < 0.35  # narrow channel: above the 0.165 of a free stream
    assert found["error"] < found["still"] / 4


def test_the_background_of_a_video_is_found(tmp_path):
    found = load("dmd_video").main(str(tmp_path / "video.png"))
    assert (tmp_path / "video.png").stat().st_size > 10_000
    assert found["background"] < 0.08  # a trace of the path remains in its mode
    assert found["overlap"] > 0.8


def test_loose_machines_are_found_among_thousands(tmp_path):
    found = load("dmd_sensors").main(str(tmp_path / "sensors.png"))
    assert (tmp_path / "sensors.png").stat().st_size > 10_000
    assert found["named and loose"] > 0.97
    assert found["named and sound"] <= 2
