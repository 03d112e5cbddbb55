"""Dictionaries: their gradients against finite differences, their layouts, and what they refuse."""

import numpy as np
import pytest
import torch

from koopcore.learning import (
    Blocks,
    Layered,
    Monomials,
    OneLayer,
    RadialBasis,
    StateInclusive,
    TorchDictionary,
)
from koopcore.learning.dictionaries.activations import ACTIVATIONS


def two_layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 5))


DICTIONARIES = {
    "tanh": OneLayer(3, 4, bias=None),
    "logistic": OneLayer(3, 4, "logistic", bias=None),
    "arctan": OneLayer(3, 4, "arctan", bias=None),
    "deep": Layered(3, (5, 4, 6)),
    "deep logistic": Layered(3, (5, 2), "logistic", bias=1.0),
    "inclusive": StateInclusive(OneLayer(3, 4, bias=None)),
    "inclusive of some": StateInclusive(OneLayer(3, 4, coordinates=(2,)), True, states=2),
    "equal blocks": Blocks((Layered(1, (4, 2)),) * 3, ((2,), (0,), (1,))),
    "equal inclusive blocks": Blocks((StateInclusive(OneLayer(1, 2, bias=None)),) * 3),
    "unequal blocks": Blocks((OneLayer(2, 3, bias=None), Layered(1, (2, 2))), ((2, 0), (1,))),
    "blocks of torch": Blocks(
        (TorchDictionary(torch.nn.Linear(1, 2), 1), OneLayer(2, 2, bias=None))
    ),
    "torch": TorchDictionary(two_layers(), 3),
    "monomials": Monomials(3, 2),
    "radial": RadialBasis(((0.0, 0.0, 0.0), (1.0, 0.0, -1.0)), 0.7),
}


