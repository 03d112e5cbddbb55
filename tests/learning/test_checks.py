"""What learning takes in: numbers that name themselves, arrays of every library as they are."""

import numpy as np
import pytest
import torch
from learning_cases import rotation

from koopcore.learning import (
    AlternatingLearner,
    DistributedLearner,
    Monomials,
    OneLayer,
    RadialBasis,
    prediction_errors,
)
from koopcore.learning.checks import (
    finite_array,
    not_negative,
    positive,
    positive_seconds,
    real_array,
    truth,
    whole,
)

X = rotation()


def negated(values):
    """A tensor of these values that is a view with a pending negation of others."""
    tensor = torch.complex(
        torch.zeros(np.shape(values), dtype=torch.float64), -torch.tensor(values)
    )
    view = tensor.conj().imag
    assert view.is_neg()
    return view


KINDS = {
    "pending negation": negated,
    "gradient": lambda x: torch.tensor(x, requires_grad=True),
    "strided": lambda x: torch.tensor(np.repeat(x, 2, axis=-1))[..., ::2],
    "nested lists": lambda x: x.tolist(),
    "fortran order": np.asfortranarray,
    "other byte order": lambda x: x.astype(">f8"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_learning_takes_in_may_come_from_any_library(kind):
    make = KINDS[kind]
    dictionary = OneLayer(2, 3, bias=None)
    theta, k = dictionary.initial(np.random.default_rng(1)), 0.9 * np.eye(3)
    expected = AlternatingLearner(dictionary, n_iterations=4).fit(X, initial=(theta, k))
    learner = AlternatingLearner(dictionary, n_iterations=4)
    learner.fit(make(X), initial=(make(theta), make(k)))
    np.testing.assert_array_equal(learner.operator_.operator, expected.operator_.operator)
    np.testing.assert_array_equal(learner.operator_.parameters, expected.operator_.parameters)
    several = AlternatingLearner(dictionary, n_iterations=4).fit(
        [make(X[:30]), make(X[30:])], initial=(theta, k)
    )
    alike = AlternatingLearner(dictionary, n_iterations=4).fit([X[:30], X[30:]], initial=(theta, k))
    np.testing.assert_array_equal(several.operator_.operator, alike.operator_.operator)
    np.testing.assert_array_equal(learner.predict(make(X[0]), 3), expected.predict(X[0], 3))
    np.testing.assert_array_equal(learner.predict(make(X[:2]), 3), expected.predict(X[:2], 3))
    np.testing.assert_array_equal(learner.transform(make(X))[0], expected.transform(X)[0])
    assert learner.score(make(X)) == expected.score(X)
    learned = learner.operator_
    np.testing.assert_array_equal(learned.features(make(X)), learned.features(X))
    assert prediction_errors(learned, make(X)) == prediction_errors(learned, X)
    assert RadialBasis(make(X[:4])) == RadialBasis(X[:4])


def test_a_tensor_of_three_axes_is_several_trajectories_as_an_array_is():
    stacked = np.stack([X[:20], X[20:40]])
    learners = [
        AlternatingLearner(Monomials(2, 1), k_step="exact", n_iterations=1).fit(data)
        for data in (stacked, torch.tensor(stacked), [X[:20], X[20:40]])
    ]
    for learner in learners[1:]:
        np.testing.assert_array_equal(learner.operator_.operator, learners[0].operator_.operator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64])
def test_tensors_of_every_real_dtype_are_their_values(dtype):
    tensor = torch.tensor([[1.5, -2.25], [3.0, 0.5]]).to(dtype)
    np.testing.assert_array_equal(finite_array("x", tensor), tensor.double().numpy())


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (X * 1j, TypeError, "is of complex128; real numbers"),
        (torch.tensor(X) * 1j, TypeError, "is of complex128"),
        ((torch.tensor(X) * 1j).conj(), TypeError, "is of complex128"),
        (X > 0, TypeError, "is of bool"),
        (X.astype(str), TypeError, "is of <U"),
        (X.astype(object), TypeError, "is of object"),
        (np.ma.masked_less(X, 0.0), TypeError, "is a masked array"),
        (torch.tensor(X).to_sparse(), TypeError, "is a torch.sparse_coo tensor"),
        (torch.empty(60, 2, device="meta"), TypeError, r"is on meta; .*pass \.cpu\(\)"),
        ([[1.0, 2.0], [1.0]], ValueError, "cannot be made an array|rows have"),
    ],
    ids=str,
)
def test_what_is_no_real_number_is_named(value, error, message):
    learner = AlternatingLearner(OneLayer(2, 3, bias=None), n_iterations=2)
    theta, k = np.full(6, 0.3), np.eye(3)
    with pytest.raises(error, match=message):
        learner.fit(value)
    learner.fit(X)
    for call in (
        lambda: learner.predict(value),
        lambda: learner.transform(value),
        lambda: learner.score(value),
        lambda: learner.fit(X, initial=(value, k)),
        lambda: learner.fit(X, initial=(theta, value)),
        lambda: prediction_errors(learner.operator_, value),
        lambda: RadialBasis(value),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (whole, 0, ValueError, "n is 0; a whole number >= 1 is needed"),
        (whole, 2.0, TypeError, "n is 2.0; a whole"),
        (whole, True, TypeError, "n is True; a whole"),
        (not_negative, -1e-9, ValueError, "n is -1e-09; a finite number >= 0"),
        (not_negative, np.inf, ValueError, "n is inf; a finite"),
        (not_negative, np.nan, ValueError, "n is nan; a finite"),
        (not_negative, "1", TypeError, "n is '1'; a finite"),
        (not_negative, False, TypeError, "n is False; a finite"),
        (not_negative, 10**400, ValueError, "n is too large"),
        (positive, 0, ValueError, "n is 0; a finite number > 0"),
        (positive_seconds, 0.0, ValueError, "n is 0.0; seconds > 0"),
        (positive_seconds, np.nan, ValueError, "n is nan; seconds > 0"),
        (truth, 1, TypeError, "n is 1; True or False"),
    ],
)
def test_numbers_that_cannot_be_say_why(check, value, error, message):
    with pytest.raises(error, match=message):
        check("n", value)


def test_numbers_of_numpy_become_pythons():
    for value, kind in (
        (whole("n", np.int16(3)), int),
        (positive("n", np.float32(0.5)), float),
        (not_negative("n", np.int64(0)), float),
        (truth("n", np.True_), bool),
        (positive_seconds("n", np.inf), float),
    ):
        assert type(value) is kind


def test_an_array_is_not_copied_where_it_need_not_be():
    assert real_array("x", X) is X
    assert np.shares_memory(finite_array("x", X), X) is False


@pytest.mark.parametrize("kind", [AlternatingLearner, DistributedLearner])
def test_what_is_no_dictionary_is_named(kind):
    with pytest.raises(TypeError, match="dictionary is a"):
        kind(torch.nn.Linear(2, 3)).fit(X)
