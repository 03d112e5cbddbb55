"""Rates, frequencies, distance from the unit circle, amplitudes: tables of known values."""

import numpy as np
import pytest
from trajectories import by_operator, spiral

import koopcore as kc
from koopcore import spectrum


@pytest.mark.parametrize(
    ("value", "dt", "rate", "frequency"),
    [
        (1.0, 1.0, 0.0, 0.0),
        (np.exp(-0.5), 1.0, -0.5, 0.0),
        (np.exp(-0.5), 10.0, -0.05, 0.0),
        (1j, 1.0, 0.0, 0.25),
        (-1j, 0.5, 0.0, -0.5),
        (-2.0, 1.0, np.log(2.0), 0.5),
        (0.5 * np.exp(0.1j), 2.0, np.log(0.5) / 2, 0.1 / (4 * np.pi)),
        (0.0, 1.0, -np.inf, 0.0),
    ],
)
def test_rates_and_frequencies(value, dt, rate, frequency):
    assert spectrum.growth_rates(value, dt) == pytest.approx(rate, rel=1e-14)
    assert spectrum.frequencies(value, dt) == pytest.approx(frequency, rel=1e-14)


def test_rates_keep_shape_and_padding():
    values = np.array([[1.0, 0.5 + 0.5j], [0.9, np.nan]])
    rates = spectrum.growth_rates(values)
    assert rates.shape == (2, 2)
    assert np.isnan(rates).tolist() == [[False, False], [False, True]]
    assert rates.dtype == np.float64
    assert spectrum.frequencies([[1.0], [1j]]).shape == (2, 1)


@pytest.mark.parametrize("dt", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("function", [spectrum.growth_rates, spectrum.frequencies])
def test_a_time_step_is_positive(function, dt):
    with pytest.raises(ValueError, match=r"dt is .*; a positive time between snapshots"):
        function([1.0], dt)


@pytest.mark.parametrize(
    ("values", "distance"),
    [
        ([[1.0, 1j, -1.0]], [0.0]),
        ([[1.0, 0.5]], [0.5]),
        ([[1.25, 0.9, np.nan]], [0.25]),
        ([[0.0]], [1.0]),
        ([[np.nan, np.nan]], [0.0]),
        (np.empty((2, 0)), [0.0, 0.0]),
        ([[0.6 + 0.8j], [3 + 4j]], [0.0, 4.0]),
        ([1.0, 2.0], 1.0),
    ],
)
def test_distance_from_the_unit_circle(values, distance):
    np.testing.assert_allclose(spectrum.unit_circle_distance(values), distance, atol=1e-15)


@pytest.mark.parametrize("m", [4, 40])
def test_amplitudes_and_eigenvalues_continue_the_motion(m):
    """x_n = Φ b, and x_{n+T} = Φ Λ^T b: modes, eigenvalues and amplitudes belong together."""
    plane = np.linalg.qr(np.random.default_rng(0).normal(size=(m, 4)))[0].T
    x = by_operator(spiral(0.6, 0.97, 4), np.ones(4), 12) @ plane
    ops = kc.fit(x, kc.Partition.groups(m, [range(m)]), "linear", rank=4)
    modes, values = ops.modes(0), ops.eigenvalues()[0, :4]
    b = spectrum.amplitudes(modes, x[-1])
    assert b.shape == (4,)
    # Four directions, the fastest 0.25 a step: cond(F) of 1e2, of a motion near 1.
    np.testing.assert_allclose((modes @ b).real, x[-1], atol=1e-6)
    for horizon in (1, 5):
        continued = modes @ (values**horizon * b)
        assert np.abs(continued.imag).max() < 1e-6
        np.testing.assert_allclose(continued.real, ops.predict(horizon), atol=1e-6)


def test_the_leading_pair_of_a_spiral_is_found():
    x = by_operator(spiral(0.6, 0.97, 4), np.ones(4), 30)
    values = kc.fit(x, kc.Partition.groups(4, [range(4)]), "linear").eigenvalues()[0, :2]
    np.testing.assert_allclose(spectrum.growth_rates(values), np.log(0.97), atol=1e-9)
    np.testing.assert_allclose(
        np.sort(spectrum.frequencies(values)), [-0.3 / np.pi, 0.3 / np.pi], atol=1e-9
    )


def test_amplitudes_of_dependent_modes_are_of_least_norm():
    modes = np.array([[1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(spectrum.amplitudes(modes, [2.0, 5.0]), [1.0, 1.0])
