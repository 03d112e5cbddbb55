"""What every learner promises: scikit-learn's conventions, early errors, data left alone."""

import pickle

import numpy as np
import pytest
from learning_cases import rotation
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from koopcore.lab.problems.van_der_pol import paper_split
from koopcore.learning import (
    AlternatingLearner,
    DistributedLearner,
    Layered,
    MinibatchLearner,
    Monomials,
    OneLayer,
    StateInclusive,
)
from koopcore.learning.objective import gradient
from koopcore.learning.trajectories import pairs


@pytest.mark.parametrize("learner", [AlternatingLearner, MinibatchLearner, DistributedLearner])
def test_arguments_that_only_another_learner_takes_are_named(learner):
    x = paper_split().train[:50]
    learner = learner(StateInclusive(OneLayer(2, 3)))
    with pytest.raises(TypeError, match=r"takes no u, .*inputs and weights .*VariableProjection"):
        learner.fit(x, u=x, sample_weight=np.ones(50))
    with pytest.raises(TypeError, match=rf"{type(learner).__name__}\.fit takes no weights$"):
        learner.fit(x, weights=np.ones(50))


def test_scores_are_r_squared_of_one_step():
    x = paper_split().train
    learner = AlternatingLearner(
        StateInclusive(OneLayer(2, 4, scale=0.5, bias=None)), k_step="exact"
    ).fit(x)
    ahead = np.vstack([learner.predict(row, 1) for row in x[:-1]])
    true = x[1:]
    expected = 1.0 - ((ahead - true) ** 2).sum() / ((true - true.mean(axis=0)) ** 2).sum()
    assert learner.score(x) == pytest.approx(expected, abs=1e-12)
    assert 0.999 < learner.score(x) < 1.0


@pytest.mark.parametrize(
    "dictionary",
    [OneLayer(2, 3, bias=None), StateInclusive(Layered(2, (3, 3))), Monomials(2, 3)],
    ids=lambda d: type(d).__name__,
)
def test_learners_clone_pickle_and_repeat(dictionary):
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


def test_polishing_solves_for_k_at_the_kept_dictionary():
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


def test_progress_goes_to_standard_error(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    AlternatingLearner(OneLayer(2, 3, bias=None), n_iterations=3, progress=True).fit(rotation())
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "learning" in shown.err
    AlternatingLearner(OneLayer(2, 3, bias=None), n_iterations=3).fit(rotation())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("theta", "k"), [(np.zeros(5), np.eye(3)), (np.zeros(6), np.eye(2)), (np.zeros((3, 2)), 1.0)]
)
def test_a_start_of_another_size_says_what_is_needed(theta, k):
    with pytest.raises(ValueError, match=r"initial has shapes .* needs θ \(6,\) and K \(3, 3\)"):
        AlternatingLearner(OneLayer(2, 3, bias=None)).fit(rotation(), initial=(theta, k))


def test_fit_leaves_the_start_and_the_data_alone():
    x, theta, k = rotation(), np.full(6, 0.3), np.eye(3)
    before = x.copy(), theta.copy(), k.copy()
    AlternatingLearner(OneLayer(2, 3, bias=None), n_iterations=5, standardize=True).fit(
        x, initial=(theta, k)
    )
    for now, then in zip((x, theta, k), before, strict=True):
        np.testing.assert_array_equal(now, then)


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
def test_settings_that_cannot_work_say_why(settings, message):
    learner = AlternatingLearner(**{"dictionary": OneLayer(2, 3, bias=None), **settings})
    with pytest.raises(ValueError, match=message):
        learner.fit(rotation())


def test_learners_have_what_scikit_learn_asks_for():
    x = np.stack([np.cos(0.1 * np.arange(200)), np.sin(0.1 * np.arange(200))], axis=1)
    learner = AlternatingLearner(Monomials(2, 2), n_iterations=1, k_step="exact")
    with pytest.raises(NotFittedError):
        check_is_fitted(learner)
    with pytest.raises(NotFittedError, match=r"call fit\(X\)"):
        learner.score(x)
    folds = TimeSeriesSplit(3)
    grid = GridSearchCV(learner, {"dictionary__degree": [1, 2], "ridge": [0.0, 1e-9]}, cv=folds)
    best = grid.fit(x).best_estimator_
    assert grid.best_score_ > 1.0 - 1e-9
    assert best.n_features_in_ == 2
    assert cross_val_score(learner, x, cv=folds).min() > 1.0 - 1e-9
    scaled = make_pipeline(StandardScaler(), learner).fit(x)
    assert scaled.score(x) > 1.0 - 1e-9
    assert scaled.predict(x).shape == (200, 1, 2)
    assert learner.set_params(dictionary=Monomials(2, 4), dictionary__constant=True) is learner
    assert learner.dictionary == Monomials(2, 4, constant=True)
    with pytest.raises(ValueError, match="'dictionary__deg' is no parameter of"):
        learner.set_params(dictionary__deg=1)