@pytest.mark.parametrize("name", DICTIONARIES)
def test_gradients_are_those_of_central_differences(name):
    dictionary = DICTIONARIES[name]
    rng = np.random.default_rng(1)
    states = rng.standard_normal((7, 3))
    theta = dictionary.initial(rng)
    weights = rng.standard_normal((7, dictionary.n_features))
    features, pullback = dictionary.linearized(theta, states)
    assert features.shape == weights.shape
    np.testing.assert_array_equal(features, dictionary.features(theta, states))
    step = 1e-6
    expected = [
        np.vdot(
            weights,
            dictionary.features(theta + step * unit, states)
            - dictionary.features(theta - step * unit, states),
        )
        / (2.0 * step)
        for unit in np.eye(dictionary.n_parameters)
    ]
    # Central differences of smooth functions: truncation h² ~ 1e-12, rounding u/h ~ 1e-10, times
    # some 30 terms.
    np.testing.assert_allclose(pullback(weights), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", DICTIONARIES)
def test_a_pullback_may_be_called_again(name):
    # Backtracking keeps a linearization while it tries steps.
    dictionary = DICTIONARIES[name]
    rng = np.random.default_rng(2)
    features, pullback = dictionary.linearized(dictionary.initial(rng), rng.random((5, 3)))
    first = pullback(features)
    np.testing.assert_array_equal(pullback(features), first)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_obey_their_bounds_and_attain_them(name):
    one = ACTIVATIONS[name]
    z = np.linspace(-6.0, 6.0, 24001)
    y = one.value(z)
    h = z[1] - z[0]
    slope = one.slope(y)
    second = np.diff(slope) / h
    b0, b1, b2 = one.bounds
    for values, bound in ((y, b0), (slope, b1), (second, b2)):
        assert np.abs(values).max() <= bound * (1.0 + 1e-9)
    # Each bound of a derivative is attained, so a looser one would be a defect: on a grid of
    # 5e-4 a maximum is missed by O(h²).
    assert np.abs(slope).max() == pytest.approx(b1, rel=1e-6)
    assert np.abs(second).max() == pytest.approx(b2, rel=1e-6)
    np.testing.assert_allclose(np.diff(y) / h, (slope[1:] + slope[:-1]) / 2, rtol=0, atol=1e-7)


def test_the_logistic_function_does_not_overflow():
    with np.errstate(all="raise"):
        y = ACTIVATIONS["logistic"].value(np.array([-1e4, 0.0, 1e4]))
    np.testing.assert_array_equal(y, [0.0, 0.5, 1.0])


def test_one_layer_is_sigma_of_w_x():
    w = np.array([[1.0, 2.0], [0.5, -1.0], [0.0, 3.0]])
    x = np.array([[0.1, 0.2], [0.3, -0.4]])
    expected = np.array([[np.tanh(row @ point) for row in w] for point in x])
    actual = OneLayer(2, 3, bias=None).features(w.reshape(-1), x)
    np.testing.assert_allclose(actual, expected, rtol=1e-15)


def test_features_start_as_coordinates_and_some_states_are_left_out():
    layer = OneLayer(4, 3, scale=1e-3, coordinates=(2, 3))
    dictionary = StateInclusive(layer, constant=True, states=2)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((5, 4))
    features = dictionary.features(dictionary.initial(rng), states)
    np.testing.assert_array_equal(features[:, :2], states[:, :2])
    np.testing.assert_allclose(features[:, 2:4], 1e-3 * states[:, 2:], rtol=1e-5)
    np.testing.assert_array_equal(features[:, 5], 1.0)
    assert dictionary.state_features() == [0, 1]
    assert Blocks((dictionary, StateInclusive(OneLayer(1, 2)))).state_features() is None


@pytest.mark.parametrize(("n", "degree", "constant"), [(1, 4, True), (2, 3, False), (3, 2, True)])
def test_monomials_are_all_products_and_the_states_come_first(n, degree, constant):
    from math import comb

    dictionary = Monomials(n, degree, constant)
    assert dictionary.n_features == comb(n + degree, degree) - (not constant)
    x = np.random.default_rng(0).standard_normal((4, n))
    features = dictionary.features(np.zeros(0), x)
    first = int(constant)
    np.testing.assert_array_equal(features[:, first : first + n], x)
    for column, factors in zip(features.T, dictionary.exponents(), strict=True):
        np.testing.assert_allclose(column, np.prod(x[:, list(factors)], axis=1), rtol=1e-14)


def test_radial_functions_are_one_at_their_centres():
    centres = np.array([[0.0, 1.0], [2.0, -1.0]])
    features = RadialBasis(centres, 0.5).features(np.zeros(0), centres)
    off = np.exp(-8.0 / 0.5)
    np.testing.assert_allclose(features, [[1.0, off], [off, 1.0]], rtol=1e-14)


@pytest.mark.parametrize("exponent", [-700, -300, 300, 700])
def test_radial_functions_do_not_depend_on_the_unit(exponent):
    centres, x = np.array([[0.0, 1.0], [2.0, -1.0]]), np.array([[0.5, 0.25], [9.0, -3.0]])
    features = RadialBasis(centres, 0.7).features(np.zeros(0), x)
    size = np.ldexp(1.0, exponent)
    with np.errstate(all="raise", under="ignore"):
        scaled = RadialBasis(centres * size, 0.7 * size).features(np.zeros(0), x * size)
        far = RadialBasis(centres * size, 1e-300).features(np.zeros(0), x * 1e200)
    np.testing.assert_array_equal(scaled, features)
    np.testing.assert_array_equal(far, np.zeros((2, 2)))


def test_equal_blocks_in_a_batch_are_the_blocks_one_by_one():
    one = Layered(1, (5, 3))
    batch = Blocks((one,) * 4, ((3,), (1,), (0,), (2,)))
    rng = np.random.default_rng(3)
    theta, x = batch.initial(rng), rng.standard_normal((6, 4))
    parts = [
        one.features(theta[own], x[:, list(states)])
        for own, states in zip(batch.parameter_slices(), batch.states, strict=True)
    ]
    # The same products in another memory layout: rounding only.
    np.testing.assert_allclose(batch.features(theta, x), np.hstack(parts), rtol=0, atol=1e-15)


def test_a_torch_dictionary_starts_from_its_module_and_leaves_it_alone():
    module = two_layers()
    before = [p.clone() for p in module.parameters()]
    dictionary = TorchDictionary(module, 3)
    x = np.random.default_rng(4).standard_normal((5, 3))
    theta = dictionary.initial(np.random.default_rng())
    expected = module.double()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(dictionary.features(theta, x), expected, rtol=1e-13)
    dictionary.linearized(theta + 1.0, x)[1](np.ones((5, 5)))
    for p, old in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(p, old.double(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: OneLayer(2, 3, "relu", bias=None),
            r"activation is 'relu'; one of 'tanh', 'logistic'",
        ),
        (lambda: OneLayer(0, 3, bias=None), "n_states is 0; a whole number >= 1"),
        (lambda: Layered(2, ()), "widths is empty"),
        (lambda: Layered(2, (3, 0)), r"widths\[1\] is 0"),
        (lambda: Monomials(2, 0), "degree is 0"),
        (lambda: RadialBasis(((0.0, np.nan),)), r"centres is not finite: nan at \[0, 1\]"),
        (lambda: RadialBasis((0.0, 1.0)), "centres has shape"),
        (lambda: RadialBasis(((0.0,),), width=0.0), "width is 0.0"),
        (lambda: Blocks(()), "dictionaries is empty"),
        (
            lambda: Blocks((OneLayer(1, 2, bias=None),) * 2, ((0,),)),
            "states has 1 blocks, dictionaries 2",
        ),
        (
            lambda: Blocks((OneLayer(1, 2, bias=None),) * 2, ((0,), (0,))),
            r"missing \[1\], named twice \[0\]",
        ),
        (lambda: Blocks((OneLayer(1, 2, bias=None),) * 2, ((0,), (2,))), r"missing \[1\]"),
        (lambda: Blocks((OneLayer(2, 2, bias=None),), ((0,),)), "block 0 has states .* takes 2"),
        (lambda: TorchDictionary(torch.nn.Flatten(0), 3), r"\(2, n_features\) is needed"),
        (lambda: OneLayer(2, 3, scale=-1.0, bias=None), "scale is -1.0"),
        (lambda: OneLayer(2, 3, coordinates=(2,)), "1 numbers up to 2; at most 3 of 0 to 1"),
        (lambda: OneLayer(2, 1, coordinates=(0, 1)), "2 numbers up to 1; at most 1 of 0 to 1"),
        (lambda: StateInclusive(OneLayer(2, 3), states=3), "states is 3, but inner takes 2"),
        (lambda: Layered(2, (3,), bias=np.nan), "bias is nan"),
        (lambda: Monomials(1000, 9), "make more than 1000000 monomials; lower the degree"),
        (lambda: Monomials(10**9, 10**9), "make more than 1000000 monomials"),
    ],
)
def test_a_dictionary_that_cannot_be_says_why(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Complex(torch.nn.Module):
    def forward(self, x):
        return torch.complex(x, x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneLayer(2.0, 3, bias=None), "n_states is 2.0; a whole number"),
        (lambda: OneLayer(2, 3, ["tanh"], bias=None), "activation is"),
        (lambda: Layered(2, (3, True)), r"widths\[1\] is True"),
        (lambda: Monomials(2, 2.5), "degree is 2.5"),
        (lambda: Monomials(2, 2, "yes"), "constant is 'yes'; True or False"),
        (lambda: StateInclusive(torch.nn.Linear(2, 3)), "inner is a Linear, without n_states"),
        (
            lambda: Blocks((OneLayer(1, 2, bias=None), 3)),
            r"dictionaries\[1\] is a int, without n_states",
        ),
        (lambda: Blocks((OneLayer(1, 2, bias=None),) * 2, ((0.0,), (1,))), "a state is 0.0"),
        (lambda: TorchDictionary(Complex(), 3), "the module makes complex numbers"),
        (
            lambda: TorchDictionary(torch.nn.Linear(2, 3, dtype=torch.complex128), 2),
            "the module has complex parameters",
        ),
    ],
)
def test_settings_of_another_type_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


