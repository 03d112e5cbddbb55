"""Algorithm 3 with real processes: late, lost and stalled messages, and workers that die."""

import numpy as np
import pytest
from network_faults import Closes, Dies, Late, Lossy, Stalled

from koopcore.lab.problems.glycolysis import trajectory
from koopcore.learning import (
    AsynchronousLearner,
    Blocks,
    DivergenceWarning,
    Layered,
    OneLayer,
    WorkerError,
    load,
    simultaneous_step,
)
from koopcore.learning.objective import gradient
from koopcore.learning.trajectories import pairs

STATES = trajectory(0.02, 80)
SCALED = (STATES - STATES.mean(axis=0)) / STATES.std(axis=0)
DICTIONARY = Blocks((Layered(1, (3, 2)),) * 7)
STEP = 0.05


def synchronous(iterations, step=STEP):
    data = pairs(SCALED)
    theta, k = DICTIONARY.initial(np.random.default_rng(0)), np.eye(DICTIONARY.n_features)
    for _ in range(iterations):
        theta, k, _ = simultaneous_step(DICTIONARY, theta, k, data, step, step)
    return theta, k


def learner(**settings):
    given = {"step_k": STEP, "step_w": STEP, "workers": 3, "timeout": 20.0, **settings}
    return AsynchronousLearner(DICTIONARY, **given)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_without_delay_it_is_the_synchronous_algorithm(workers):
    theta, k = synchronous(12)
    found = learner(workers=workers, delay=0, n_iterations=12).fit(SCALED)
    # The same sums over workers in another order, 12 times.
    np.testing.assert_allclose(found.operator_.operator, k, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.operator_.parameters, theta, rtol=0, atol=1e-12)
    assert set(found.delays_) <= {0}


def test_messages_in_float32_cost_their_rounding():
    theta, k = synchronous(12)
    half = learner(messages="float32", workers=2, delay=0, n_iterations=12).fit(SCALED)
    # 12 steps of 0.05 with errors of 6e-8 of numbers of order 1 to 10.
    np.testing.assert_allclose(half.operator_.operator, k, rtol=0, atol=1e-5)
    np.testing.assert_allclose(half.operator_.parameters, theta, rtol=0, atol=1e-5)
    assert not np.array_equal(half.operator_.operator, k)


@pytest.mark.parametrize(
    ("network", "delay"),
    [(None, 3), (Late(0.004), 5), (Lossy(0.2), 4), (Stalled(1, 40, 0.5), 3)],
    ids=["fast", "late", "lossy", "stalled for a while"],
)
def test_it_converges_to_the_synchronous_point_within_the_bound(network, delay):
    n = 400
    theta, k = synchronous(n)
    found = learner(network=network, delay=delay, n_iterations=n).fit(SCALED)
    # Stale messages change the path by O(delay·η) of a step; on its slow part, where steps are
    # small, the paths of 400 iterations end within 2 % of the way from the start.
    way = np.linalg.norm(k - np.eye(len(k)))
    assert np.linalg.norm(found.operator_.operator - k) < 0.02 * way
    data = pairs(SCALED)
    there = gradient(DICTIONARY, found.operator_.parameters, found.operator_.operator, data).value
    assert there == pytest.approx(gradient(DICTIONARY, theta, k, data).value, rel=0.02)
    assert max(found.delays_) <= delay
    assert sum(found.delays_.values()) == 3 * 2 * 2 * (n + 1)  # workers, peers, kinds
    if isinstance(network, Late):
        assert max(found.delays_) > 0  # the delay was really there
    assert found.history_.objective[-1] < found.history_.objective[0]
    assert len(found.history_) == n // 50


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Dies(2, 60), "worker 2 died with exit code 3"),
        (Stalled(2, 60, np.inf), "no (features|errors) of iteration .* from worker 2 for 2 s"),
        (Closes(2, 60), "worker 2 closed its connection"),
    ],
    ids=["dies", "stalls for good", "connections close"],
)
def test_a_lost_worker_is_named_and_the_last_good_state_saved(network, message, tmp_path):
    asking = learner(
        network=network,
        n_iterations=5000,
        report_every=10,
        timeout=2.0,
        checkpoint=tmp_path / "kept",
    )
    with pytest.raises(WorkerError, match=message) as caught:
        asking.fit(SCALED)
    assert caught.value.worker == 2
    last = caught.value.last_good
    assert last is not None
    kept = load(tmp_path / "kept")
    np.testing.assert_array_equal(kept.operator, last.operator)
    data = pairs(SCALED)
    start = gradient(
        DICTIONARY, DICTIONARY.initial(np.random.default_rng(0)), np.eye(len(kept.operator)), data
    )
    assert gradient(DICTIONARY, kept.parameters, kept.operator, data).value < start.value


def test_diverging_steps_keep_the_last_report():
    with pytest.warns(DivergenceWarning, match=r"step_w = .* would be safe .*over 1 \+ delay = 3"):
        found = learner(step_k=500.0, n_iterations=3000, report_every=5).fit(SCALED)
    assert found.history_.stopped == "diverged"
    assert np.isfinite(found.operator_.operator).all()
    safe = found.history_.safe_step
    again = learner(step_k=safe, step_w=safe, n_iterations=100).fit(SCALED)
    assert again.history_.stopped == "iterations"
    assert again.history_.objective[-1] < again.history_.objective[0]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"workers": 9}, ValueError, r"1\.\.7 workers"),
        ({"delay": -1}, ValueError, "delay is -1; a whole number >= 0"),
        ({"step_w": "backtracking"}, ValueError, "step_w is 'backtracking'"),
        ({"dictionary": OneLayer(7, 2, bias=None)}, TypeError, "need Blocks"),
        ({"timeout": -1.0}, ValueError, "timeout is -1.0"),
        ({"n_iterations": 0}, ValueError, "n_iterations is 0"),
    ],
)
def test_settings_that_cannot_work_say_why(settings, error, message):
    with pytest.raises(error, match=message):
        AsynchronousLearner(**{"dictionary": DICTIONARY, **settings}).fit(SCALED)
