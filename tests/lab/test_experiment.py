"""The framework of the experiments: cells kept and resumed, settings checked, the commands."""

import json
import math
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from koopcore import cli
from koopcore.lab import experiment
from koopcore.lab.experiment import Cell, packed, unpacked
from koopcore.lab.experiments import glycolysis

MNIST = ("table2", "figure3", "end-to-end-mnist")
COMMANDS = (
    *MNIST,
    "table1",
    "figure2",
    "end-to-end",
    "end-to-end-small",
    "van-der-pol",
    "glycolysis",
)


class Sums:
    """An experiment of three cells, the last of which needs the first."""

    def __init__(self):
        self.done = []
        self.failing = None
        self.offset = 0

    def settings(self, quick, scale=1):
        return {"offset": self.offset, "count": 1 if quick else 2, "scale": scale}

    def cells(self, settings):
        def work(name, value):
            def compute(context):
                if name == self.failing:
                    raise KeyboardInterrupt
                context.tick()
                self.done.append(name)
                return {"value": value + sum(r["value"] for r in context.results.values())}

            return compute

        needs = {"a": (), "b": (), "c": ("a",)}
        return [Cell(n, 1, work(n, v), needs[n]) for v, n in enumerate(needs, start=1)]

    def table(self, results, settings):
        return f"{len(results)} cells"


@pytest.fixture
def sums(monkeypatch):
    experiment = Sums()
    monkeypatch.setitem(sys.modules, "koopcore.lab.experiments.three_sums", experiment)
    return experiment


def run_sums(folder, **options):
    return experiment.run("three-sums", output=folder, **options)


def results_in(folder, name="three-sums"):
    return json.loads((folder / f"{name}.json").read_text())["results"]


def test_results_say_how_they_were_made(sums, tmp_path):
    contents = json.loads(run_sums(tmp_path / "new").read_text())
    assert contents["command"] == "koopcore reproduce three-sums"
    assert contents["settings"] == {"offset": 0, "count": 2, "scale": 1}
    assert [r["value"] for r in contents["results"].values()] == [1, 3, 7]
    assert {"koopcore", "torch", "numpy", "python"} <= set(contents)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["three-sums.json"]


def test_options_are_settings_and_part_of_the_command(sums, tmp_path):
    contents = json.loads(run_sums(tmp_path, quick=True, scale=3).read_text())
    assert contents["command"] == "koopcore reproduce three-sums --quick --scale 3"
    assert contents["settings"] == {"offset": 0, "count": 1, "scale": 3}
    with pytest.raises(ValueError, match="other settings"):
        run_sums(tmp_path, quick=True)
    run_sums(tmp_path, scale=None)  # its default, beside the quick results
    assert (tmp_path / "three-sums.json").exists()


def test_an_interrupted_run_goes_on_where_it_stopped(sums, tmp_path):
    sums.failing = "b"
    with pytest.raises(KeyboardInterrupt):
        run_sums(tmp_path)
    assert list(results_in(tmp_path)) == ["a"]
    sums.failing = None
    run_sums(tmp_path)
    assert sums.done == ["a", "b", "c"]
    run_sums(tmp_path, fresh=True)
    assert sums.done == ["a", "b", "c"] * 2


def test_a_cell_brings_what_it_needs(sums, tmp_path):
    run_sums(tmp_path, only="c")
    assert sums.done == ["a", "c"]


def test_fresh_computes_the_cells_asked_for_and_keeps_the_others(sums, tmp_path):
    run_sums(tmp_path)
    before = results_in(tmp_path)
    run_sums(tmp_path, fresh=True, only="c")
    assert sums.done == ["a", "b", "c", "c"]
    after = results_in(tmp_path)
    assert (after["a"], after["b"]) == (before["a"], before["b"])
    sums.offset = 1
    run_sums(tmp_path, fresh=True, only="b")  # of other settings nothing is worth keeping
    assert list(results_in(tmp_path)) == ["b"]


def test_single_cells_and_other_processes_meet_in_one_file(sums, tmp_path):
    run_sums(tmp_path, only="a")
    store = experiment.Store(tmp_path / "three-sums.json", sums.settings(False), "x")
    run_sums(tmp_path, only="b")
    store.keep("c", {"value": 0})
    assert set(results_in(tmp_path)) == {"a", "b", "c"}


def test_a_pattern_without_a_cell_is_refused_before_a_file_is_written(sums, tmp_path):
    with pytest.raises(ValueError, match="cells are a, b, c"):
        run_sums(tmp_path / "new", only="d*")
    assert not (tmp_path / "new").exists()


def test_results_of_other_settings_or_of_nothing_are_not_mixed(sums, tmp_path):
    run_sums(tmp_path)
    sums.offset = 1
    with pytest.raises(ValueError, match="other settings"):
        run_sums(tmp_path)
    (tmp_path / "three-sums.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no results"):
        run_sums(tmp_path)
    assert (tmp_path / "three-sums.json").read_text() == "[]"
    run_sums(tmp_path, fresh=True)
    assert len(results_in(tmp_path)) == 3