class Negating(torch.nn.Module):
    """Its outputs, and the gradients of its weight, come with a pending negation."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0, 0.5], [0.25, 1.0, 3.0]]))

    def forward(self, x):
        inner = x @ self.weight.T
        return torch.complex(torch.zeros_like(inner), -inner).conj().imag


def test_modules_with_a_pending_negation_are_the_modules_they_stand_for():
    plain = torch.nn.Linear(3, 2, bias=False)
    plain.weight.data = Negating().weight.data
    negating, linear = TorchDictionary(Negating(), 3), TorchDictionary(plain, 3)
    states = np.random.default_rng(0).standard_normal((5, 3))
    theta = negating.initial(np.random.default_rng())
    np.testing.assert_array_equal(theta, linear.initial(np.random.default_rng()))
    features, pullback = negating.linearized(theta, states)
    expected, expected_pullback = linear.linearized(theta, states)
    np.testing.assert_array_equal(features, expected)
    np.testing.assert_array_equal(negating.features(theta, states), expected)
    np.testing.assert_allclose(pullback(features), expected_pullback(features), rtol=1e-14)


def test_a_module_without_parameters_is_a_fixed_dictionary():
    dictionary = TorchDictionary(torch.nn.Tanh(), 2)
    states = np.random.default_rng(0).standard_normal((5, 2))
    theta = dictionary.initial(np.random.default_rng())
    features, pullback = dictionary.linearized(theta, states)
    np.testing.assert_allclose(features, np.tanh(states), rtol=1e-15)
    assert pullback(features).shape == theta.shape == (0,)
