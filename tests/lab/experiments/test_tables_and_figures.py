"""Tables and figures of Dogra & Redman 2020 in small versions: true scores, horizons, cut-offs."""

import math

import numpy as np
import pytest
import torch
from experiment_cells import computed

import koopcore as kc
from koopcore.lab.experiment import Context
from koopcore.lab.experiments import figure2, table1, table1_paper, table2
from koopcore.lab.problems.descent import Descent
from koopcore.lab.problems.oscillator import OscillatorBatch, batched_partition


def test_pinv_nodes_recovers_linear_trajectories():
    # Each node's weights turn and shrink on their own: exactly linear, so T steps are exact.
    random = np.random.default_rng(0)
    snapshots = np.empty((40, 2, 152))
    weights = random.normal(size=(2, 152))
    for row in snapshots:
        row[:] = weights
        weights = 0.97 * weights
    predicted = table1.pinv_nodes(snapshots, 10)
    # Rounding of 40 products, no more.
    np.testing.assert_allclose(predicted, snapshots[-1] * 0.97**10, rtol=1e-10)


def test_the_horizon_stays_short_of_the_one_with_the_lowest_loss():
    settings = table1.settings(quick=False)
    ladder, beyond = table1.ladder(settings), table1.lookouts(settings)
    assert (ladder[0], ladder[-1]) == (50, 1)
    assert beyond == [2 * horizon for horizon in ladder]
    problem = OscillatorBatch(2, dtype=torch.float64)
    start = problem.initial()
    _, gradient = problem.loss_and_gradient(start)
    places = torch.stack([start - scale * gradient for scale in (math.nan, 1e-3, 0.0)])
    assert table1.best_horizon(problem, places).tolist() == [1, 1]


def test_a_place_no_better_than_the_present_is_left_for_a_nearer_one():
    problem = OscillatorBatch(3, dtype=torch.float64)
    now = problem.initial()
    _, gradient = problem.loss_and_gradient(now)
    downhill = [-1.0, math.nan, 0.0, 1e-3, 1e-4]  # longest first
    places = torch.stack([now - step * gradient for step in downhill])
    chosen, better = table1.nearer(problem, np.array([0, 3, 4]), places, now)
    assert (chosen.tolist(), better.tolist()) == ([3, 3, 4], [True] * 3)
    chosen, better = table1.nearer(problem, np.array([0, 1, 2]), places[:3], now)
    assert (chosen.tolist(), better.tolist()) == ([2] * 3, [False] * 3)


def test_where_the_operator_leads_nowhere_the_straight_line_is_asked(monkeypatch):
    settings = table1.settings(quick=True)
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

    monkeypatch.setattr(table1.kc, "fit", fit)
    guess, taken = table1.checked(settings, problem, snapshots, start)
    assert (problem.loss(guess) < problem.loss(start)).all()
    assert (taken > 1).all()


def test_table1_scores_every_row_of_a_small_version():
    settings = table1.settings(quick=True) | {"networks": 2, "horizon": 100}
    settings |= {"t1": 1500, "rates": {"adagrad": 0.05}, "together": 1}
    results = computed(table1, settings)
    assert list(results) == ["adagrad/1-1", "adagrad/2-2", "seconds"]
    rows = table1.of_optimizer(results, "adagrad")
    own = rows["koopcore"]
    assert len(own["relative"]) == 2
    # Smooth training in float64: the prediction is worth training on.
    assert min(own["relative"]) > 0.9
    assert max(own["error_ratio"]) < 0.1
    assert set(rows) == set(table1.ROWS)
    assert table1.of_optimizer(results, "adam") == {}
    assert all(seconds > 0 for seconds in results["seconds"]["adagrad"].values())
    assert table1.table(results, settings) is not None


SCHEDULE = {
    "networks": 2,
    "t1": 401,
    "t2": 700,
    "horizon": 100,
    "beyond": 200,
    "stride_beyond": 100,
    "paces": {"adagrad": [[0.05, 1e-5]]},
    "cutoffs": [1e-15, 1e-8],
    "partitions": ["nodes", "network"],
    "models": ["linear", "affine"],
}


@pytest.fixture(scope="module")
def paper_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    settings = table1_paper.settings(quick=True) | SCHEDULE
    return settings, folder, computed(table1_paper, settings, folder)


def test_the_papers_schedule_scores_every_row_of_a_small_version(paper_run):
    settings, _, results = paper_run
    (run,) = table1_paper.runs(settings)
    scores = table1_paper.scores_of(results, run)
    operators = [f"{p} {m}" for p in ("nodes", "network") for m in ("linear", "affine")]
    assert list(scores) == ["pinv 1e-15", "pinv 1e-08", *operators, "straight line"]
    for row in scores.values():
        assert row["relative"].shape == row["error_ratio"].shape == (2,)
    # Smooth training in float64: the prediction is worth training on.
    assert scores["nodes affine"]["relative"].min() > 0.95
    assert scores["nodes affine"]["error_ratio"].max() < 0.01
    assert set(results["seconds"]["adagrad"]) == {"step", "pinv", *operators}
    assert table1_paper.table(results, settings) is not None
    assert table1_paper.table({}, settings) is not None


