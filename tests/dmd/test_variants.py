"""Every variant of DMD against a literal transcription of its definition in NumPy."""

import numpy as np
import pytest
from dmd_cases import DT, TOY, damped, farthest, toy, waves
from scipy.linalg import sqrtm

from koopcore.dmd import DMD, LowerRankWarning, fixed_point
from koopcore.dmd.algebra.columns import variances

NOISY = waves(n=50, m=30, noise=0.05)[0][0]
LONG = waves(n=50, m=8, noise=0.05, seed=3)[0][0]
COMPLEX = toy(40) + 0.05 * np.random.default_rng(2).standard_normal((40, 40))
DATA = {"more features": NOISY, "more times": LONG, "complex": COMPLEX}


@pytest.fixture(params=list(DATA))
def x(request):
    return DATA[request.param]


def hankel(x, d):
    """Columns [x_k; …; x_{k+d-1}]."""
    return np.array([x[k : k + d].ravel() for k in range(len(x) - d + 1)]).T


def literal(f, g, rank, ridge=0.0):
    """Tu et al. 2014: eigenvalues, exact modes, residuals of pairs of columns."""
    u, s, vh = np.linalg.svd(f, full_matrices=False)
    u, s, v = u[:, :rank], s[:rank], vh[:rank].conj().T
    inverse = v * (s / (s**2 + ridge * (s**2).mean()))
    values, w = np.linalg.eig(u.conj().T @ g @ inverse)
    exact, projected = g @ inverse @ w, f @ inverse @ w
    residual = np.linalg.norm(exact - projected * values, axis=0) / np.linalg.norm(
        projected, axis=0
    )
    return values, exact, residual


def assert_same(estimator, values, modes=None, tolerance=1e-8):
    got = estimator.eigenvalues_
    assert farthest(values, got) < tolerance
    assert farthest(got, values) < tolerance
    if modes is None:
        return
    for value, mode in zip(values, modes.T, strict=True):
        mine = estimator.modes_[:, np.abs(got - value).argmin()]
        assert abs(np.vdot(mine, mode)) / np.linalg.norm(mode) == pytest.approx(1.0, abs=tolerance)


@pytest.mark.parametrize("delays", [1, 3])
def test_eigenvalues_modes_and_residuals(x, delays):
    h = hankel(x, delays)
    values, modes, residual = literal(h[:, :-1], h[:, 1:], 4)
    estimator = DMD(4, delays=delays).fit(x)
    assert_same(estimator, values, modes[: x.shape[1]])
    place = np.abs(estimator.eigenvalues_[:, None] - values).argmin(axis=1)
    np.testing.assert_allclose(estimator.residuals_, residual[place], rtol=1e-6)
    np.testing.assert_allclose(
        estimator.singular_values_[:4], np.linalg.svd(h[:, :-1])[1][:4], rtol=1e-10
    )


def test_total_least_squares_projects_on_the_leading_right_singular_vectors(x):
    f, g = x.T[:, :-1], x.T[:, 1:]
    v = np.linalg.svd(np.vstack([f, g]), full_matrices=False)[2][:4]
    values, modes, _ = literal(f @ v.conj().T @ v, g @ v.conj().T @ v, 4)
    assert_same(DMD(4, tls=True).fit(x), values, modes)


@pytest.mark.parametrize("name", ["more features", "more times"])
def test_forward_backward_is_the_root_of_forward_over_backward(name):
    n, m = DATA[name].shape
    x = waves(n=n, m=m, noise=0.01, seed=5)[0][0]
    f, g = x.T[:, :-1], x.T[:, 1:]
    u = np.linalg.svd(f, full_matrices=False)[0][:, :4]
    f, g = u.T @ f, u.T @ g  # Dawson et al. 2016, algorithm 3
    forward, backward = g @ np.linalg.pinv(f), f @ np.linalg.pinv(g)
    estimator = DMD(4, forward_backward=True).fit(x)
    assert estimator.status_ == 0
    assert_same(estimator, np.linalg.eigvals(sqrtm(forward @ np.linalg.inv(backward))))