def test_long_curves_are_lines_of_text():
    curve = [[0.25, 1.00004], [0.125, math.inf], [math.nan, 3.0]]
    assert packed(curve, ".4f") == ["0.2500 0.1250 nan", "1.0000 inf 3.0000"]
    np.testing.assert_allclose(unpacked(packed(curve, ".4f")), curve, atol=5e-5)
    np.testing.assert_allclose(unpacked(packed(curve)), curve, rtol=5e-6)


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["koopcore", "reproduce", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    text = capsys.readouterr()
    return end.value.code or 0, text.out, text.err


@pytest.fixture
def reproduce(monkeypatch, capsys):
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


def test_every_experiment_is_a_command(reproduce):
    code, out, _ = reproduce("--help")
    assert code == 0
    for name in COMMANDS:
        assert name in out


@pytest.mark.parametrize("name", COMMANDS)
def test_data_is_an_option_of_the_experiments_on_digits(name, reproduce, tmp_path):
    code, _, err = reproduce(name, "--data", str(tmp_path / "missing"), "--output", str(tmp_path))
    assert code == 2
    assert ("does not exist" in err) == (name in MNIST)
    assert ("No such option" in err) == (name not in MNIST)


@pytest.mark.parametrize(
    ("command", "experiment_name", "options"),
    [
        (["table1"], "table1", {}),
        (["table1", "--schedule", "paper"], "table1-paper", {}),
        (["table2"], "table2", {}),
        (["van-der-pol", "--seeds", "3"], "van-der-pol", {"seeds": 3, "n_iterations": None}),
        (
            ["glycolysis", "--workers", "7", "--seed", "4", "--seeds", "2"],
            "glycolysis",
            {"workers": 7, "n_iterations": None, "seeds": 2, "seed": 4},
        ),
    ],
)
def test_the_commands_pass_their_options_on(
    command, experiment_name, options, reproduce, monkeypatch, tmp_path
):
    calls = []
    monkeypatch.setattr(experiment, "run", lambda name, **given: calls.append((name, given)))
    assert (
        reproduce(*command, "--quick", "--fresh", "--only", "x", "--output", str(tmp_path))[0] == 0
    )
    shared = {"quick": True, "fresh": True, "only": "x", "output": tmp_path}
    assert calls == [(experiment_name, shared | options)]


@pytest.mark.parametrize("arguments", [["--workers", "8"], ["--workers", "0"], ["--seed", "-1"]])
def test_options_out_of_range_are_refused(arguments, reproduce):
    code, _, err = reproduce("glycolysis", *arguments)
    assert code == 2
    assert arguments[0] in err


def test_the_command_reports_an_interruption_and_goes_on(reproduce, monkeypatch, tmp_path, sums):
    from koopcore.lab.experiments import table1

    for name in ("settings", "cells", "table"):
        monkeypatch.setattr(table1, name, getattr(sums, name))
    sums.failing = "b"
    code, _, err = reproduce("table1", "--quick", "--output", str(tmp_path))
    assert code == 130
    assert err.strip() == "koopcore: interrupted; what was finished is kept"
    sums.failing = None
    code, out, _ = reproduce("table1", "--quick", "--output", str(tmp_path))
    assert code == 0
    assert "3 cells" in out
    assert sums.done == ["a", "b", "c"]
    code, _, err = reproduce("table1", "--quick", "--output", str(tmp_path), "--only", "z")
    assert code == 2
    assert "cells are a, b, c" in err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("dt is 0"), 2, "koopcore: dt is 0"),
        (ChildProcessError("worker 3 died with exit code 1"), 2, "koopcore: worker 3 died"),
        (
            ModuleNotFoundError("no scipy", name="scipy.linalg"),
            2,
            "koopcore: scipy is not installed",
        ),
        (KeyboardInterrupt(), 130, "koopcore: interrupted"),
    ],
)
def test_what_goes_wrong_is_one_line(error, code, message, reproduce, monkeypatch, tmp_path):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(glycolysis, "learned", fails)
    ended, out, err = reproduce("glycolysis", "--output", str(tmp_path))
    assert (ended, out) == (code, "")
    assert err.strip().startswith(message)
    assert err.strip().count("\n") == 0


def test_a_defect_of_koopcore_keeps_its_traceback(reproduce, monkeypatch, tmp_path):
    def fails(*_, **__):
        raise ModuleNotFoundError("no such module", name="koopcore.no_such_module")

    monkeypatch.setattr(glycolysis, "learned", fails)
    with pytest.raises(ModuleNotFoundError):
        reproduce("glycolysis", "--output", str(tmp_path))


def test_an_output_that_cannot_be_a_folder_is_refused_before_any_work(reproduce, tmp_path):
    (tmp_path / "file").write_text("")
    assert reproduce("glycolysis", "--output", str(tmp_path / "file" / "x"))[0] == 2


@pytest.mark.parametrize(
    ("name", "cell"), [("van-der-pol", "mu 0.2/3 tanh, gradient, 1/L_K"), ("figure2", "adagrad")]
)
def test_a_picture_is_drawn_whole_from_some_cells(name, cell, reproduce, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: saved.append(path) or path.touch())
    code, out, err = reproduce(name, "--quick", "--only", cell, "--output", str(tmp_path))
    assert (code, err.strip()) == (0, "")
    assert f"{name}-quick.png" in out
    assert len(saved) == 1
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}-quick.json", f"{name}-quick.png"}
