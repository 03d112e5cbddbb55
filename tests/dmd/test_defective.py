"""Series whose operator has fewer eigenvectors than dimensions: drifts, (a + b t) λᵗ, impulses."""

import numpy as np
import pytest
from dmd_cases import waves

from koopcore.dmd import DMD, STATUS, OptimizedDMD
from koopcore.dmd.algebra.eigen import eigh, leading

N, AHEAD = 40, 10
T = np.arange(N + AHEAD)[:, None].astype(float)


def series(name):
    """N + AHEAD snapshots of five features, and the number of exponentials."""
    a, b, c, d = np.random.default_rng(1).standard_normal((4, 5))
    cases = {
        "drift": (a + b * T, 2),
        "drift of whole numbers": (np.round(9 * a) + np.round(9 * b) * T, 2),
        "parabola": (a + b * T + c * T**2, 3),
        "pair": ((a + b * T) * 0.9**T, 2),
        "growing pair": ((a + b * T) * 1.05**T, 2),
        "three": ((a + b * T + c * T**2) * 0.9**T, 3),
        "waves": ((a + b * T) * np.cos(0.3 * T) + (c + d * T) * np.sin(0.3 * T), 4),
        "complex": (((a + 1j * b) + (c + 1j * d) * T) * (0.95 * np.exp(0.4j)) ** T, 2),
    }
    return cases[name]


NAMES = [
    "drift",
    "drift of whole numbers",
    "parabola",
    "pair",
    "growing pair",
    "three",
    "waves",
    "complex",
]


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_forecasts_are_right_where_modes_do_not_exist(name, backend):
    full, rank = series(name)
    x, ahead = full[:N], full[N:]
    size = np.abs(full).max()
    close = (1e-4 if rank == 3 else 1e-6) * size  # three that meet keep fewer digits than two
    for estimator in (
        DMD(rank),
        DMD(rank, modes="projected", delays=5),
        DMD(rank, modes="refit", delays=10),
        OptimizedDMD(rank),
    ):
        estimator.set_params(backend=backend).fit(x)
        if rank < 3 or isinstance(estimator, DMD):  # how far a fit parts three is rounding's choice
            assert estimator.status_ == 6
        assert np.abs(estimator.reconstruct() - x).max() < close
        assert np.abs(estimator.forecast(horizon=AHEAD) - ahead).max() < close
        assert np.abs(estimator.forecast(x, AHEAD) - ahead).max() < 10.0 * close
        assert estimator.score(x) > 1.0 - 1e-6


@pytest.mark.parametrize(("name", "rank"), [("drift", 1), ("pair", 2), ("parabola", 2)])
def test_an_affine_model_of_a_drift(name, rank):
    full, _ = series(name)
    affine = DMD(rank, model="affine").fit(full[:N])
    size = np.abs(full).max()
    assert np.abs(affine.reconstruct() - full[:N]).max() < 1e-4 * size
    assert np.abs(affine.forecast(horizon=AHEAD) - full[N:]).max() < 1e-4 * size
    assert np.abs(affine.eigenvalues_[:1] - 1.0).max() < 1e-3


def test_first_amplitudes_are_those_of_the_first_delays():
    # One feature says nothing of four modes at one time; at four times it does.
    x = (np.cos(0.3 * T) + 0.5 * np.cos(0.9 * T + 1.0))[:N]
    for backend in (None, "reference"):
        fitted = DMD(4, delays=8, amplitudes="first", backend=backend).fit(np.stack([x, 2.0 * x]))
        np.testing.assert_allclose(fitted.reconstruct()[1], 2.0 * x, atol=1e-9)


def test_a_defective_system_disturbs_no_other():
    good = waves(9, n=N, m=5, noise=0.02)[0]
    alone = DMD(2).fit(good)
    batch = DMD(2).fit(np.concatenate([good[:4], series("pair")[0][None, :N], good[4:]]))
    others = np.arange(10) != 4
    np.testing.assert_array_equal(batch.status_, np.where(others, 0, 6))
    assert "nearly defective" in STATUS[6]
    np.testing.assert_array_equal(batch.eigenvalues_[others], alone.eigenvalues_)
    np.testing.assert_array_equal(batch.amplitudes_[others], alone.amplitudes_)


def test_standing_waves_go_on_from_rows_that_show_them():
    # Three shapes and four exponentials: one row does not say where a standing wave is.
    x = np.linspace(0.0, 1.0, 30)
    standing = np.cos(0.3 * T) * np.sin(9.0 * x) + np.sin(14.0 * x + 0.6 * T)
    fitted = OptimizedDMD(4).fit(standing[:N])
    np.testing.assert_allclose(fitted.predict(standing, 3)[20:-3], standing[23:], atol=1e-9)
    np.testing.assert_allclose(fitted.forecast(standing[:45], 5), standing[45:], atol=1e-9)
    np.testing.assert_allclose(fitted.forecast(standing[43:45], 5), standing[45:], atol=1e-8)
    with pytest.raises(ValueError, match="X has 1 rows; the last 2"):
        fitted.forecast(standing[44:45], 5)


@pytest.mark.parametrize("complex_", [False, True])
def test_leading_eigenvectors_of_weak_directions_are_found(complex_):
    rng = np.random.default_rng(0)
    for values in ([1.0, 0.03, 3e-4], [1.0, 1e-4, 1e-8, 1e-12], [1.0] * 3 + [1e-10] * 3):
        y = rng.standard_normal((40, len(values))) + 1j * complex_ * rng.standard_normal((40, 1))
        q = np.linalg.qr(y)[0] if complex_ else np.linalg.qr(y.real)[0]
        a = (q * values) @ q.conj().T
        a = 0.5 * (a + a.conj().T)[None]
        found, vectors = leading(a, 4)
        np.testing.assert_allclose(found, eigh(a)[0][:, :4], atol=1e-14)
        rest = a @ vectors - vectors * found[:, None]
        assert np.abs(rest).max() < 1e-13