def test_forward_backward_without_a_real_root_says_so():
    # A decaying real mode that alternates in noise: A_f A_b^-1 has a negative eigenvalue.
    x = np.array([[1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0, -1.0, 1.0, 1.0]]).T
    x = np.hstack([x, np.roll(x, 3, axis=0) + 0.1 * np.arange(11)[:, None]])
    forward = DMD(2).fit(x)
    both = DMD(2, forward_backward=True).fit(x)
    f, g = x.T[:, :-1], x.T[:, 1:]
    squares = np.linalg.eigvals(g @ np.linalg.pinv(f) @ np.linalg.inv(f @ np.linalg.pinv(g)))
    negative = bool(((squares.imag == 0.0) & (squares.real < 0.0)).any())
    assert both.status_ == (2 if negative else 0)
    if negative:
        np.testing.assert_allclose(both.eigenvalues_, forward.eigenvalues_, atol=1e-10)


def test_forgetting_weighs_the_pairs(x):
    weights = 0.9 ** (0.5 * np.arange(len(x) - 1)[::-1])
    values, modes, _ = literal(x.T[:, :-1] * weights, x.T[:, 1:] * weights, 4)
    assert_same(DMD(4, forgetting=0.9).fit(x), values, modes)


def test_ridge_is_relative_to_the_mean_square(x):
    values, modes, _ = literal(x.T[:, :-1], x.T[:, 1:], 4, ridge=0.1)
    assert_same(DMD(4, ridge=0.1).fit(x), values, modes)


@pytest.mark.parametrize("delays", [1, 3])
def test_noise_takes_its_share_off_the_moments(delays):
    x, variance = LONG, 0.0025
    h = hankel(x, delays)
    f, g = h[:, :-1], h[:, 1:]
    shift = np.eye(len(h), k=x.shape[1])  # x_{k+1} stands in F a block later than in F'
    a = f @ f.T - variance * f.shape[1] * np.eye(len(h))
    cross = g @ f.T - variance * f.shape[1] * shift
    squares, u = np.linalg.eigh(a)
    u, squares = u[:, ::-1][:, :4], squares[::-1][:4]
    values = np.linalg.eigvals(u.T @ cross @ u / squares)
    assert_same(DMD(4, delays=delays, noise=variance).fit(x), values)


def test_noise_is_estimated_where_it_is_white():
    truth = waves(n=400, m=30, seed=4)[1][0]
    x = waves(n=400, m=30, noise=0.3, seed=4)[0][0]
    plain, known, corrected = (DMD(4, noise=noise).fit(x) for noise in (0.0, 0.09, "median"))
    biased, best, better = (
        np.abs(np.abs(d.eigenvalues_) - 1.0).max() for d in (plain, known, corrected)
    )
    assert best < biased / 4.0
    assert better < biased / 2.0
    assert farthest(truth, known.eigenvalues_) < 0.02
    # The four signals push the median up: by less than their share of the thirty.
    estimate = variances("median", (x.T @ x)[None], len(x))[0]
    assert 1.0 < estimate / 0.09 < 1.15


def test_ranks():
    x = LONG
    s = np.linalg.svd(x[:-1])[1]
    beta = 8 / 49
    threshold = np.median(s) * (0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43)
    assert DMD("svht").fit(x).rank_ == (s > threshold).sum()
    energy = np.cumsum(s**2) / (s**2).sum()
    for share in (0.5, 0.9, 0.999):
        assert DMD(share).fit(x).rank_ == np.argmax(energy >= share) + 1
    assert DMD(None).fit(x).rank_ == 8
    assert DMD(np.int32(3)).fit(x).rank_ == 3
    with pytest.warns(LowerRankWarning, match=r"rank=100 was asked for, and 8 of .* more than"):
        assert DMD(100).fit(x).rank_ == 8
    with pytest.warns(LowerRankWarning, match=r"rank=5 .* 4 of .* in 1 of 2 systems, .* system 1"):
        DMD(5).fit(np.stack([x, waves(n=50, m=8)[0][0]]))
    exact, _ = damped(m=20)
    assert DMD(None).fit(exact).rank_ == 6  # the others are rounding
    assert DMD("svht").fit(exact).rank_ == 6


