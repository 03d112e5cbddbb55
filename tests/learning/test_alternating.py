"""Algorithm 1: its order of steps, its search, which iterate it keeps, and where it stops."""

import numpy as np
import pytest
from learning_cases import by_points
from sklearn.base import clone

from koopcore.lab.problems.van_der_pol import paper_split
from koopcore.learning import (
    AlternatingLearner,
    DivergenceWarning,
    Layered,
    OneLayer,
    StateInclusive,
    TorchDictionary,
)
from koopcore.learning.objective import gradient
from koopcore.learning.trajectories import pairs


def test_an_iteration_is_a_k_step_and_then_a_w_step_at_the_new_k():
    data = paper_split().train[:80]
    dictionary = OneLayer(2, 3, bias=None)
    w = dictionary.initial(np.random.default_rng(1)).reshape(3, 2)
    k = np.eye(3)
    for _ in range(5):
        k_used = k - 0.2 * by_points(w, k, [data])[1]
        w_used, k = w, k_used
        w = w - 0.1 * by_points(w, k, [data])[2]
    learner = AlternatingLearner(dictionary, n_iterations=5, step_k=0.2, step_w=0.1, random_state=1)
    seen = []
    learner.fit(data, callback=lambda t, iterate: seen.append(iterate))
    # Five iterations of sums of 80 points in another order.
    np.testing.assert_allclose(seen[-1].operator, k, rtol=0, atol=1e-13)
    np.testing.assert_allclose(seen[-1].parameters.reshape(3, 2), w_used, rtol=0, atol=1e-13)
    assert len(learner.history_) == 5


@pytest.mark.parametrize("k_step", ["gradient", "exact"])
def test_backtracking_never_lets_f_rise(k_step):
    data = paper_split(1.0).train
    dictionary = StateInclusive(OneLayer(2, 4, scale=0.5, bias=None))
    learner = AlternatingLearner(dictionary, k_step=k_step, n_iterations=80).fit(data)
    objective = np.array(learner.history_.objective)
    # 1e-12: the exact step drops directions at the Gram's rounding, relative to ‖ψ‖² ~ 1.
    assert (np.diff(objective) <= 1e-12).all()
    assert objective[-1] < objective[0]


def test_the_kept_iterate_is_the_one_of_least_e():
    seen = {}
    learner = AlternatingLearner(
        OneLayer(2, 3, bias=None), step_k=0.23, step_w=0.23, n_iterations=60
    )
    learner.fit(paper_split().train, callback=lambda t, iterate: seen.update({t: iterate}))
    history = learner.history_
    best = int(np.argmin(history.criterion))
    assert history.best == best
    np.testing.assert_array_equal(learner.operator_.operator, seen[best].operator)
    np.testing.assert_array_equal(learner.operator_.parameters, seen[best].parameters)


def test_tracking_the_objective_keeps_the_least_f():
    learner = AlternatingLearner(Layered(2, (4, 3)), track="objective", n_iterations=40)
    learner.fit(paper_split().train)
    assert learner.history_.best == int(np.argmin(learner.history_.objective))


def test_learning_stops_early_at_the_tolerance_and_at_a_callbacks_wish():
    data = paper_split().train
    first = AlternatingLearner(OneLayer(2, 3, bias=None), tolerance=0.05).fit(data)
    e = first.history_.criterion
    assert first.history_.stopped == "tolerance"
    assert e[-1] <= 0.05 * e[0] < e[-2]
    second = AlternatingLearner(OneLayer(2, 3, bias=None)).fit(data, callback=lambda t, _: t == 4)
    assert (second.history_.stopped, len(second.history_)) == ("callback", 5)


@pytest.mark.parametrize(("step_k", "step_w"), [(50.0, 0.1), (5.0, "backtracking")])
def test_steps_that_diverge_keep_the_last_good_iterate_and_say_what_is_safe(step_k, step_w):
    data = paper_split(1.0).train
    learner = AlternatingLearner(
        StateInclusive(OneLayer(2, 3, bias=None)), step_k=step_k, step_w=step_w
    )
    with pytest.warns(DivergenceWarning, match=r"was kept. step_k = step_w = .* would be safe"):
        learner.fit(data)
    assert learner.history_.stopped == "diverged"
    points = pairs(data)
    start = learner.dictionary.initial(np.random.default_rng(0)), np.eye(5)
    kept = learner.operator_.parameters, learner.operator_.operator
    first, last = (gradient(learner.dictionary, *p, points).value for p in (start, kept))
    assert last <= first
    safe = learner.history_.safe_step
    again = clone(learner).set_params(step_k=safe, step_w=safe).fit(data)
    assert again.history_.stopped == "iterations"
    assert (np.diff(again.history_.objective) <= 0.0).all()  # a safe step descends


def test_any_module_learns_as_its_hand_written_equal_does():
    import torch

    layered = Layered(2, (4, 3))
    theta = layered.initial(np.random.default_rng(0))
    module = torch.nn.Sequential(
        torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3), torch.nn.Tanh()
    ).double()
    b1, w1, b2, w2 = np.split(theta, np.cumsum([4, 8, 3]))
    values = (w1.reshape(2, 4).T, b1, w2.reshape(4, 3).T, b2)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    x = paper_split().train[:60]
    by_hand = AlternatingLearner(layered, n_iterations=30).fit(x, initial=(theta, np.eye(3)))
    by_torch = AlternatingLearner(TorchDictionary(module, 2), n_iterations=30).fit(x)
    # 30 iterations of the same arithmetic in another order.
    np.testing.assert_allclose(by_torch.history_.objective, by_hand.history_.objective, rtol=1e-8)
