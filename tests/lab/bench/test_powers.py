"""Exponents: recovered from exact and noisy costs, with intervals that cover the truth."""

import math

import numpy as np
import pytest

from koopcore.lab.bench.powers import fit_power

X = np.geomspace(1e3, 1e8, 6)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7, 2.0])
@pytest.mark.parametrize("fixed", [0.0, 5e-5])
def test_an_exact_law_is_recovered(exponent, fixed):
    seconds = fixed + 3e-9 * X**exponent
    power = fit_power(X, seconds, fixed=fixed > 0)
    assert power.exponent == pytest.approx(exponent, abs=1e-4)
    assert power.fixed == pytest.approx(fixed, rel=1e-3)
    assert power.half_width < 1e-3


def test_without_a_fixed_cost_in_the_data_none_is_found():
    power = fit_power(X, 3e-9 * X)
    # A fixed cost below 1 % of the least time is left out: the points do not tell.
    assert power.fixed < 0.01 * 3e-9 * X[0]
    assert power.exponent == pytest.approx(1.0, abs=1e-3)


def test_a_fixed_cost_that_is_ignored_bends_the_exponent():
    seconds = 5e-5 + 3e-9 * X
    assert fit_power(X, seconds, fixed=False).exponent < 0.9
    assert fit_power(X, seconds).exponent == pytest.approx(1.0, abs=1e-4)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    x = np.geomspace(1e3, 1e6, 8)
    runs = 200
    covered = 0
    for _ in range(runs):
        power = fit_power(x, 1e-9 * x * np.exp(rng.normal(0, 0.1, 8)), fixed=False)
        covered += abs(power.exponent - 1.0) <= power.half_width
    # 95 % of 200 is 190, with a standard deviation of 3.1: four of them.
    assert 178 <= covered <= 200


def test_noise_widens_the_interval():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=6)
    narrow = fit_power(X, 1e-9 * X * np.exp(0.01 * noise), fixed=False)
    wide = fit_power(X, 1e-9 * X * np.exp(0.1 * noise), fixed=False)
    # Linear in the logarithms, so ten times the noise is exactly ten times the width.
    assert wide.half_width == pytest.approx(10 * narrow.half_width, rel=1e-6)


@pytest.mark.parametrize(
    ("x", "seconds", "fixed"),
    [
        ([1, 2, 3], [1, 2, 3], True),
        ([1, 2], [1, 2], False),
        ([1, 2, 3, 4], [1, 2, 3], True),
        ([0, 1, 2, 3], [1, 2, 3, 4], True),
        ([1, 2, 3, 4], [1, -2, 3, 4], True),
        ([1, 2, 3, 4], [1, math.nan, 3, 4], True),
    ],
)
def test_too_little_or_impossible_data_is_an_error(x, seconds, fixed):
    with pytest.raises(ValueError, match=r"needed|positive"):
        fit_power(x, seconds, fixed)


def test_the_text_has_the_exponent_and_its_interval():
    text = str(fit_power(X, 5e-5 + 3e-9 * X))
    assert text.startswith("5e-05 s + ")
    assert "x^1.00±0.00" in text