def test_systems_of_a_batch_have_ranks_of_their_own():
    one, two = waves(n=50, m=30)[0][0], damped(n=50, m=30)[0]
    batch = DMD("svht").fit(np.stack([one, two, np.zeros_like(one)]))
    assert batch.rank_.tolist() == [4, 6, 0]
    assert batch.status_.tolist() == [0, 0, 1]
    for k, x in enumerate((one, two)):
        alone = DMD("svht").fit(x)
        # Of waves |λ| is one: rounding says which comes first.
        assert farthest(alone.eigenvalues_, batch.eigenvalues_[k, : alone.rank_]) < 1e-9
    assert np.isnan(batch.eigenvalues_[0, 4:]).all()
    np.testing.assert_array_equal(batch.predict(7)[2], 0.0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"delays": 4},
        {"delays": 4, "modes": "refit"},
        {"modes": "projected"},
        {"tls": True},
        {"forward_backward": True},
        {"forgetting": 0.98},
        {"amplitudes": "first"},
    ],
    ids=str,
)
def test_what_is_a_sum_of_exponentials_is_found_and_continued(settings):
    for x, eigenvalues in (
        (damped()[0], damped()[1]),
        (damped(n=14, m=40)[0], damped()[1]),
        (toy(60), TOY),
    ):
        cut = len(x) - 4
        estimator = DMD(None, **settings).fit(x[:cut])
        assert farthest(eigenvalues, estimator.eigenvalues_) < 1e-7
        np.testing.assert_allclose(estimator.reconstruct(), x[:cut], atol=1e-6)
        np.testing.assert_allclose(estimator.forecast(horizon=4), x[cut:], atol=1e-6)
        np.testing.assert_allclose(estimator.predict(4), x[-1], atol=1e-6)
        assert estimator.score(x) == pytest.approx(1.0, abs=1e-9)


def test_an_affine_model_has_a_constant():
    x, eigenvalues = damped(n=40)
    shifted = x + 1e3 * np.arange(1, x.shape[1] + 1)
    estimator = DMD(6, model="affine").fit(shifted)
    assert estimator.eigenvalues_[0] == 1.0
    assert farthest(eigenvalues, estimator.eigenvalues_) < 1e-6
    np.testing.assert_allclose(estimator.reconstruct(), shifted, rtol=1e-7)
    ahead = damped(n=43)[0][-1] + shifted[0] - x[0]
    np.testing.assert_allclose(estimator.predict(3), ahead, rtol=1e-6)


def test_rates_are_in_the_units_of_dt():
    estimator = DMD(2, dt=DT).fit(toy())
    np.testing.assert_allclose(np.sort(estimator.frequencies_) * 2.0 * np.pi, [2.3, 2.8], atol=1e-8)
    np.testing.assert_allclose(estimator.growth_rates_, 0.0, atol=1e-8)


def test_trajectories_of_one_system_share_its_eigenvalues():
    x, eigenvalues = damped(n=60)
    parts = [x[:20], x[30:60]]
    estimator = DMD(6).fit(parts)
    assert farthest(eigenvalues, estimator.eigenvalues_) < 1e-8
    for part, rebuilt in zip(parts, estimator.reconstruct(), strict=True):
        np.testing.assert_allclose(rebuilt, part, atol=1e-7)
    np.testing.assert_allclose(estimator.forecast(horizon=5)[0], x[20:25], atol=1e-7)
    noisy = [part + 0.01 * np.random.default_rng(6).standard_normal(part.shape) for part in parts]
    f = np.vstack([part[:-1] for part in noisy]).T
    g = np.vstack([part[1:] for part in noisy]).T
    assert_same(DMD(4).fit(noisy), literal(f, g, 4)[0])


