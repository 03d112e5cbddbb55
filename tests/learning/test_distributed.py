"""Algorithm 2 on gloo ranks: equal to one machine, counted in bytes, and loud when a rank dies."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import ranks
import torch.distributed as dist
from network_faults import BreaksLate
from sklearn.base import clone
from torch.testing._internal.distributed.fake_pg import FakeStore

from koopcore.lab.problems.glycolysis import trajectory
from koopcore.learning import (
    AlternatingLearner,
    Blocks,
    DistributedLearner,
    DivergenceWarning,
    Layered,
    Monomials,
    OneLayer,
    StateInclusive,
    WorkerError,
    load,
    load_parts,
    simultaneous_step,
)
from koopcore.learning.trajectories import pairs
from koopcore.learning.workers.share import divide

STATES = trajectory(0.02, 120)
SCALED = (STATES - STATES.mean(axis=0)) / STATES.std(axis=0)
EQUAL = Blocks((Layered(1, (4, 3)),) * 7)
UNEQUAL = Blocks(
    (
        OneLayer(2, 3, bias=None),
        StateInclusive(OneLayer(1, 2, bias=None)),
        Layered(3, (4, 5)),
        OneLayer(1, 1, bias=None),
    ),
    ((6, 0), (3,), (1, 2, 5), (4,)),
)


def centralized(dictionary, data, iterations, step):
    points = pairs(data)
    theta = dictionary.initial(np.random.default_rng(0))
    k = np.eye(dictionary.n_features)
    values = []
    for _ in range(iterations):
        theta, k, slopes = simultaneous_step(dictionary, theta, k, points, step, step)
        values.append(slopes.value)
    return theta, k, values


@pytest.mark.parametrize(
    ("workers", "dictionary"), [(1, EQUAL), (2, UNEQUAL), (4, EQUAL), (7, EQUAL)]
)
def test_ranks_take_the_centralized_gradient_step(workers, dictionary):
    data = [SCALED[:70], SCALED[75:]]  # two trajectories
    theta, k, values = centralized(dictionary, data, 14, 0.05)
    learner = DistributedLearner(
        dictionary, workers=workers, n_iterations=15, step_k=0.05, step_w=0.05, track="objective"
    ).fit(data)
    # Sums over ranks are taken in another order: rounding of numbers of order 1, 15 times.
    np.testing.assert_allclose(learner.operator_.operator, k, rtol=0, atol=1e-12)
    np.testing.assert_allclose(learner.operator_.parameters, theta, rtol=0, atol=1e-12)
    np.testing.assert_allclose(learner.history_.objective[:14], values, rtol=1e-12)
    assert learner.history_.best == 14
    widths = [s.stop - s.start for s in divide(dictionary, workers).feature_slices()]
    m, n = 115, 113
    for own, traffic in zip(widths, learner.traffic_, strict=True):
        others = workers - 1
        assert traffic.iterations == 15
        assert traffic.gathered == 15 * 8 * (m * (sum(widths) - own) + 2 * others)
        assert traffic.exchanged == 15 * 8 * others * (n * own + 2)


def test_messages_in_float32_are_half_the_bytes_for_their_rounding():
    theta, k, values = centralized(UNEQUAL, SCALED, 14, 0.05)
    settings = {"n_iterations": 15, "step_k": 0.05, "step_w": 0.05, "track": "objective"}
    learner = DistributedLearner(UNEQUAL, workers=2, messages="float32", **settings).fit(SCALED)
    # 15 steps of 0.05 with errors of 6e-8 of numbers of order 1 to 10.
    np.testing.assert_allclose(learner.operator_.operator, k, rtol=0, atol=1e-5)
    np.testing.assert_allclose(learner.operator_.parameters, theta, rtol=0, atol=1e-5)
    np.testing.assert_allclose(learner.history_.objective[:14], values, rtol=1e-5)
    assert not np.array_equal(learner.operator_.operator, k)
    widths = [s.stop - s.start for s in divide(UNEQUAL, 2).feature_slices()]
    for own, traffic in zip(widths, learner.traffic_, strict=True):
        assert traffic.gathered == 15 * (4 * 120 * (sum(widths) - own) + 16)
        assert traffic.exchanged == 15 * (4 * 119 * own + 16)


@pytest.mark.parametrize("k_step", ["gradient", "exact"])
def test_backtracking_ranks_descend_like_one_machine(k_step):
    dictionary = Blocks((StateInclusive(Layered(1, (4, 3))),) * 7)
    settings = {"n_iterations": 40, "standardize": True, "track": "objective"}
    many = DistributedLearner(dictionary, workers=3, k_step=k_step, ridge=1e-8, **settings)
    many.fit(STATES)
    found = np.array(many.history_.objective)
    # 1e-13: the exact step's Gram rounding, relative to ‖ψ‖² of order 1.
    assert (np.diff(found) <= 1e-13).all()
    assert len(found) < 40  # a trial that was taken back costs an iteration
    if k_step == "gradient":
        one = AlternatingLearner(dictionary, **settings).fit(STATES)
        # The same algorithm; sums in another order.
        np.testing.assert_allclose(found, one.history_.objective[: len(found)], rtol=1e-9)


def test_a_rank_holds_its_own_states_only():
    data = pairs(SCALED)
    division = divide(UNEQUAL, 3)
    assert division.runs == ((0, 1), (2,), (3,))
    theta, k = np.arange(float(UNEQUAL.n_parameters)), np.eye(UNEQUAL.n_features)
    mine = division.shares(data, theta, k)[1]
    np.testing.assert_array_equal(mine.data.states, SCALED[:, [1, 2, 5]])
    assert mine.rows.shape == (5, UNEQUAL.n_features)
    np.testing.assert_array_equal(mine.parameters, theta[division.parameter_slices()[1]])


def test_diverging_steps_keep_the_last_good_iterate():
    learner = DistributedLearner(EQUAL, workers=2, step_k=50.0, step_w=0.1, n_iterations=200)
    with pytest.warns(DivergenceWarning, match=r"was kept. step_k = step_w = .* would be safe"):
        learner.fit(SCALED)
    assert learner.history_.stopped == "diverged"
    assert np.isfinite(learner.operator_.operator).all()
    safe = learner.history_.safe_step
    again = clone(learner).set_params(step_k=safe, step_w=safe, n_iterations=60).fit(SCALED)
    assert again.history_.stopped == "iterations"
    assert (np.diff(again.history_.objective) <= 0.0).all()  # a safe step descends


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("dies", "worker 1 died with exit code 7"),
        ("raises", r"worker 1, .*failed with ZeroDivisionError\('states out of range'\)"),
        ("closes", "worker [01], iteration .*: lost the other ranks"),
    ],
)
def test_a_rank_that_fails_is_named_and_the_last_good_state_saved(end, message, tmp_path):
    dictionary = Blocks((OneLayer(3, 2, bias=None), BreaksLate(4, 2, end=end)))
    learner = DistributedLearner(
        dictionary,
        workers=2,
        n_iterations=10_000,
        step_k=0.05,
        step_w=0.05,
        report_every=10,
        timeout=20.0,
        checkpoint=tmp_path / "kept",
    )
    with pytest.raises(WorkerError, match=message) as caught:
        learner.fit(SCALED)
    if end != "closes":  # then each has lost the other, and neither can know who
        assert caught.value.worker == 1
    kept = load(tmp_path / "kept", dictionary)
    last = caught.value.last_good
    assert last is not None
    np.testing.assert_array_equal(kept.operator, last.operator)
    assert not np.array_equal(kept.operator, np.eye(4))  # it had learned something
    np.testing.assert_array_equal(learner.predict(SCALED[0], 3), last.predict(SCALED[0], 3))


@pytest.fixture
def group_of_one(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_a_rank_that_loses_the_others_keeps_its_own_part(tmp_path, monkeypatch):
    settings = {"n_iterations": 40, "step_k": 0.05, "step_w": 0.05}
    learner = DistributedLearner(EQUAL, checkpoint=tmp_path, track="objective", **settings)
    calls = 0
    exchange = dist.all_to_all_single

    def breaks(*given):
        nonlocal calls
        calls += 1
        if calls > 25:
            raise RuntimeError("Connection closed by peer\nsecond line")
        return exchange(*given)

    monkeypatch.setattr(dist, "all_to_all_single", breaks)
    message = "rank 0, iteration 25: lost the other ranks: Connection closed by peer; its part"
    with pytest.raises(WorkerError, match=message):
        learner.fit_rank(SCALED)
    monkeypatch.undo()
    theta, k = load_parts(tmp_path, 1)
    expected_theta, expected_k, _ = centralized(EQUAL, SCALED, 24, 0.05)
    # Sums in another order, 24 times.
    np.testing.assert_allclose(theta, expected_theta, rtol=0, atol=1e-12)
    np.testing.assert_allclose(k, expected_k, rtol=0, atol=1e-12)
    again = DistributedLearner(EQUAL, **settings).fit_rank(SCALED, initial=(theta, k))
    assert again.history_.objective[0] < learner_value(EQUAL)
    with pytest.raises(FileNotFoundError, match="rank-1"):
        load_parts(tmp_path, 2)


@pytest.mark.usefixtures("group_of_one")
def test_a_rank_that_diverges_warns_and_keeps_its_best_iterate():
    settings = {"step_k": 50.0, "step_w": 0.1, "n_iterations": 200}
    learner = DistributedLearner(EQUAL, **settings)
    with pytest.warns(DivergenceWarning, match=r"with step_k=50.0, .* would be safe \(1/L of"):
        learner.fit_rank(SCALED)
    assert learner.history_.stopped == "diverged"
    assert np.isfinite(learner.operator_.operator).all()
    safe = learner.history_.safe_step
    again = clone(learner).set_params(step_k=safe, step_w=safe, n_iterations=60).fit_rank(SCALED)
    assert (np.diff(again.history_.objective) <= 0.0).all()  # a safe step descends


@pytest.mark.usefixtures("group_of_one")
def test_a_rank_raises_on_numbers_that_are_not_finite():
    learner = DistributedLearner(EQUAL, n_iterations=5, step_k=0.05, step_w=0.05)
    start = EQUAL.initial(np.random.default_rng(0)), np.full((21, 21), 1e200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no NumPy warning instead of, or beside, the error
        with pytest.raises(FloatingPointError, match="cannot go back to its start, where F is inf"):
            learner.fit_rank(SCALED, initial=start)
        for scale in (1e200, 1e-200):
            linear = DistributedLearner(Blocks((Monomials(1, 1),) * 7), n_iterations=1)
            with pytest.raises(ValueError, match="standardize=True, or divide"):
                linear.fit_rank(SCALED * scale)
    assert not hasattr(learner, "operator_")


@pytest.mark.parametrize("name", ["reference", "no_such_backend"])
def test_ranks_use_the_backend_that_the_environment_forces(name, monkeypatch):
    learner = DistributedLearner(EQUAL, k_step="exact", n_iterations=2)
    learner.fit(SCALED)  # the fork server runs from here on, with the environment of now
    monkeypatch.setenv("KOOPCORE_BACKEND", name)
    if name == "reference":
        assert learner._rules().engine == name
        learner.fit(SCALED)
    else:
        with pytest.raises(ValueError, match="backend 'no_such_backend' does not run on cpu"):
            learner.fit(SCALED)


def learner_value(dictionary):
    return centralized(dictionary, SCALED, 1, 0.05)[2][0]


def test_ranks_need_a_group_that_fits_the_blocks():
    learner = DistributedLearner(EQUAL)
    with pytest.raises(RuntimeError, match="there is no process group: call"):
        learner.own_states()
    # torch's group without peers: it has a size and answers nothing.
    dist.init_process_group("fake", rank=7, world_size=8, store=FakeStore())
    try:
        for call in (learner.own_states, lambda: learner.fit_rank(SCALED[:, :1])):
            with pytest.raises(ValueError, match=r"workers is 8, but the dictionary has 7 blocks"):
                call()
        unseeded = DistributedLearner(Blocks((OneLayer(1, 1, bias=None),) * 8), random_state=None)
        with pytest.raises(ValueError, match="random_state is None; ranks need the same integer"):
            unseeded.fit_rank(SCALED[:, :1])
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"workers": 8}, ValueError, r"workers is 8, but the dictionary has 7 blocks.* 1\.\.7"),
        ({"workers": 0}, ValueError, "workers is 0"),
        ({"workers": 1.5}, TypeError, "workers is 1.5"),
        ({"dictionary": OneLayer(7, 3, bias=None)}, TypeError, r"workers need Blocks\(...\)"),
        ({"step_w": "lemma"}, ValueError, "step_w is 'lemma'"),
        ({"timeout": 0.0}, ValueError, "timeout is 0.0"),
        ({"report_every": 0}, ValueError, "report_every is 0"),
        ({"ridge": -1.0}, ValueError, "ridge is -1.0"),
        ({"k_step": "newton"}, ValueError, "k_step is 'newton'"),
        ({"backend": "mpi"}, ValueError, "backend is 'mpi'; 'gloo' or 'nccl'"),
        ({"messages": "float16"}, ValueError, "messages is 'float16'; 'float64' or 'float32'"),
    ],
)
def test_settings_that_cannot_work_say_why(settings, error, message):
    with pytest.raises(error, match=message):
        DistributedLearner(**{"dictionary": EQUAL, **settings}).fit(SCALED)


SCRIPT = """
import sys
import numpy as np
import torch.distributed as dist
from ranks import leave
from koopcore.learning import Blocks, DistributedLearner, Layered
from koopcore.lab.problems.glycolysis import trajectory

