"""Reproductions: cells kept and resumed, settings checked, small versions of every experiment."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("typer")

import koopcore as kc  # noqa: E402
from koopcore import cli  # noqa: E402
from koopcore.lab.demo.demo import batched_partition  # noqa: E402
from koopcore.lab.experiments import end_to_end as reproduce_end_to_end  # noqa: E402
from koopcore.lab.experiments import experiment as reproduce_run  # noqa: E402
from koopcore.lab.experiments import figure2 as reproduce_figure2  # noqa: E402
from koopcore.lab.experiments import oscillator_race as reproduce_oscillator_race  # noqa: E402
from koopcore.lab.experiments import race as reproduce_race  # noqa: E402
from koopcore.lab.experiments import reproduce  # noqa: E402
from koopcore.lab.experiments import table1 as reproduce_table1  # noqa: E402
from koopcore.lab.experiments import table2 as reproduce_table2  # noqa: E402
from koopcore.lab.experiments.experiment import Cell  # noqa: E402
from koopcore.lab.problems.descent import Descent  # noqa: E402
from koopcore.lab.problems.oscillator import OscillatorBatch  # noqa: E402

PUBLISHED = ("table1", "table2", "figure2", "figure3", "end-to-end", "end-to-end-mnist")


class Sums:
    """An experiment of three cells, the last of which needs the others."""

    def __init__(self):
        self.done = []
        self.fail = False
        self.offset = 0

    def settings(self, quick):
        return {"offset": self.offset, "count": 1 if quick else 2}

    def cells(self, settings):
        def work(name, value, tick, results):
            if self.fail and name == "b":
                raise KeyboardInterrupt
            tick()
            self.done.append(name)
            return {"value": value + sum(r["value"] for r in results.values())}

        return [
            Cell(name, 1, lambda tick, results, n=name, v=v: work(n, v, tick, results))
            for v, name in enumerate("abc", start=1)
        ]

    def table(self, results, settings):
        return f"{len(results)} cells"


@pytest.fixture
def sums(monkeypatch):
    experiment = Sums()
    monkeypatch.setitem(sys.modules, "sums_experiment", experiment)
    return experiment


def run_sums(folder, **options):
    return reproduce_run.run("sums", "sums_experiment", quick=False, output=folder, **options)


def test_results_say_how_they_were_made(sums, tmp_path):
    found = json.loads(run_sums(tmp_path / "new").read_text())
    assert found["command"] == "koopcore reproduce sums"
    assert found["settings"] == {"offset": 0, "count": 2}
    assert [r["value"] for r in found["results"].values()] == [1, 3, 7]
    assert {"koopcore", "torch", "numpy", "python"} <= set(found)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sums.json"]


def test_an_interrupted_run_goes_on_where_it_stopped(sums, tmp_path):
    sums.fail = True
    with pytest.raises(KeyboardInterrupt):
        run_sums(tmp_path)
    assert list(json.loads((tmp_path / "sums.json").read_text())["results"]) == ["a"]
    sums.fail = False
    run_sums(tmp_path)
    assert sums.done == ["a", "b", "c"]
    run_sums(tmp_path, fresh=True)
    assert sums.done == ["a", "b", "c"] * 2


def test_a_folder_of_digits_is_one_of_the_settings(sums, tmp_path):
    path = run_sums(tmp_path, data=tmp_path / "mnist")
    assert json.loads(path.read_text())["settings"]["data"] == str(tmp_path / "mnist")
    with pytest.raises(ValueError, match="other settings"):
        run_sums(tmp_path)  # without the folder these would be other results


@pytest.mark.parametrize("name", PUBLISHED)
def test_data_is_an_option_of_the_experiments_on_digits(name, monkeypatch, capsys, tmp_path):
    arguments = (name, "--data", str(tmp_path / "missing"), "--output", str(tmp_path))
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert code == 2
    assert ("does not exist" in err) == (name in reproduce.DIGITS)
    assert ("No such option" in err) == (name not in reproduce.DIGITS)


def test_single_cells_and_other_processes_meet_in_one_file(sums, tmp_path):
    run_sums(tmp_path, only="a")
    store = reproduce_run.Store(tmp_path / "sums.json", sums.settings(False), "x", False, False)
    run_sums(tmp_path, only="b")
    store.keep("c", {"value": 0})
    assert set(json.loads((tmp_path / "sums.json").read_text())["results"]) == {"a", "b", "c"}
    with pytest.raises(ValueError, match="cells are a, b, c"):
        run_sums(tmp_path, only="d*")


def test_results_of_other_settings_or_of_nothing_are_not_mixed(sums, tmp_path):
    run_sums(tmp_path)
    sums.offset = 1
    with pytest.raises(ValueError, match="other settings"):
        run_sums(tmp_path)
    (tmp_path / "sums.json").write_text("[]")
    with pytest.raises(ValueError, match="no results"):
        run_sums(tmp_path)
    assert (tmp_path / "sums.json").read_text() == "[]"


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["koopcore", "reproduce", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    text = capsys.readouterr()
    return end.value.code or 0, text.out, text.err


def test_every_experiment_is_a_command(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "--help")
    assert code == 0
    for name in PUBLISHED:
        assert name in out
    assert set(PUBLISHED) == set(reproduce.EXPERIMENTS)


def test_the_command_runs_an_experiment_and_reports_an_interruption(
    monkeypatch, capsys, tmp_path, sums
):
    monkeypatch.setattr(reproduce_table1, "settings", sums.settings)
    monkeypatch.setattr(reproduce_table1, "cells", sums.cells)
    monkeypatch.setattr(reproduce_table1, "table", sums.table)
    sums.fail = True
    code, _, err = call(monkeypatch, capsys, "table1", "--quick", "--output", str(tmp_path))
    assert code == 130
    assert "goes on" in err
    sums.fail = False
    code, out, _ = call(monkeypatch, capsys, "table1", "--quick", "--output", str(tmp_path))
    assert code == 0
    assert "3 cells" in out
    assert (tmp_path / "table1-quick.json").exists()
    code, _, err = call(
        monkeypatch, capsys, "table1", "--quick", "--output", str(tmp_path), "--only", "z"
    )
    assert code == 2
    assert "cells are a, b, c" in err


def test_pinv_nodes_recovers_linear_trajectories():
    # Each node's weights turn and shrink on their own: exactly linear, so T steps are exact.
    random = np.random.default_rng(0)
    snapshots = np.empty((40, 2, 152))
    weights = random.normal(size=(2, 152))
    for row in snapshots:
        row[:] = weights
        weights = 0.97 * weights
    predicted = reproduce_table1.pinv_nodes(snapshots, 10)
    # Rounding of 40 products, no more.
    np.testing.assert_allclose(predicted, snapshots[-1] * 0.97**10, rtol=1e-10)


def test_the_horizon_stays_short_of_the_one_with_the_lowest_loss():
    settings = reproduce_table1.settings(quick=False)
    ladder, beyond = reproduce_table1.ladder(settings), reproduce_table1.looked_at(settings)
    assert (ladder[0], ladder[-1]) == (50, 1)
    assert beyond == [2 * horizon for horizon in ladder]
    problem = OscillatorBatch(2, dtype=torch.float64)
    start = problem.initial()
    _, gradient = problem.loss_and_gradient(start)
    places = torch.stack([start - scale * gradient for scale in (math.nan, 1e-3, 0.0)])
    assert reproduce_table1.best_horizon(problem, places).tolist() == [1, 1]


def test_a_place_no_better_than_the_present_is_left_for_a_nearer_one():
    problem = OscillatorBatch(3, dtype=torch.float64)
    now = problem.initial()
    _, gradient = problem.loss_and_gradient(now)
    downhill = [-1.0, math.nan, 0.0, 1e-3, 1e-4]  # longest first
    places = torch.stack([now - step * gradient for step in downhill])
    chosen, better = reproduce_table1.nearer(problem, np.array([0, 3, 4]), places, now)
    assert (chosen.tolist(), better.tolist()) == ([3, 3, 4], [True] * 3)
    chosen, better = reproduce_table1.nearer(problem, np.array([0, 1, 2]), places[:3], now)
    assert (chosen.tolist(), better.tolist()) == ([2] * 3, [False] * 3)


def test_where_the_operator_leads_nowhere_the_straight_line_is_asked(monkeypatch):
    settings = reproduce_table1.settings(quick=True)
    problem = OscillatorBatch(2, dtype=torch.float64)
    start = problem.initial()
    _, gradient = problem.loss_and_gradient(start)
    back = torch.arange(8.0, -1.0, -1.0, dtype=start.dtype)[:, None, None]
    snapshots = start + 1e-5 * back * gradient  # a straight line downhill
    straight, pair = kc.fit, batched_partition("network", 2)

    class Stuck:  # in the second network; as after a rollout that diverged
        def predict(self, horizons):
            along = straight(snapshots.flatten(1), pair, model="trend").predict(horizons)
            return torch.cat([along[:, :152], start[1:].expand(len(horizons), -1)], 1)

    def fit(rows, part, model):
        return Stuck() if model == "affine" else straight(rows, part, model)

    monkeypatch.setattr(reproduce_table1.kc, "fit", fit)
    guess, taken = reproduce_table1.checked(settings, problem, snapshots, start)
    assert (problem.loss(guess) < problem.loss(start)).all()
    assert (taken > 1).all()


def test_table1_scores_every_row_of_a_small_version():
    settings = reproduce_table1.settings(quick=True) | {"networks": 2, "horizon": 100}
    settings |= {"t1": 1500, "rates": {"adagrad": 0.05}, "together": 1}
    cells = {cell.name: cell for cell in reproduce_table1.cells(settings)}
    ticks = []
    results = {}
    for name, cell in cells.items():
        results[name] = cell.work(lambda: ticks.append(1), results)
    assert len(ticks) == sum(cell.ticks for cell in cells.values())
    assert list(cells) == ["adagrad/1-1", "adagrad/2-2", "seconds"]
    rows = reproduce_table1.of_optimizer(results, "adagrad")
    own = rows["koopcore"]
    assert len(own["relative"]) == 2
    # Smooth training in float64: the prediction is worth training on.
    assert min(own["relative"]) > 0.9
    assert max(own["error_ratio"]) < 0.1
    assert set(rows) == set(reproduce_table1.ROWS)
    assert reproduce_table1.of_optimizer(results, "adam") == {}
    assert all(seconds > 0 for seconds in results["seconds"]["adagrad"].values())
    json.dumps(results)
    assert reproduce_table1.table(results, settings) is not None


def test_smoothing_is_centred_and_keeps_a_constant():
    np.testing.assert_allclose(reproduce_table2.smoothed(np.full(9, 2.0), 5), 2.0)
    ramp = reproduce_table2.smoothed(np.arange(9.0), 5)
    np.testing.assert_allclose(ramp[2:-2], np.arange(2.0, 7.0))  # no lag


def test_table2_scores_a_small_version():
    settings = reproduce_table2.settings(quick=True) | {"seeds": 1, "t1": 60, "horizon": 60}
    results = {}
    for cell in reproduce_table2.cells(settings):
        results[cell.name] = cell.work(lambda: None, results)
    first = settings["first_seed"]
    rows = results[f"seed {first}"]["rows"]
    assert set(rows) == {*reproduce_table2.ROWS, "window mean"}
    assert rows["koopcore, quasi-node"]["relative"] > 0
    # Bounding can only bend groups: an unbounded row of the same operators exists beside it.
    assert math.isfinite(rows["koopcore, quasi-node"]["loss"])
    assert set(results["seconds"]) == {"step", *reproduce_table2.ROWS}
    assert reproduce_table2.table(results, settings) is not None


@pytest.mark.parametrize(
    ("kind", "stride", "horizon", "ahead"),
    [("mean", 100, 250, 3), ("last", 100, 250, 5), ("mean", 40, 100, 3), ("last", 40, 100, 5)],
)
def test_table2_counts_its_horizon_from_t2(kind, stride, horizon, ahead):
    # The last mean stands half a stride before t2, so it has half a stride farther to go.
    settings = {"stride": stride, "horizon": horizon}
    assert reproduce_table2._ahead(settings, kind) == ahead
    with pytest.raises(ValueError, match="no whole number of snapshots"):
        reproduce_table2._ahead({"stride": stride, "horizon": horizon + 1}, kind)


def test_a_race_stops_at_its_target_and_counts_what_it_took():
    problem = OscillatorBatch(1, 7, duration=2 * math.pi)
    plain = reproduce_race.OscillatorNetwork(problem, 0)
    stepper = torch.optim.Adagrad(plain.parameters(), lr=0.1)
    _, _, target = reproduce_race.descend(plain, stepper, -math.inf, 600)
    run = reproduce_race.race(problem, 0, "adagrad", 0.1, target, 600, {}, probe=10)
    assert run.reached
    assert run.loss <= target
    assert 0 < run.steps < 400  # measured: a third of plain training and less
    assert run.accepted > 0
    assert run.seconds > 0
    never = reproduce_race.race(problem, 0, "adagrad", 0.1, 0.0, 20, {}, probe=1)
    assert (never.reached, never.steps) == (False, 20)


def test_end_to_end_compares_every_method_of_one_optimizer():
    chosen = reproduce_end_to_end.settings(quick=True)["oscillator"]
    chosen |= {"steps": 500, "rates": {"adagrad": [0.1, 0.2]}, "jump_rates": {"adagrad": [0.1]}}
    settings = {"oscillator": chosen}
    results = {}
    for cell in reproduce_end_to_end.cells(settings):
        results[cell.name] = cell.work(lambda: None, results)
    plain = results["oscillator/adagrad/plain"]
    assert plain["rate"] == min(plain["medians"], key=plain["medians"].get)
    assert set(plain["averages"]) == {"EMA 0.9", "EMA 0.99", "LAWA"}
    own = results["oscillator/adagrad/koopcore"]
    assert min(own["factors"]) > 1
    for factor, steps, run in zip(own["factors"], plain["steps"], own["runs"], strict=True):
        assert factor == pytest.approx(steps / run["steps"])
    assert reproduce_end_to_end.table(results, settings) is not None


def test_a_pace_is_a_rate_or_a_rate_with_its_decay():
    found = reproduce_oscillator_race.paces([0.2, [0.06, 1e-4]])
    assert found == [(0.2, 0.0), (0.06, 1e-4)]
    named = [reproduce_oscillator_race.label(pace) for pace in found]
    assert named == ["0.2", "0.06, decay 0.0001"]


def test_a_decaying_run_takes_the_steps_of_a_descent_with_that_decay():
    problem = OscillatorBatch(1, 3, dtype=torch.float64)
    descent = Descent(problem, "adam", rate=0.05, decay=0.01)
    expected = descent.advance(30).losses[:, 0].tolist()
    model = reproduce_race.OscillatorNetwork(problem, 0)
    stepper = torch.optim.Adam(model.parameters(), lr=0.05)
    reached, steps, loss = reproduce_race.descend(model, stepper, -math.inf, 30, decay=0.01)
    assert (reached, steps) == (False, 30)
    assert loss == pytest.approx(expected[-1], rel=1e-9)  # the same operations in another batch


def test_where_an_average_reaches_its_target():
    curve = np.array([[3.0, 3.0], [2.0, 3.0], [1.0, 3.0]])
    found = reproduce_oscillator_race.first_below(curve, np.array([2.0, 2.0]), 10)
    assert found.tolist() == [20.0, math.inf]
    kept = reproduce_oscillator_race.lowest(np.array([[2.0], [np.nan], [1.0], [4.0]]))
    assert kept.ravel().tolist() == [2.0, 2.0, 1.0, 1.0]


def test_figure2_is_drawn_from_its_results():
    settings = reproduce_figure2.settings(quick=True) | {"t1": 100, "horizon": {"adagrad": 100}}
    results = {c.name: c.work(lambda: None, {}) for c in reproduce_figure2.cells(settings)}
    own = results["adagrad"]
    assert own["loss_predicted"][0] == pytest.approx(own["loss_trained"][0])
    assert own["loss_recorded"][-1] == pytest.approx(own["loss_trained"][0])
    assert len(reproduce_figure2.picture(results, settings).axes) == 2
