"""Fits that a backend makes at once, beside the definition: the stages of koopcore.dmd in NumPy."""

import numpy as np
import pytest
from dmd_cases import farthest, waves

from koopcore.backends import backend_for
from koopcore.dmd import DMD, OptimizedDMD, sliding

SHAPES = [(16, 65), (65, 16), (30, 30), (9, 4), (5, 1), (2, 4)]


def assert_same(mine, theirs, tolerance=1e-8):
    """All that a fit says; a mode's phase is free."""
    np.testing.assert_array_equal(mine.rank_, theirs.rank_)
    np.testing.assert_array_equal(mine.status_, theirs.status_)
    np.testing.assert_allclose(mine.singular_values_, theirs.singular_values_, atol=1e-9)
    place = np.abs(
        np.nan_to_num(mine.eigenvalues_)[:, :, None] - np.nan_to_num(theirs.eigenvalues_)[:, None]
    ).argmin(axis=2)
    values = np.take_along_axis(theirs.eigenvalues_, place, 1)
    np.testing.assert_allclose(mine.eigenvalues_, values, atol=tolerance)
    ours, others = (one.modes_ * one.amplitudes_[:, None] for one in (mine, theirs))
    others = np.take_along_axis(others, place[:, None], 2)
    np.testing.assert_allclose(ours, others, atol=tolerance * np.abs(others).max())
    residuals = np.take_along_axis(theirs.residuals_, place, 1)
    np.testing.assert_allclose(mine.residuals_, residuals, atol=tolerance)


@pytest.mark.filterwarnings("ignore::koopcore.dmd.LowerRankWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 4},
        {"rank": "svht"},
        {"rank": 0.999},
        {"rank": 6, "ridge": 1e-3},
        {"rank": 4, "modes": "projected", "amplitudes": "first"},
        {"rank": 4, "delays": 2},
        {"rank": 4, "delays": 2, "modes": "projected"},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_fit_at_once_is_the_one_stage_by_stage(shape, settings):
    n, m = shape
    x = waves(37, n=n, m=m, noise=0.05, seed=1)[0]
    if n < settings.get("delays", 1) + 1:
        return
    x[3] *= 1e3
    mine, theirs = DMD(**settings).fit(x), DMD(**settings, backend="reference").fit(x)
    assert_same(mine, theirs)


def test_growing_and_decaying_modes_of_full_rank():
    rng = np.random.default_rng(0)
    operators = rng.standard_normal((20, 5, 5)) / 3.0
    x = np.empty((20, 12, 5))
    x[:, 0] = 1.0
    for t in range(11):
        x[:, t + 1] = np.einsum("sij,sj->si", operators, x[:, t])
    fitted = DMD(None).fit(x)
    for operator, values, rank in zip(operators, fitted.eigenvalues_, fitted.rank_, strict=True):
        if rank == 5:
            assert farthest(np.linalg.eigvals(operator), values) < 1e-4
    np.testing.assert_allclose(fitted.reconstruct(), x, atol=1e-5 * np.abs(x).max())


@pytest.mark.filterwarnings("ignore::koopcore.dmd.LowerRankWarning")
def test_what_is_degenerate_has_a_status_and_disturbs_nobody():
    good = waves(9, n=12, m=6, noise=0.02)[0]
    alone = DMD(4).fit(good)
    jordan = np.cumsum(np.cumsum(np.ones((12, 6)), axis=0), axis=0)  # a defective λ = 1
    turn = np.kron(np.cos(0.5 * np.arange(12))[:, None], np.ones(6))
    for odd, status in (
        (np.zeros((12, 6)), 1),
        (np.ones((12, 6)), 0),
        (jordan, 0),  # of equal features: one direction
        (turn, 0),
        (np.eye(12, 6), 6),
        (1e-170 * good[0], 0),
        (1e170 * good[0], 0),
    ):
        x = np.concatenate([good[:4], odd[None], good[4:]])
        fitted = DMD(4).fit(x)
        assert fitted.status_[4] == status
        assert np.isfinite(fitted.modes_).all()
        assert np.isfinite(fitted.amplitudes_).all()
        others = np.arange(10) != 4
        np.testing.assert_array_equal(fitted.eigenvalues_[others], alone.eigenvalues_)
        np.testing.assert_array_equal(fitted.modes_[others], alone.modes_)
    fitted = DMD(4).fit(good)
    bad = good.copy()
    bad[7, 11, 5] = np.nan
    with pytest.raises(ValueError, match=r"NaN.*system 7, row 11 \(time\), feature 5"):
        fitted.fit(bad)
    np.testing.assert_array_equal(fitted.eigenvalues_, alone.eigenvalues_)  # of the last good fit


def test_windows_and_single_precision_take_the_same_way():
    series = waves(n=60, m=9, noise=0.02)[0][0]
    windows = sliding(series, 12, step=3, rank=4)
    stacked = np.stack([series[k : k + 12] for k in range(0, 49, 3)])
    np.testing.assert_array_equal(windows.eigenvalues_, DMD(4).fit(stacked).eigenvalues_)
    single = DMD(4).fit(stacked.astype(np.float32))
    assert single.modes_.dtype == np.complex64
    np.testing.assert_allclose(single.reconstruct(), DMD(4).fit(stacked).reconstruct(), atol=1e-4)


@pytest.mark.parametrize("shape", [(40, 30), (60, 8)], ids=str)
def test_exponents_at_once_are_those_stage_by_stage(shape):
    x, truth = waves(21, n=shape[0], m=shape[1], noise=0.05)
    mine, theirs = OptimizedDMD(4).fit(x), OptimizedDMD(4, backend="reference").fit(x)
    np.testing.assert_array_equal(mine.status_, theirs.status_)
    for right, ours, others in zip(truth, mine.eigenvalues_, theirs.eigenvalues_, strict=True):
        assert farthest(ours, others) < 1e-7
        assert farthest(right, ours) < 0.02
    np.testing.assert_allclose(mine.error_, theirs.error_, rtol=1e-9)


def test_stages_refuse_what_would_be_read_out_of_bounds():
    native = backend_for("cpu", None)
    if native.name != "native_cpu":
        pytest.skip("the native module is not here")
    cpu = native._cpu
    x = np.zeros((3, 8, 5))
    with pytest.raises(ValueError, match="modes"):
        cpu.modal_fit(x, 1, 1, 4.0, 0.0, True, True, 6)
    with pytest.raises(ValueError, match="contiguous"):
        cpu.modal_fit(x[:, :, ::2], 1, 1, 2.0, 0.0, True, True, 2)
    with pytest.raises(ValueError, match="delays"):
        cpu.modal_fit(x, 8, 1, 2.0, 0.0, True, True, 2)
    with pytest.raises(ValueError, match="partner"):
        cpu.exponent_fit(x, np.zeros((3, 2), complex), np.full((3, 2), 2), 1.0, 2.0, 5)
    with pytest.raises(ValueError, match="rank"):
        cpu.delay_start(x, 4, 5)
    with pytest.raises(ValueError, match="n, n"):
        cpu.leading(x, 2)


def test_large_results_do_not_share_memory_while_they_live():
    x = waves(700, n=12, m=40, noise=0.02)[0]
    first = DMD(4).fit(x).modes_
    kept = first.copy()
    second = DMD(4).fit(2.0 * x[::-1]).modes_
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)
    del second  # its memory is the next result's
    again = DMD(4).fit(x)
    np.testing.assert_array_equal(again.modes_, kept)
    assert again.modes_.flags.c_contiguous
    assert again.modes_.flags.writeable
