"""PyDMD's numbers, on data of the kinds of its own examples."""

import numpy as np
import pytest
from dmd_cases import DT, damped, farthest, toy, waves

from koopcore.dmd import DMD, OptimizedDMD

pydmd = pytest.importorskip("pydmd")

SERIES = {
    "toy": (toy(), 2),
    "real toy": (waves()[0][0], 4),
    "damped": (damped()[0], 6),
    "noisy": (waves(noise=0.02)[0][0], 4),
    "noisy complex": (toy() + 0.02 * np.random.default_rng(0).standard_normal((90, 40)), 3),
    "few snapshots": (waves(n=14, m=60, noise=0.02)[0][0], 4),
}
# Not projected and optimal: its right-hand side leaves out a snapshot there.
SETTINGS = [
    ({"exact": True, "opt": True}, {}),
    ({"exact": True, "opt": False}, {"amplitudes": "first"}),
    ({"exact": False, "opt": False}, {"modes": "projected", "amplitudes": "first"}),
]


def assert_equal(theirs, mine, x, rows=None):
    """Eigenvalues, modes times amplitudes, reconstruction."""
    place = np.abs(theirs.eigs[:, None] - mine.eigenvalues_).argmin(axis=1)
    np.testing.assert_allclose(mine.eigenvalues_[place], theirs.eigs, atol=1e-8)
    dynamics = (theirs.modes * theirs.amplitudes)[: x.shape[1]]
    own = (mine.modes_ * mine.amplitudes_)[:, place]
    np.testing.assert_allclose(own, dynamics, atol=1e-8 * np.abs(dynamics).max())
    rebuilt = theirs.reconstructed_data.T
    np.testing.assert_allclose(mine.reconstruct(), rebuilt, atol=1e-8 * np.abs(rebuilt).max())


@pytest.mark.parametrize(("theirs", "mine"), SETTINGS, ids=str)
@pytest.mark.parametrize("name", SERIES)
def test_dmd(name, theirs, mine):
    x, rank = SERIES[name]
    assert_equal(pydmd.DMD(svd_rank=rank, **theirs).fit(x.T.copy()), DMD(rank, **mine).fit(x), x)


@pytest.mark.parametrize("name", SERIES)
def test_total_least_squares(name):
    x, rank = SERIES[name]
    theirs = pydmd.DMD(svd_rank=rank, tlsq_rank=rank, exact=True, opt=True).fit(x.T.copy())
    assert_equal(theirs, DMD(rank, tls=True).fit(x), x)


def test_forward_backward():
    # Its backward operator has a basis of its own: only where both are alike it is right.
    x, rank = SERIES["toy"]
    theirs = pydmd.FbDMD(svd_rank=rank, exact=True, opt=True).fit(x.T.copy())
    assert_equal(theirs, DMD(rank, forward_backward=True).fit(x), x)


@pytest.mark.parametrize("name", SERIES)
def test_delays(name):
    x, rank = SERIES[name]
    theirs = pydmd.HankelDMD(svd_rank=rank, d=4, exact=True, opt=True).fit(x.T.copy())
    mine = DMD(rank, delays=4).fit(x)
    if "noisy" in name or "few" in name:  # its amplitudes are those of the stacked states
        assert farthest(theirs.eigs, mine.eigenvalues_) < 1e-8
    else:
        assert_equal(theirs, mine, x)


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize(("theirs", "mine"), [(0, "svht"), (0.99, 0.99)])
def test_ranks(name, theirs, mine):
    if name not in ("noisy", "noisy complex", "few snapshots"):
        pytest.skip("the median singular value is rounding")
    x, _ = SERIES[name]
    assert pydmd.DMD(svd_rank=theirs).fit(x.T.copy()).modes.shape[1] == DMD(mine).fit(x).rank_


def test_optimized_dmd():
    x, _ = SERIES["noisy"]
    theirs = pydmd.BOPDMD(svd_rank=4, num_trials=0).fit(x.T, DT * np.arange(len(x)))
    mine = OptimizedDMD(4, dt=DT).fit(x)
    assert farthest(np.exp(DT * theirs.eigs), mine.eigenvalues_) < 1e-6