def iteration(n, m, radius, seed=0, dtype=float):
    """x <- A x + b with a spectral radius, seen n times, and the state that it does not move."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((m, m)) + (1j * rng.standard_normal((m, m)) if dtype is complex else 0)
    a *= radius / np.abs(np.linalg.eigvals(a)).max()
    b, x = rng.standard_normal(m), np.empty((n, m), dtype)
    x[0] = rng.standard_normal(m)
    for t in range(n - 1):
        x[t + 1] = a @ x[t] + b
    return x, np.linalg.solve(np.eye(m) - a, b)


@pytest.mark.parametrize("dtype", [float, complex])
def test_a_fixed_point_is_that_of_reduced_rank_extrapolation(dtype):
    x, truth = iteration(8, 4, 0.9, dtype=dtype)
    found = fixed_point(x, ridge=0.0)
    np.testing.assert_allclose(found.state, truth, rtol=1e-6)
    assert found.residual < 1e-6
    repelling, truth = iteration(8, 4, 1.3, seed=1, dtype=dtype)
    np.testing.assert_allclose(fixed_point(repelling).state, truth, rtol=1e-4)
    # min |d c|² + ridge |d|² |c|² with a sum of one, by Lagrange: as it is defined.
    noisy = x + 0.05 * np.random.default_rng(2).standard_normal(x.shape)
    d = np.diff(noisy, axis=0).T
    ridge = 0.01
    system = d.conj().T @ d / np.linalg.norm(d, 2) ** 2 + ridge * np.eye(7)
    z = np.linalg.solve(system, np.ones(7))
    c = z / z.sum()
    found = fixed_point(noisy, ridge)
    np.testing.assert_allclose(found.state, noisy[1:].T @ c, rtol=1e-9)
    np.testing.assert_allclose(
        found.residual, np.linalg.norm(d @ c) / np.linalg.norm(d[:, -1]), rtol=1e-9
    )


def test_fixed_points_of_a_batch_are_those_of_its_systems():
    x = np.stack([iteration(9, 30, 0.8, seed=k)[0] for k in range(5)])
    x[2] = x[2, :1]  # at rest
    x[3] *= 1e200
    found = fixed_point(x)
    for system, state, residual in zip(x, found.state, found.residual, strict=True):
        one = fixed_point(system)
        np.testing.assert_allclose(one.state, state, rtol=1e-9)
        np.testing.assert_allclose(one.residual, residual, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found.state[2], x[2, 0], rtol=1e-14)
    assert found.residual[2] == 0.0
    single = fixed_point(x[0].astype(np.float32))
    assert single.state.dtype == np.float32
    for bad, message in (
        (x[0, :2], "needs 3"),
        ([x[0], x[1]], "a list was given"),
        (np.where(x == x[1, 3, 4], np.nan, x), "system 1, row 3"),
    ):
        with pytest.raises(ValueError, match=message):
            fixed_point(bad)
    with pytest.raises(ValueError, match="ridge"):
        fixed_point(x, ridge=-1.0)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_series_of_any_size_have_the_same_eigenvalues(backend):
    x = waves(noise=0.02)[0][0]
    truth = DMD(4, backend=backend).fit(x)
    for size in (2.0**-320, 2.0**-230, 2.0**250, 2.0**330):  # squares, or theirs, leave the range
        found = DMD(4, backend=backend).fit(size * x)
        assert farthest(truth.eigenvalues_, found.eigenvalues_) < 1e-12
        np.testing.assert_allclose(
            found.singular_values_, size * truth.singular_values_, rtol=1e-9, atol=1e-7 * size
        )


def test_more_modes_than_the_small_solvers_take():
    x = np.random.default_rng(0).standard_normal((3, 40, 50))
    batch = DMD(30).fit(x)
    for one, values in zip(x, batch.eigenvalues_, strict=True):
        f, following = one[:-1].T, one[1:].T
        u, s, v = np.linalg.svd(f, full_matrices=False)
        operator = u[:, :30].T @ following @ v[:30].T / s[:30]
        assert farthest(np.linalg.eigvals(operator), values) < 1e-9
