"""Figures show what was fitted; each is drawn, on a light and on a dark ground."""

import numpy as np
import pytest
from dmd_cases import damped, waves

import koopcore as kc
from koopcore.dmd import DMD, OptimizedDMD

pytest.importorskip("matplotlib")
X = waves(n=60, m=20, noise=0.02)[0][0]
FITTED = {
    "dmd": DMD(6, dt=0.1).fit(X),
    "optimized": OptimizedDMD(4, dt=0.1).fit(X),
    "batch": DMD(4).fit(np.stack([damped(m=20)[0], X])),
}


def drawn(figure):
    figure.canvas.draw()
    return figure


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", FITTED)
def test_every_figure_is_drawn(name, dark):
    fitted = FITTED[name]
    system = {"system": 1, "dark": dark}
    points = drawn(kc.plot.spectrum(fitted, **system)).axes[0].collections[0].get_offsets()
    values = np.atleast_2d(fitted.eigenvalues_)[-1]
    np.testing.assert_allclose(points[:, 0] + 1j * points[:, 1], values)
    pairs = drawn(kc.plot.modes(fitted, **system))
    assert len(pairs.axes) == (values.imag >= 0.0).sum()  # one of each pair
    assert len(drawn(kc.plot.modes(fitted, shape=(4, 5), count=1, **system)).axes) == 2
    waves_drawn = drawn(kc.plot.dynamics(fitted, **system)).axes[0].lines
    assert len(waves_drawn) == len(pairs.axes)
    images = drawn(kc.plot.reconstruction(fitted, X, **system)).axes[:3]
    np.testing.assert_allclose(images[0].images[0].get_array(), X.T)
    lines = drawn(kc.plot.forecast(fitted, 10, X, truth=X[:10], **system)).axes[0].lines
    assert [line.get_label() for line in lines[:3]] == ["data", "truth", "forecast"]
    ground = pairs.get_facecolor()[:3]
    assert max(ground) < 0.2 if dark else min(ground) == 1.0
    if name != "optimized":
        axes = drawn(kc.plot.singular_values(fitted, **system)).axes[0]
        assert f"rank {np.atleast_1d(fitted.rank_)[-1]}" in axes.get_legend_handles_labels()[1]


def test_operators_have_a_spectrum_and_other_things_do_not():
    ops = kc.fit(X, model="linear")
    assert len(drawn(kc.plot.spectrum(ops)).axes[0].collections[0].get_offsets()) >= 4
    with pytest.raises(TypeError, match="got dict"):
        kc.plot.spectrum({})
    with pytest.raises(TypeError, match="a fitted DMD or OptimizedDMD"):
        kc.plot.modes(ops)
    with pytest.raises(TypeError, match="a fitted DMD; got OptimizedDMD"):
        kc.plot.singular_values(FITTED["optimized"])
    with pytest.raises(ValueError, match=r"X has shape \(9, 20\)"):
        kc.plot.reconstruction(FITTED["dmd"], X[:9])
