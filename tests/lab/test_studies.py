"""Studies: every case of every study runs right at its smallest; peers predict as they should."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

import koopcore as kc
from koopcore.lab.bench import race_cache
from koopcore.lab.bench.report import picture
from koopcore.lab.bench.study import Case, Row, Size, Unavailable, races_of
from koopcore.lab.studies import (
    backpropagation,
    endpoint,
    horizon,
    memory,
    peer_numpy,
    peer_torch,
    peers,
    roofline,
)
from koopcore.lab.studies.catalogue import studies
from koopcore.lab.studies.decays import FAST_RATES, bound, decays, error, least_squares
from koopcore.lab.studies.endpoint_job import endpoint_job, equal_groups, one_group, thread_limit

NAMES = [study.name for study in studies()]


@pytest.fixture(autouse=True)
def nothing_is_kept():
    yield
    race_cache.forget()


def test_every_study_asks_a_question_and_has_cases_of_distinct_names():
    assert len(set(NAMES)) == len(NAMES)
    for study in studies():
        assert study.question.endswith("?") or "?" in study.question
        for size in Size:
            cases = study.cases(size)
            names = [(case.race, case.name) for case in cases]
            assert names
            assert len(set(names)) == len(names)
            # A race's cases are together: they run together.
            races = [case.race for case in cases]
            assert sorted(set(races), key=races.index) == races_of(
                [Row(race, "") for race in races]
            )


@pytest.mark.parametrize(
    ("pattern", "expected"), [("*", NAMES), ("p*", ["peers", "parameters", "partitions"])]
)
def test_studies_are_chosen_by_pattern(pattern, expected):
    assert [study.name for study in studies(pattern)] == expected


def test_an_unknown_study_is_answered_with_all_names():
    with pytest.raises(ValueError, match="peer-review") as error:
        studies("peer-review")
    assert all(name in str(error.value) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_summaries_and_plots_stand_missing_times(name):
    (study,) = studies(name)
    rows = [Row(case.race, case.name, case.x, missing="x") for case in study.cases(Size.once)]
    assert not any(claim.met for claim in study.summary(rows).claims)
    from matplotlib.figure import Figure

    study.draw(Figure().add_subplot(), rows)


def test_the_parameters_of_decays_are_what_they_say():
    data = decays(6, 50, (0.1, 0.5))
    x = data.rows.astype(float)
    times = np.arange(6)
    parts = np.exp(-np.outer(times, (0.1, 0.5))) @ data.amplitudes + data.fixed
    # Values of at most about 4, rounded to float32 after sums in float32: some units of 2^-22.
    assert np.abs(x - parts).max() < 2e-6
    after = data.after(3, np.arange(50))
    assert np.allclose(after, np.exp(-8 * np.array((0.1, 0.5))) @ data.amplitudes + data.fixed)


@pytest.mark.parametrize(("m", "n"), [(40, 10), (5, 12)])
@pytest.mark.parametrize("horizon", [1, 7])
def test_least_squares_predicts_an_exact_linear_recurrence(m, n, horizon):
    rng = np.random.default_rng(0)
    rates = np.array([0.1, 0.3])
    modes = rng.normal(size=(2, m))
    truth = rng.normal(size=m) + np.exp(-np.outer(np.arange(n + horizon), rates)) @ modes
    # Two decays from n > 4 exact snapshots: what is left is rounding, amplified by the condition.
    assert np.allclose(least_squares(truth[:n], horizon), truth[-1], atol=1e-7)


@pytest.mark.parametrize("part", [equal_groups(8, 50), one_group(400)])
def test_a_wrong_prediction_exceeds_the_bound_and_a_right_one_does_not(part):
    data = decays(16, 400)
    allowed = bound(data, part, 20)
    job = endpoint_job(data, part, 20)
    assert job.error(job.call()) <= allowed
    persistence = data.rows[-1]
    assert error(data, part, persistence, 20) == pytest.approx(1.0)
    assert allowed < 0.5


@pytest.mark.parametrize("t", horizon.HORIZONS)
def test_no_horizon_of_the_study_is_beyond_what_can_be_predicted(t):
    data = decays(16, 6500, FAST_RATES)
    assert bound(data, equal_groups(100, 65), t) < 0.1


def test_a_bound_of_groups_that_all_diverge_accepts_almost_nothing():
    data = decays(16, 13)
    growing = data._replace(rows=data.rows * np.float32(4) ** np.arange(16, dtype="f")[:, None])
    assert bound(growing, one_group(13), 10**5) <= 1e-4


def test_an_unavailable_backend_is_a_reason(monkeypatch):
    gone = kc.available_backends()[0]._replace(
        name="native_cpu", available=False, reason="no compiler"
    )
    monkeypatch.setattr(kc, "backends", lambda: [gone])
    with pytest.raises(Unavailable, match="no compiler"):
        endpoint_job(decays(8, 100), one_group(100), 3, backend="native_cpu")


def test_a_thread_limit_is_undone(monkeypatch):
    from koopcore.backends.threads import thread_count

    monkeypatch.setenv("KOOPCORE_NUM_THREADS", "3")
    with thread_limit(1):
        assert thread_count() == 1
    assert thread_count() == 3
    monkeypatch.delenv("KOOPCORE_NUM_THREADS")
    before = thread_count()
    with thread_limit(before + 1):
        assert thread_count() == before + 1
    assert thread_count() == before


PEERS = [peer_numpy.pinv_loop, peer_numpy.pinv_stack, peer_torch.pinv, peer_torch.lstsq]


@pytest.mark.parametrize("peer", [*PEERS, peer_torch.cholesky])
def test_peers_predict_a_well_conditioned_recurrence(peer):
    # As many modes as the window determines, of moduli 0.9: no rounding is amplified.
    rng = np.random.default_rng(0)
    n, m = 7, 20
    eigenvalues = 0.9 * np.exp(1j * np.array([0.4, 1.2, 2.2]))
    powers = eigenvalues[None, :] ** np.arange(n + 5)[:, None]
    truth = np.stack(
        [(powers @ (rng.normal(size=(3, m)) + 1j * rng.normal(size=(3, m)))).real for _ in range(4)]
    )
    groups = np.ascontiguousarray(truth[:, :n])
    if "lstsq" in peer.__name__ or "cholesky" in peer.__name__:
        # Affine peers need a window of n = 8 for six modes: their differences are n - 1.
        groups = np.ascontiguousarray(truth[:, : n + 1])
    horizon = truth.shape[1] - groups.shape[1]
    assert np.allclose(peer(groups, horizon), truth[:, -1], atol=1e-6)


@pytest.mark.parametrize("name", list(peers.PEERS))
def test_a_peer_that_is_not_installed_says_how_to_install_it(name, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    case = Case("W1", name, options=endpoint.workload("W1", Size.once))
    with pytest.raises(Unavailable, match=r"not installed: pip install \"koopcore\[bench\]\""):
        peers.build(case)


def test_a_workload_is_grouped_as_its_partition_says():
    load = endpoint.workload("W1", Size.once)
    groups, part = peers._grouped(load)
    rows = decays(load.n, part.size).rows
    assert groups.shape == (load.groups, load.n, load.fan_in + 1)
    for g in (0, 7, load.groups - 1):
        assert (groups[g] == rows[:, part.indices(g)]).all()


def test_the_work_of_stages_is_that_of_their_formulas():
    stages = roofline.Stages(endpoint.Workload(20, 9, 6, 1.0))  # 20 groups of 10, n = 6
    assert stages.work("gram") == {"flops": 20 * 10 * 42, "bytes": 4 * 6 * 200 + 8 * 21 * 20}
    assert stages.work("combine") == {"flops": 2 * 200 * 6, "bytes": 4 * 6 * 200 + 4 * 200}
    assert stages.work("rollout")["flops"] == 2 * 20 * 4 * endpoint.HORIZON


@pytest.mark.parametrize("stage", roofline.STAGES)
def test_a_stage_that_is_wrong_by_little_is_found(stage):
    stages = roofline.Stages(endpoint.Workload(40, 64, 16, 1.0))
    check, allowed = roofline._check(stages, stage)
    right = stages.call(stage)
    assert check(right) <= allowed
    if stage == "solve":
        wrong = right._replace(residual=right.residual * 1.1)
    else:
        wrong = right + 1e-4 * np.abs(right).max()
    assert check(wrong) > allowed


def test_the_peak_of_a_process_is_counted():
    if not memory.RESET.exists():
        pytest.skip("this system does not tell the peak of a process (no /proc/self/clear_refs)")
    size = 64 * 2**20
    peak = memory.peak_of(lambda: np.ones(size, np.uint8).sum())
    # Everything else that is allocated meanwhile is far less than a quarter of that.
    assert size <= peak + 2**20
    assert peak < 1.25 * size + 16 * 2**20


def test_a_line_search_leaves_the_network_as_it_was():
    training = backpropagation.Training((1, 4, 2))
    before = [p.detach().clone() for p in training.model.parameters()]
    losses = training.search(16)
    assert len(losses) == len(backpropagation.HORIZONS)
    assert all(math.isfinite(loss) for loss in losses)
    after = list(training.model.parameters())
    assert all((a == b).all() for a, b in zip(after, before, strict=True))


def test_the_picture_has_one_plot_per_study_that_was_run():
    rows = {"rows": [{"race": "P", "case": "a", "x": 10.0, "seconds": 1.0}]}
    contents = {"studies": {"parameters": rows, "groups": rows}}
    figure = picture(contents, studies())
    assert [axes.get_title() for part in figure.subfigs for axes in part.axes] == [
        "parameters",
        "groups",
    ]
    from io import BytesIO

    buffer = BytesIO()
    figure.savefig(buffer, format="svg")
    assert ElementTree.fromstring(buffer.getvalue()).tag.endswith("svg")