def test_a_trajectory_is_the_training_it_says_and_is_kept(paper_run, monkeypatch):
    settings, folder, results = paper_run
    (run,) = table1_paper.runs(settings)
    trained = table1_paper.trajectory(settings, run, folder)
    problem = OscillatorBatch(2, settings["seed"], dtype=torch.float64, duration=4 * math.pi)
    descent = Descent(problem, "adagrad", rate=0.05, decay=1e-5)
    losses = descent.advance(settings["t2"] + 100).losses
    assert trained["window"].shape == (300, 2, 152)
    np.testing.assert_array_equal(trained["losses"][:101], losses[settings["t2"] :])
    np.testing.assert_array_equal(trained["after"][1], descent.params)
    np.testing.assert_array_equal(trained["window"][-1], trained["after"][0])
    for cell in table1_paper.cells(settings):
        if cell.name.endswith("/nodes"):  # made again without training again
            monkeypatch.setattr(table1_paper, "Descent", None)
            assert cell.work(Context(lambda: None, {}, folder)) == results[cell.name]


def test_a_trajectory_of_other_settings_is_not_taken(paper_run):
    settings, folder, _ = paper_run
    (run,) = table1_paper.runs(settings)
    with pytest.raises(ValueError, match="trained with other settings; move it away"):
        table1_paper.trajectory(settings | {"seed": 1}, run, folder)


def test_the_pseudo_inverse_is_cut_where_it_is_told_to():
    # Two directions of a node of 11, the second 1e-6 of the first: 1e-3 cuts it off.
    part = batched_partition("nodes", 1)
    node = max((part.indices(k) for k in range(part.n_groups)), key=len)
    time = np.arange(30.0)[:, None]
    random = np.random.default_rng(1)
    first, second = np.linalg.qr(random.normal(size=(11, 2)))[0].T
    snapshots = np.zeros((30, 1, 152))
    snapshots[:, 0, node] = 0.99**time * first + 1e-6 * 0.9**time * second
    true = 0.99**39 * first + 1e-6 * 0.9**39 * second
    kept = table1.pinv_nodes(snapshots, 10, 1e-12)[0, node]
    cut = table1.pinv_nodes(snapshots, 10, 1e-3)[0, node]
    assert abs((kept - true) @ second) < 1e-10  # rounding of 1, over 1e-6
    assert abs((cut - true) @ second) > 1e-8
    np.testing.assert_allclose(cut @ first, true @ first, rtol=1e-5)


def test_smoothing_is_centred_and_keeps_a_constant():
    np.testing.assert_allclose(table2.smoothed(np.full(9, 2.0), 5), 2.0)
    ramp = table2.smoothed(np.arange(9.0), 5)
    np.testing.assert_allclose(ramp[2:-2], np.arange(2.0, 7.0))  # no lag


def test_table2_scores_a_small_version():
    settings = table2.settings(quick=True) | {"seeds": 1, "t1": 60, "horizon": 60}
    results = computed(table2, settings)
    first = settings["first_seed"]
    rows = results[f"seed {first}"]["rows"]
    assert set(rows) == {*table2.ROWS, "window mean"}
    assert rows["koopcore, quasi-node"]["relative"] > 0
    # Bounding can only bend groups: an unbounded row of the same operators exists beside it.
    assert math.isfinite(rows["koopcore, quasi-node"]["loss"])
    assert set(results["seconds"]) == {"step", *table2.ROWS}
    assert table2.table(results, settings) is not None


@pytest.mark.parametrize(
    ("kind", "stride", "horizon", "ahead"),
    [("mean", 100, 250, 3), ("last", 100, 250, 5), ("mean", 40, 100, 3), ("last", 40, 100, 5)],
)
def test_table2_counts_its_horizon_from_t2(kind, stride, horizon, ahead):
    # The last mean stands half a stride before t2, so it has half a stride farther to go.
    settings = {"stride": stride, "horizon": horizon}
    assert table2._ahead(settings, kind) == ahead
    with pytest.raises(ValueError, match="not a whole number of snapshots"):
        table2._ahead({"stride": stride, "horizon": horizon + 1}, kind)


def test_figure2_is_drawn_from_its_results():
    settings = figure2.settings(quick=True) | {"t1": 100, "horizon": {"adagrad": 100}}
    results = computed(figure2, settings)
    own = results["adagrad"]
    assert own["loss_predicted"][0] == pytest.approx(own["loss_trained"][0])
    assert own["loss_recorded"][-1] == pytest.approx(own["loss_trained"][0])
    assert len(figure2.picture(results, settings).axes) == 2
