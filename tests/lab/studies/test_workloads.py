"""Workloads: their future is known, a wrong prediction is noticed, thread limits are undone."""

import numpy as np
import pytest

import koopcore as kc
from koopcore.lab.bench.study import Size, Unavailable
from koopcore.lab.studies.scaling import HORIZONS
from koopcore.lab.studies.workloads import (
    FAST_RATES,
    WORKLOADS,
    bound,
    decays,
    endpoint_job,
    equal_groups,
    error,
    groups_of,
    least_squares,
    one_group,
    thread_limit,
    workload,
)


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


@pytest.mark.parametrize("t", HORIZONS)
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
    monkeypatch.setattr(kc, "available_backends", lambda: [gone])
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


def test_a_workload_is_what_its_text_says():
    part = WORKLOADS["W1"].partition()
    assert (part.n_groups, part.size) == (10_000, 650_000)
    assert str(WORKLOADS["W1"]) == "10,000 groups of 65, n = 16"
    assert str(WORKLOADS["network"]) == "one group of 10,000,000, n = 16"


@pytest.mark.parametrize("name", WORKLOADS)
def test_small_runs_have_fewer_groups_or_parameters_but_some(name):
    full, quick, once = (workload(name, size).groups for size in (Size.full, Size.quick, Size.once))
    assert full >= quick >= once >= 50
    assert name == "small" or full > once


def test_groups_of_a_size_and_one_group():
    assert groups_of(65, 660).n_groups == 10
    assert groups_of(0, 660).n_groups == 1
