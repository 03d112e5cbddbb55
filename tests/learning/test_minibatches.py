"""Learning in torch: the same sums in any dtype, from batches, over processes, with couplings."""

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from minibatch_ranks import DICTIONARY, run_rank, several

from koopcore.learning import (
    Blocks,
    Layered,
    MinibatchLearner,
    Monomials,
    OneLayer,
    StateInclusive,
    TorchDictionary,
)
from koopcore.learning.dictionaries.torch import torch_features
from koopcore.learning.learners.minibatches import Work
from koopcore.learning.objective import exact_operator, gradient
from koopcore.learning.trajectories import pairs


def module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh())


DICTIONARIES = {
    "one layer": OneLayer(2, 3, "logistic"),
    "bare": OneLayer(2, 3, bias=None),
    "state-inclusive": DICTIONARY,
    "of the first state": StateInclusive(OneLayer(2, 3), constant=True, states=1),
    "layered": StateInclusive(Layered(2, (5, 4), "arctan")),
    "blocks": Blocks((StateInclusive(OneLayer(1, 3)), OneLayer(1, 2)), ((1,), (0,))),
    "module": TorchDictionary(module().eval(), 2),
}


@pytest.mark.parametrize("name", DICTIONARIES)
@pytest.mark.parametrize("joined", [True, False], ids=["trajectories", "pairs"])
def test_f_and_its_gradients_are_numpys(name, joined):
    dictionary, rng = DICTIONARIES[name], np.random.default_rng(1)
    x = several()
    data = pairs(x) if joined else pairs(x[0][:-1], 2, x[0][1:])
    theta, h = dictionary.initial(rng), dictionary.n_features
    k = rng.standard_normal((h, h)) / h
    expected = gradient(dictionary, theta, k, data)
    # Sums of some 200 numbers of size 1 in another order; 1e-4 for the rounding of float32.
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-4)):
        learner = MinibatchLearner(dictionary, k_step="gradient", dtype=dtype)
        value, slope_w, slope_k = Work(learner, data, theta, k).gradient()
        assert value == pytest.approx(expected.value, rel=tolerance)
        np.testing.assert_allclose(slope_w.numpy(), expected.parameters, rtol=0, atol=tolerance)
        np.testing.assert_allclose(slope_k.numpy(), expected.operator, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dtype": "float64"},
        {"batch_size": 100},
        {"batch_size": 40, "k_step": "average", "memory": 0.95},
        {"k_step": "gradient"},
    ],
    ids=str,
)
def test_f_falls_and_k_is_exact_in_the_end(settings):
    x = several()
    learner = MinibatchLearner(DICTIONARY, n_iterations=80, standardize=False, **settings).fit(x)
    f = learner.history_.objective
    assert np.mean(f[-10:]) < 0.5 * np.mean(f[:3])
    learned, data = learner.operator_, pairs(x)
    features = learned.features(data.states)
    exact = exact_operator(features, data)
    fitted = (features[data.current] @ k.T for k in (learned.operator, exact))
    np.testing.assert_allclose(*fitted, rtol=0, atol=1e-9)
    again = MinibatchLearner(DICTIONARY, n_iterations=80, standardize=False, **settings).fit(x)
    np.testing.assert_array_equal(again.operator_.operator, learned.operator)


def test_couplings_leave_out_what_does_not_act():
    rng = np.random.default_rng(0)
    a = np.array([[0.9, 0.0, 0.0], [0.3, 0.7, 0.0], [0.0, 0.2, 0.8]])
    x = np.empty((60, 3))
    x[0] = rng.standard_normal(3)
    for k in range(59):
        x[k + 1] = a @ x[k] + 0.01 * rng.standard_normal(3)
    dictionary = Blocks((StateInclusive(OneLayer(1, 2)),) * 3)
    couplings = a != 0.0
    learner = MinibatchLearner(dictionary, n_iterations=20, couplings=couplings).fit(x)
    mask = np.repeat(np.repeat(couplings, 3, axis=0), 3, axis=1)
    k = learner.operator_.operator
    assert (k[~mask] == 0.0).all()
    features = learner.operator_.features(x)
    for row in range(9):  # each row by itself, over what it is coupled to
        columns = np.flatnonzero(mask[row])
        alone = np.linalg.lstsq(features[:-1, columns], features[1:, row], rcond=None)[0]
        fitted = features[:-1] @ k[row]
        np.testing.assert_allclose(fitted, features[:-1, columns] @ alone, rtol=0, atol=1e-8)
    by_gradient = MinibatchLearner(
        dictionary, n_iterations=20, couplings=couplings, k_step="gradient"
    ).fit(x)
    assert (by_gradient.operator_.operator[~mask] == 0.0).all()


def test_ranks_with_parts_of_the_points_learn_what_one_learns_from_all(tmp_path):
    settings = {"dtype": "float64"}
    mp.spawn(
        run_rank,
        ((tmp_path / "meet").as_uri(), settings, str(tmp_path / "rank")),
        nprocs=2,
        join=True,
    )
    alone = MinibatchLearner(DICTIONARY, n_iterations=15, **settings).fit(several()).operator_
    for rank in (0, 1):
        found = np.load(tmp_path / f"rank-{rank}.npz")
        np.testing.assert_allclose(found["scale"], alone.scale, rtol=1e-12)
        # 15 iterations of Adam on sums in another order.
        np.testing.assert_allclose(found["theta"], alone.parameters, rtol=0, atol=1e-8)
        np.testing.assert_allclose(found["k"], alone.operator, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_size": 11}, ValueError, "batch_size is 11, 11 pairs an iteration, fewer than the"),
        ({"dictionary": OneLayer(2, 400)}, ValueError, "pairs an iteration, fewer than the 400"),
        ({"device": "abacus"}, ValueError, "device is 'abacus'"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"k_step": "newton"}, ValueError, "k_step is 'newton'"),
        ({"dtype": "float16"}, ValueError, "dtype is 'float16'"),
        ({"memory": 1.0}, ValueError, "memory is 1.0"),
        ({"random_state": None}, ValueError, "an integer seed"),
        ({"distributed": True}, RuntimeError, "there is no process group"),
        ({"couplings": np.ones((2, 2), bool)}, ValueError, r"couplings has shape \(2, 2\)"),
        ({"couplings": np.ones((12, 12))}, TypeError, "couplings is of float64"),
        ({"dictionary": Monomials(2, 2)}, TypeError, "Monomials has no torch_features"),
    ],
)
def test_what_cannot_be_learned_says_why(settings, error, message):
    learner = MinibatchLearner(**{"dictionary": DICTIONARY, **settings})
    with pytest.raises(error, match=message):
        learner.fit(several(2))


def test_a_learning_rate_that_is_too_large_is_an_error_and_not_a_nan():
    learner = MinibatchLearner(OneLayer(2, 9), learning_rate=1e30, k_step="gradient")
    with pytest.raises(FloatingPointError, match="learn more slowly than learning_rate"):
        learner.fit(several(2))


def test_torch_features_have_the_dtype_of_the_states():
    dictionary = DICTIONARIES["module"]
    theta = torch.from_numpy(dictionary.initial(np.random.default_rng(0)))
    for dtype in (torch.float32, torch.float64):
        made = torch_features(dictionary, theta.to(dtype), torch.ones(3, 2, dtype=dtype))
        assert made.dtype == dtype