dist.init_process_group("gloo")
states = trajectory(0.02, 60)
learner = DistributedLearner(
    Blocks((Layered(1, (4, 3)),) * 7), n_iterations=10, step_k=0.05, step_w=0.05, standardize=True
)
part = states[:, learner.own_states()]
learner.fit_rank(part)
if dist.get_rank() == 0:
    np.savez(sys.argv[1], k=learner.operator_.operator, c=learner.operator_.readout,
             x=learner.predict(states[0], 5))
leave()
"""


def test_ranks_started_by_torchrun_bring_their_own_part_of_the_data(tmp_path):
    script, result = tmp_path / "rank.py", tmp_path / "result.npz"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), str(result)],
        cwd=tmp_path,
        env=ranks.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    states = trajectory(0.02, 60)
    here = DistributedLearner(
        EQUAL, workers=2, n_iterations=10, step_k=0.05, step_w=0.05, standardize=True
    ).fit(states)
    there = np.load(result)
    # The same ranks on the same numbers, but for the read-out: each rank solved for its own rows.
    np.testing.assert_allclose(there["k"], here.operator_.operator, rtol=0, atol=1e-13)
    np.testing.assert_allclose(there["c"], here.operator_.readout, rtol=0, atol=1e-8)
    np.testing.assert_allclose(there["x"], here.predict(states[0], 5), rtol=0, atol=1e-8)
