"""Algorithm 1 against the paper's formulas summed point by point, and what a learner promises."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from koopcore.lab.problems.van_der_pol import paper_split, trajectory
from koopcore.learning import (
    AlternatingLearner,
    DivergenceWarning,
    Layered,
    Monomials,
    OneLayer,
    StateInclusive,
    TorchDictionary,
    prediction_errors,
    simultaneous_step,
)
from koopcore.learning.objective import exact_operator, gradient
from koopcore.learning.step_sizes import joint_lipschitz
from koopcore.learning.trajectories import pairs


def rotation(n: int = 60, angle: float = 0.3, shrink: float = 0.98) -> np.ndarray:
    steps = np.arange(n)[:, None]
    return shrink**steps * np.hstack([np.cos(angle * steps), np.sin(angle * steps)])


def by_points(
    w: np.ndarray, k: np.ndarray, trajectories: list[np.ndarray]
) -> tuple[float, np.ndarray, np.ndarray]:
    """F, ∇_K and ∇_W of MATH section 4, one pair of points at a time, for σ = tanh."""
    value, slope_k, slope_w, count = 0.0, np.zeros_like(k), np.zeros_like(w), 0
    for x in trajectories:
        for now, ahead in pairwise(x):
            psi, psi_ahead = np.tanh(w @ now), np.tanh(w @ ahead)
            e = psi_ahead - k @ psi
            value += e @ e
            slope_k -= 2.0 * np.outer(e, psi)
            slope_w += 2.0 * np.outer(e * (1.0 - psi_ahead**2), ahead)
            slope_w -= 2.0 * np.outer((k.T @ e) * (1.0 - psi**2), now)
            count += 1
    return value / count, slope_k / count, slope_w / count


@pytest.mark.parametrize("lengths", [(30,), (2,), (12, 2, 7)])
def test_the_gradient_is_the_papers_sum_over_points(lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    data = [rng.standard_normal((n, 2)) for n in lengths]
    w, k = rng.standard_normal((3, 2)), rng.standard_normal((3, 3))
    value, slope_k, slope_w = by_points(w, k, data)
    actual = gradient(OneLayer(2, 3), w.reshape(-1), k, pairs(data))
    # The same sums in another order: rounding of some 30 terms of size 1 to 10.
    np.testing.assert_allclose(actual.value, value, rtol=1e-13)
    np.testing.assert_allclose(actual.operator, slope_k, rtol=0, atol=1e-13)
    np.testing.assert_allclose(actual.parameters.reshape(3, 2), slope_w, rtol=0, atol=1e-13)


def test_an_iteration_is_a_k_step_and_then_a_w_step_at_the_new_k() -> None:
    data = paper_split().train[:80]
    dictionary = OneLayer(2, 3)
    w = dictionary.initial(np.random.default_rng(1)).reshape(3, 2)
    k = np.eye(3)
    for _ in range(5):
        k_used = k - 0.2 * by_points(w, k, [data])[1]
        w_used, k = w, k_used
        w = w - 0.1 * by_points(w, k, [data])[2]
    learner = AlternatingLearner(dictionary, n_iterations=5, step_k=0.2, step_w=0.1, random_state=1)
    seen: list[Any] = []
    learner.fit(data, callback=lambda t, iterate: seen.append(iterate))
    # Five iterations of sums of 80 points in another order.
    np.testing.assert_allclose(seen[-1].operator, k, rtol=0, atol=1e-13)
    np.testing.assert_allclose(seen[-1].parameters.reshape(3, 2), w_used, rtol=0, atol=1e-13)
    assert len(learner.history_) == 5


def test_several_trajectories_are_never_paired_across_their_ends() -> None:
    x = rotation()
    jump = [x[:20], x[40:], x[10:12]]
    learner = AlternatingLearner(Monomials(2, 1), k_step="exact", n_iterations=1).fit(jump)
    angle = 0.3
    turn = 0.98 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # An exactly linear system: a pair across two trajectories would be far off.
    np.testing.assert_allclose(learner.operator_.operator, turn, rtol=0, atol=1e-12)


@pytest.mark.parametrize("h", [3, 8])
def test_the_exact_step_is_least_squares(h: int) -> None:
    rng = np.random.default_rng(h)
    data = pairs(rng.standard_normal((50, 2)))
    features = np.tanh(data.states @ rng.standard_normal((2, h)) + rng.standard_normal(h))
    k = exact_operator(features, data)
    expected = np.linalg.lstsq(features[:-1], features[1:], rcond=None)[0].T
    # Gram matrices square the condition, here below 1e3.
    np.testing.assert_allclose(k, expected, rtol=0, atol=1e-9)
    rows = exact_operator(features, data, rows=slice(1, 3))
    np.testing.assert_allclose(rows, k[1:3], rtol=0, atol=1e-12)


def test_dependent_features_do_not_blow_the_exact_step_up() -> None:
    data = pairs(rotation())
    x = data.states
    features = np.hstack([x, x @ [[1.0], [1.0]], x])  # rank 2 of 5
    k = exact_operator(features, data)
    # The least-squares solution of least norm; 1e-7 is the square root of the Gram's rounding.
    np.testing.assert_allclose(features[:-1] @ k.T, features[1:], rtol=0, atol=1e-7)
    assert np.linalg.norm(k) < 10.0


@pytest.mark.parametrize("k_step", ["gradient", "exact"])
def test_backtracking_never_lets_f_rise(k_step: Any) -> None:
    data = paper_split(1.0).train
    dictionary = StateInclusive(OneLayer(2, 4, scale=0.5))
    learner = AlternatingLearner(dictionary, k_step=k_step, n_iterations=80).fit(data)
    objective = np.array(learner.history_.objective)
    # 1e-12: the exact step drops directions at the Gram's rounding, relative to ‖ψ‖² ~ 1.
    assert (np.diff(objective) <= 1e-12).all()
    assert objective[-1] < objective[0]


def test_the_kept_iterate_is_the_one_of_least_e() -> None:
    seen = {}
    learner = AlternatingLearner(OneLayer(2, 3), step_k=0.23, step_w=0.23, n_iterations=60)
    learner.fit(paper_split().train, callback=lambda t, iterate: seen.update({t: iterate}))
    history = learner.history_
    best = int(np.argmin(history.criterion))
    assert history.best == best
    np.testing.assert_array_equal(learner.operator_.operator, seen[best].operator)
    np.testing.assert_array_equal(learner.operator_.parameters, seen[best].parameters)


def test_tracking_the_objective_keeps_the_least_f() -> None:
    learner = AlternatingLearner(Layered(2, (4, 3)), track="objective", n_iterations=40)
    learner.fit(paper_split().train)
    assert learner.history_.best == int(np.argmin(learner.history_.objective))


def test_learning_stops_early_at_the_tolerance_and_at_a_callbacks_wish() -> None:
    data = paper_split().train
    first = AlternatingLearner(OneLayer(2, 3), tolerance=0.05).fit(data)
    e = first.history_.criterion
    assert first.history_.stopped == "tolerance"
    assert e[-1] <= 0.05 * e[0] < e[-2]
    second = AlternatingLearner(OneLayer(2, 3)).fit(data, callback=lambda t, _: t == 4)
    assert (second.history_.stopped, len(second.history_)) == ("callback", 5)


@pytest.mark.parametrize(("step_k", "step_w"), [(50.0, 0.1), (5.0, "backtracking")])
def test_steps_that_diverge_keep_the_last_good_iterate_and_say_what_is_safe(
    step_k: float, step_w: Any
) -> None:
    data = paper_split(1.0).train
    learner = AlternatingLearner(StateInclusive(OneLayer(2, 3)), step_k=step_k, step_w=step_w)
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


def test_the_joint_lipschitz_constant_is_the_largest_curvature() -> None:
    data = pairs(paper_split(1.0).train[:60])
    dictionary = StateInclusive(OneLayer(2, 2))
    rng = np.random.default_rng(3)
    theta, k = dictionary.initial(rng), rng.standard_normal((4, 4))
    point, step = np.concatenate([theta, k.reshape(-1)]), 1e-5

    def slope(z: np.ndarray) -> np.ndarray:
        found = gradient(dictionary, z[:4], z[4:].reshape(4, 4), data)
        return np.concatenate([found.parameters, found.operator.reshape(-1)])

    columns = [
        (slope(point + step * unit) - slope(point - step * unit)) / (2.0 * step)
        for unit in np.eye(len(point))
    ]
    largest = np.abs(np.linalg.eigvalsh(np.array(columns))).max()
    # Thirty powers from a random start find a separated eigenvalue to a percent or better.
    assert joint_lipschitz(dictionary, theta, k, data) == pytest.approx(largest, rel=0.01)


def test_polishing_solves_for_k_at_the_kept_dictionary() -> None:
    data = paper_split().train
    rough = AlternatingLearner(Layered(2, (6, 6)), n_iterations=20).fit(data)
    fine = clone(rough).set_params(polish=True).fit(data)
    np.testing.assert_array_equal(fine.operator_.parameters, rough.operator_.parameters)
    points = pairs(data)
    values = [
        gradient(points_of.dictionary, points_of.parameters, points_of.operator, points).value
        for points_of in (rough.operator_, fine.operator_)
    ]
    assert values[1] < values[0]


@pytest.mark.parametrize("standardize", [False, True])
def test_predictions_iterate_the_operator_from_the_first_state_alone(standardize: bool) -> None:
    x = rotation(80) + np.array([5.0 * standardize, 0.0])
    learner = AlternatingLearner(
        StateInclusive(OneLayer(2, 2)), k_step="exact", n_iterations=3, standardize=standardize
    ).fit(x[:50])
    if not standardize:
        # Linear and state-inclusive: exact but for the Gram's rounding over 30 steps.
        np.testing.assert_allclose(learner.predict(x[49], 30), x[50:], rtol=0, atol=1e-6)
    batch = learner.predict(x[:3], 4)
    assert batch.shape == (3, 4, 2)
    np.testing.assert_allclose(batch[1], learner.predict(x[1], 4), rtol=1e-12)
    np.testing.assert_allclose(learner.predict(x[0], 1), learner.predict(x[0], 4)[:1], rtol=1e-12)


def test_scores_are_r_squared_of_one_step() -> None:
    x = paper_split().train
    learner = AlternatingLearner(StateInclusive(OneLayer(2, 4, scale=0.5)), k_step="exact").fit(x)
    ahead = np.vstack([learner.predict(row, 1) for row in x[:-1]])
    true = x[1:]
    expected = 1.0 - ((ahead - true) ** 2).sum() / ((true - true.mean(axis=0)) ** 2).sum()
    assert learner.score(x) == pytest.approx(expected, abs=1e-12)
    assert 0.999 < learner.score(x) < 1.0


def test_the_spectrum_is_that_of_k_and_modes_rebuild_the_state() -> None:
    x = rotation()
    learned = AlternatingLearner(Monomials(2, 2), k_step="exact", n_iterations=1).fit(x).operator_
    turn = 0.98 * np.exp(0.3j)
    expected = [turn, turn.conjugate(), turn**2, (turn**2).conjugate(), abs(turn) ** 2]
    actual = learned.eigenvalues()
    for value in expected:
        assert np.abs(actual - value).min() < 1e-9  # the Gram's rounding
    np.testing.assert_allclose(learned.growth_rates(0.5)[:2], np.log(0.98) / 0.5, atol=1e-9)
    assert np.abs(learned.frequencies(0.5)).max() == pytest.approx(0.6 / (2 * np.pi * 0.5))
    values, vectors = np.linalg.eig(learned.operator)
    amplitudes = np.linalg.solve(vectors, learned.features(x[0])[0])
    order = np.argsort(-np.abs(values), kind="stable")
    rebuilt = learned.modes() @ amplitudes[order]
    np.testing.assert_allclose(rebuilt, x[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "dictionary",
    [OneLayer(2, 3), StateInclusive(Layered(2, (3, 3))), Monomials(2, 3)],
    ids=lambda d: type(d).__name__,
)
def test_learners_clone_pickle_and_repeat(dictionary: Any) -> None:
    x = paper_split().train[:100]
    learner = AlternatingLearner(dictionary, n_iterations=10, random_state=5).fit(x)
    twin = clone(learner)
    assert not hasattr(twin, "operator_")
    twin.fit(x)
    np.testing.assert_array_equal(twin.operator_.operator, learner.operator_.operator)
    back = pickle.loads(pickle.dumps(learner))
    np.testing.assert_array_equal(back.predict(x[0], 5), learner.predict(x[0], 5))
    assert "n_iterations=10" in repr(learner)
    assert learner.get_params()["random_state"] == 5


def test_any_module_learns_as_its_hand_written_equal_does() -> None:
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


def test_progress_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    AlternatingLearner(OneLayer(2, 3), n_iterations=3, progress=True).fit(rotation())
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "learning" in shown.err
    AlternatingLearner(OneLayer(2, 3), n_iterations=3).fit(rotation())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("theta", "k"), [(np.zeros(5), np.eye(3)), (np.zeros(6), np.eye(2)), (np.zeros((3, 2)), 1.0)]
)
def test_a_start_of_another_size_says_what_is_needed(theta: Any, k: Any) -> None:
    with pytest.raises(ValueError, match=r"initial has shapes .* needs θ \(6,\) and K \(3, 3\)"):
        AlternatingLearner(OneLayer(2, 3)).fit(rotation(), initial=(theta, k))


def test_fit_leaves_the_start_and_the_data_alone() -> None:
    x, theta, k = rotation(), np.full(6, 0.3), np.eye(3)
    before = x.copy(), theta.copy(), k.copy()
    AlternatingLearner(OneLayer(2, 3), n_iterations=5, standardize=True).fit(x, initial=(theta, k))
    for now, then in zip((x, theta, k), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_simultaneous_step_moves_both_from_the_old_point() -> None:
    data = pairs(rotation())
    dictionary = OneLayer(2, 3)
    theta = dictionary.initial(np.random.default_rng(0))
    k = np.eye(3)
    slopes = gradient(dictionary, theta, k, data)
    moved, moved_k, _ = simultaneous_step(dictionary, theta, k, data, 0.2, 0.1)
    np.testing.assert_array_equal(moved, theta - 0.1 * slopes.parameters)
    np.testing.assert_array_equal(moved_k, k - 0.2 * slopes.operator)


def test_errors_of_a_wild_prediction_are_infinite_not_nan() -> None:
    x = trajectory(n_points=300)
    learner = AlternatingLearner(OneLayer(2, 3), n_iterations=2).fit(x)
    wild = learner.operator_.__class__(**{**vars(learner.operator_), "operator": 1e9 * np.eye(3)})
    assert prediction_errors(wild, x).multi_step_features == np.inf


GOOD = rotation()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([GOOD, GOOD[:, :1]], "trajectory 1 has 1 states a row; .* takes 2"),
        (GOOD[:1], "trajectory 0 has 1 row; at least 2"),
        ([GOOD, GOOD[:0]], "trajectory 1 has 0 rows"),
        (np.where(GOOD > 0.9, np.nan, GOOD), "row 0, state 0 is nan; nothing was learned"),
        ([GOOD, np.full((3, 2), np.inf)], "trajectory 1 is not finite"),
        (np.ones((9, 2)), "no trajectory ever changes"),
        ([], "no trajectory was given"),
        (np.ones((2, 2, 2, 2)), "shape"),
    ],
)
def test_data_that_cannot_be_learned_from_say_why(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlternatingLearner(OneLayer(2, 3)).fit(data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_iterations": 0}, "n_iterations is 0"),
        ({"k_step": "newton"}, "k_step is 'newton'"),
        ({"step_k": -1.0}, "step_k is -1.0; 'lipschitz', a number > 0 or Diminishing"),
        ({"step_w": "fast"}, "step_w is 'fast'"),
        ({"track": "loss"}, "track is 'loss'"),
        ({"readout": "magic"}, "readout is 'magic'"),
        ({"readout": "state-inclusive"}, "wrap the dictionary"),
        ({"ridge": -1.0}, "ridge is -1.0"),
        ({"tolerance": np.nan}, "tolerance is nan"),
        ({"dictionary": Layered(2, (3,)), "step_w": "lemma"}, "OneLayer alone"),
    ],
)
def test_settings_that_cannot_work_say_why(settings: dict[str, Any], message: str) -> None:
    learner = AlternatingLearner(**{"dictionary": OneLayer(2, 3), **settings})
    with pytest.raises(ValueError, match=message):
        learner.fit(GOOD)


def test_states_without_a_scale_cannot_be_standardized() -> None:
    data = np.hstack([GOOD, np.full((len(GOOD), 1), 3.0)])
    with pytest.raises(ValueError, match=r"states \[2\] never change"):
        AlternatingLearner(OneLayer(3, 3), standardize=True).fit(data)


def test_predictions_refuse_what_they_cannot_start_from() -> None:
    learner = AlternatingLearner(OneLayer(2, 3), n_iterations=2)
    with pytest.raises(AttributeError, match=r"call fit\(X\)"):
        learner.predict([1.0, 0.0])
    learner.fit(GOOD)
    for x0, steps, message in (
        ([1.0], 3, "shape"),
        ([np.inf, 0.0], 3, "not finite"),
        ([1.0, 0.0], 0, "n_steps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            learner.predict(x0, steps)
    with pytest.raises(ValueError, match="'speed' is no parameter"):
        learner.set_params(speed=3)
