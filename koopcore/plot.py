"""Figures by matplotlib: what an attachment did in a training run, and what a decomposition says.

Each function returns a ``matplotlib.figure.Figure`` (``spectrum(dmd).savefig("s.png")``), which
matplotlib's ``pyplot`` does not know and need not close. ``dark=True`` draws on a dark ground.
ImportError, with what to install, without matplotlib.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run(koop: Any, *, dark: bool = False) -> Figure:
    """Draw losses, jumps, regimes and hindcast errors of a run over its steps.

    Args:
        koop: what ``koopcore.attach`` returned, also after ``detach()``.

    Above, the loss before and after each attempt, accepted jumps as lines down, rejected attempts
    as dots; below, the hindcast error over the movement; behind both, the regime. Under noise there
    are no attempts, and so no losses: see ``koop.averaged()``.

    Returns a ``matplotlib.figure.Figure`` (``run(koop).savefig("run.png")``), which matplotlib's
    ``pyplot`` does not know and need not close. ImportError, with what to install, without
    matplotlib; TypeError for what is no attachment.
    """
    stats: Any = getattr(koop, "stats", None)
    if not hasattr(stats, "history") or not hasattr(stats, "regimes"):
        raise TypeError(f"run draws what koopcore.attach returned; got {type(koop).__name__}")
    figure, ink = _figure(dark, (8, 5))
    losses, hindcasts = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    _regimes(stats, losses, hindcasts, ink)
    judged = [r for r in stats.history if r.loss_before is not None]
    jumps = [r for r in judged if r.accepted]
    before = [r.step for r in judged], [r.loss_before for r in judged]
    losses.plot(*before, color=ink.faint, lw=1)
    losses.vlines(
        [r.step for r in jumps],
        [r.loss_after for r in jumps],
        [r.loss_before for r in jumps],
        color=ink.second,
        lw=1.2,
        label=f"{len(jumps)} jumps",
    )
    vain = [r for r in judged if not r.accepted]
    losses.plot(
        [r.step for r in vain],
        [r.loss_before for r in vain],
        "o",
        color=ink.faint,
        ms=3,
        label=f"{len(vain)} attempts in vain",
    )
    known = [r for r in stats.history if math.isfinite(r.hindcast) and r.hindcast > 0]
    hindcasts.plot([r.step for r in known], [r.hindcast for r in known], ".", color=ink.first)
    losses.set(ylabel="loss", xlim=(0, max(stats.steps, 1)))
    hindcasts.set(xlabel="optimizer steps", ylabel="hindcast error\n/ movement")
    values = [v for r in judged for v in (r.loss_before, r.loss_after)]
    if values and min(values) > 0:
        losses.set_yscale("log")
    if known:
        hindcasts.set_yscale("log")
    for axes in (losses, hindcasts):
        _dress(axes, ink)
    if judged:
        losses.legend(frameon=False, fontsize=8, labelcolor=ink.text)
    return figure


def _regimes(stats: Any, losses: Any, hindcasts: Any, ink: _Ink) -> None:
    """The regime behind the curves; names where there is room for them."""
    steps = max(stats.steps, 1)
    ends = [*stats.regimes[1:], (steps, "")]
    free = 0.0
    for (begin, regime), (end, _) in zip(stats.regimes, ends, strict=True):
        for axes in (losses, hindcasts):
            shade = ink.regimes.get(regime, ink.ground)
            axes.axvspan(begin, end, color=shade, lw=0, zorder=0)
        # A name takes about a tenth of the width.
        last = begin == stats.regimes[-1][0]
        if begin >= free and (end - begin >= 0.1 * steps or last):
            place = {"xycoords": ("data", "axes fraction"), "fontsize": 8, "color": ink.text}
            losses.annotate(regime, (begin, 1.01), **place)
            free = begin + 0.1 * steps


def averages(koop: Any, *, dark: bool = False) -> Figure:
    """Draw the loss at the weights and at each average, when they were last compared.

    Args:
        koop: what ``koopcore.attach`` returned, after ``koop.averaged()`` was asked for.

    Raises ValueError where nothing was compared yet.
    """
    losses: dict[str, float] = {
        name: loss for name, loss in koop.stats.averages.items() if math.isfinite(loss)
    }
    if not losses:
        raise ValueError("no averages were compared yet; koop.averaged() with a loss compares them")
    figure, ink = _figure(dark, (8, 0.8 + 0.28 * len(losses)))
    axes = figure.subplots()
    best = min(losses, key=losses.__getitem__)
    for place, (name, loss) in enumerate(losses.items()):
        color = ink.second if name == best else ink.first
        axes.plot([losses[best], loss], [place, place], color=ink.faint, lw=1, zorder=1)
        axes.plot([loss], [place], "o", color=color)
    axes.set_yticks(range(len(losses)), list(losses))
    axes.invert_yaxis()
    axes.set_xlabel("loss")
    _dress(axes, ink)
    return figure


def spectrum(fitted: Any, system: int = 0, *, dark: bool = False) -> Figure:
    """Eigenvalues in the complex plane with the unit circle.

    Args:
        fitted: a fitted `koopcore.dmd.DMD` or `OptimizedDMD`, what `koopcore.fit` returned, or what
            `koopcore.attach` returned: then of its last attempt.
        system: which system, or group, of several.

    Areas grow with the amplitude, and the colour is the residual where there is one: what is dark
    is of the data, what is light may be noise.
    """
    values, amplitudes, residuals = _spectrum_of(fitted, system)
    figure, ink = _figure(dark, (5.4, 5))
    axes = figure.subplots()
    circle = np.exp(2j * np.pi * np.linspace(0.0, 1.0, 361))
    axes.plot(circle.real, circle.imag, color=ink.faint, lw=1)
    axes.axhline(0, color=ink.faint, lw=0.5)
    axes.axvline(0, color=ink.faint, lw=0.5)
    size = 60.0 * np.ones(len(values))
    if amplitudes is not None and amplitudes.size and amplitudes.max() > 0.0:
        size = 25.0 + 175.0 * np.sqrt(amplitudes / amplitudes.max())
    if residuals is None:
        axes.scatter(values.real, values.imag, size, color=ink.first, alpha=0.85, zorder=3)
    else:
        level = np.log10(np.clip(np.nan_to_num(residuals, nan=1.0), 1e-8, 1.0))
        drawn = axes.scatter(
            values.real,
            values.imag,
            size,
            c=level,
            cmap="viridis_r" if dark else "viridis",
            vmin=-8,
            vmax=0,
            edgecolors=ink.text,
            linewidths=0.5,
            zorder=3,
        )
        bar = figure.colorbar(drawn, ax=axes, shrink=0.7, ticks=[-8, -6, -4, -2, 0])
        bar.ax.set_yticklabels(["$10^{-8}$", "$10^{-6}$", "$10^{-4}$", "$10^{-2}$", "1"])
        bar.ax.tick_params(colors=ink.text)
        bar.outline.set_edgecolor(ink.faint)
        bar.set_label("residual", color=ink.text)
    reach = 1.15 * max(1.0, float(np.abs(values).max(initial=0.0)))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.set(xlabel="Re λ", ylabel="Im λ")
    _dress(axes, ink)
    return figure


def modes(
    fitted: Any,
    system: int = 0,
    *,
    count: int = 4,
    shape: tuple[int, int] | None = None,
    dark: bool = False,
) -> Figure:
    """The modes of the largest amplitudes, one of each conjugate pair: real and imaginary parts.

    Args:
        shape: of the features as an image, (height, width), for two-dimensional fields.
    """
    values, vectors, amplitudes = _modes_of(fitted, system)
    leading = _one_of_each_pair(values, amplitudes)[:count]
    figure, ink = _figure(dark, (8, 1.1 + 1.5 * max(len(leading), 1)))
    rows = figure.subplots(max(len(leading), 1), 1 if shape is None else 2, squeeze=False)
    for axes, k in zip(rows, leading, strict=False):
        parts = vectors[:, k].real, vectors[:, k].imag
        label = f"λ = {values[k].real:.3f}{values[k].imag:+.3f}i"
        if shape is None:
            axes[0].plot(parts[0], color=ink.first, lw=1.4, label="Re φ")
            axes[0].plot(parts[1], color=ink.second, lw=1.4, label="Im φ")
            axes[0].set_ylabel(label, fontsize=8)
        else:
            top = float(np.abs(vectors[:, k]).max()) or 1.0
            for ax, part, name in zip(axes, parts, ("Re φ", "Im φ"), strict=True):
                image = part.reshape(shape)
                ax.imshow(image, cmap="RdBu_r", vmin=-top, vmax=top, origin="lower")
                ax.set_title(f"{name},  {label}", fontsize=8, color=ink.text)
        for ax in axes:
            _dress(ax, ink)
    if shape is None:
        rows[-1][0].set_xlabel("feature")
        _legend(rows[0][0], ink)
    return figure


def dynamics(fitted: Any, system: int = 0, *, count: int = 4, dark: bool = False) -> Figure:
    """b λᵗ of the modes of the largest amplitudes over the fitted snapshots (time in dt)."""
    values, _, amplitudes = _modes_of(fitted, system)
    b = _of_system(fitted, fitted.amplitudes_, system)
    leading = _one_of_each_pair(values, amplitudes)[:count]
    n = _of_system(fitted, np.asarray(fitted.reconstruct()), system).shape[0]
    steps = np.linspace(0.0, n - 1.0, 20 * n)
    figure, ink = _figure(dark, (8, 3.6))
    axes = figure.subplots()
    for k, color in zip(leading, _hues(ink, len(leading)), strict=True):
        rate = np.log(values[k]) if values[k] != 0 else -np.inf
        wave = b[k] * np.exp(rate * steps)
        name = f"λ = {values[k].real:.3f}{values[k].imag:+.3f}i"
        axes.plot(fitted.dt * steps, wave.real, color=color, lw=1.4, label=name)
    axes.set(xlabel="time", ylabel="Re b λᵗ")
    _dress(axes, ink)
    _legend(axes, ink)
    return figure


def reconstruction(fitted: Any, X: Any, system: int = 0, *, dark: bool = False) -> Figure:
    """The fitted series, its reconstruction, and their difference, as images over time."""
    truth = _states(X, system).real
    rebuilt = _of_system(fitted, _numpy(fitted.reconstruct()), system).real
    if truth.shape != rebuilt.shape:
        raise ValueError(f"X has shape {truth.shape}; the fitted series has {rebuilt.shape}")
    figure, ink = _figure(dark, (9, 3.4))
    top = float(np.abs(truth).max()) or 1.0
    extent = (0.0, fitted.dt * len(truth), -0.5, truth.shape[1] - 0.5)
    error = np.linalg.norm(rebuilt - truth) / (np.linalg.norm(truth) or 1.0)
    names = ("data", "reconstruction", f"difference ({100 * error:.2g} %)")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, image, name in zip(panels, (truth, rebuilt, rebuilt - truth), names, strict=True):
        drawn = axes.imshow(
            image.T,
            cmap="RdBu_r",
            vmin=-top,
            vmax=top,
            aspect="auto",
            extent=extent,
            origin="lower",
        )
        axes.set_title(name, fontsize=9, color=ink.text)
        axes.set_xlabel("time")
        _dress(axes, ink)
    panels[0].set_ylabel("feature")
    bar = figure.colorbar(drawn, ax=panels, shrink=0.85)
    bar.ax.tick_params(colors=ink.text)
    bar.outline.set_edgecolor(ink.faint)
    return figure


def forecast(
    fitted: Any,
    horizon: int,
    X: Any,
    truth: Any = None,
    system: int = 0,
    *,
    features: int = 3,
    dark: bool = False,
) -> Figure:
    """The fitted series X, the forecast after it, and what really came beside it.

    Args:
        truth: (horizon, features) of what came, or None.
        features: how many are drawn, those that vary most.
    """
    past = _states(X, system).real
    ahead = _of_system(fitted, _numpy(fitted.forecast(horizon=horizon)), system).real
    came = None if truth is None else _states(truth, system).real
    order = np.argsort(-past.std(axis=0))[:features]
    figure, ink = _figure(dark, (8, 0.9 + 1.5 * len(order)))
    rows = figure.subplots(len(order), 1, sharex=True, squeeze=False)[:, 0]
    now = len(past) - 1
    for axes, k in zip(rows, order, strict=True):
        axes.plot(fitted.dt * np.arange(len(past)), past[:, k], color=ink.text, lw=1, label="data")
        later = fitted.dt * np.arange(now, now + horizon + 1)
        if came is not None:
            axes.plot(
                later[1 : len(came) + 1], came[:horizon, k], color=ink.faint, lw=3, label="truth"
            )
        line = np.concatenate([past[-1:, k], ahead[:, k]])
        axes.plot(later, line, color=ink.second, lw=1.4, ls="--", label="forecast")
        axes.axvline(fitted.dt * now, color=ink.faint, lw=0.8)
        axes.set_ylabel(f"feature {k}", fontsize=8)
        _dress(axes, ink)
    rows[-1].set_xlabel("time")
    _legend(rows[0], ink)
    return figure


def singular_values(fitted: Any, system: int = 0, *, dark: bool = False) -> Figure:
    """Singular values of the snapshots, and the rank that was chosen. Of a `DMD` only."""
    if not hasattr(fitted, "singular_values_"):
        raise TypeError(f"singular_values draws a fitted DMD; got {type(fitted).__name__}")
    values = _of_system(fitted, _numpy(fitted.singular_values_), system)
    rank = int(fitted.rank_[system] if np.ndim(fitted.rank_) else fitted.rank_)
    seen = values[values > 0.0]
    figure, ink = _figure(dark, (6, 3.4))
    axes = figure.subplots()
    index = np.arange(1, len(seen) + 1)
    axes.semilogy(index[rank:], seen[rank:], "o", color=ink.faint, ms=5, label="left out")
    axes.semilogy(index[:rank], seen[:rank], "o", color=ink.first, ms=6, label=f"rank {rank}")
    axes.axvline(rank + 0.5, color=ink.second, lw=1, ls="--")
    axes.set(xlabel="index", ylabel="singular value")
    _dress(axes, ink)
    _legend(axes, ink)
    return figure


class _Ink(NamedTuple):
    """Colours that are told apart on their ground."""

    ground: str
    text: str
    faint: str
    first: str
    second: str
    regimes: dict[str, str]


_LIGHT = _Ink(
    *("#ffffff", "#22262b", "#b4bac3", "#2e6f94", "#d4581f"),
    {"undecided": "#eeeeee", "smooth": "#e3f1e8", "between": "#fbeedb", "noise": "#f6dfe4"},
)
_DARK = _Ink(
    *("#14171b", "#e6e9ed", "#6a727d", "#6db7e0", "#ff9a5c"),
    {"undecided": "#23282e", "smooth": "#1b3327", "between": "#3a2f1b", "noise": "#3d2129"},
)


def _spectrum_of(
    fitted: Any, system: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
    """Eigenvalues, and magnitudes of amplitudes and residuals where there are such."""
    if hasattr(fitted, "eigenvalues_"):
        values = _of_system(fitted, _numpy(fitted.eigenvalues_), system)
        b = np.abs(_of_system(fitted, _numpy(fitted.amplitudes_), system))
        some = ~np.isnan(values)
        residuals = getattr(fitted, "residuals_", None)
        if residuals is not None:
            residuals = _of_system(fitted, _numpy(residuals), system)[some]
        return values[some], b[some], residuals
    if hasattr(fitted, "stats"):
        found = fitted.stats.spectrum
        return np.array([] if found is None else found.eigenvalues, dtype=complex), None, None
    if callable(getattr(fitted, "eigenvalues", None)):
        values = np.atleast_2d(fitted.eigenvalues())[system]
        return values[~np.isnan(values)], None, None
    raise TypeError(
        f"spectrum draws a fitted DMD or OptimizedDMD, or what koopcore.fit returned; got "
        f"{type(fitted).__name__}"
    )


def _modes_of(fitted: Any, system: int) -> tuple[npt.NDArray[Any], ...]:
    """Eigenvalues, modes and magnitudes of amplitudes of a system."""
    if not hasattr(fitted, "modes_"):
        raise TypeError(f"a fitted DMD or OptimizedDMD is drawn; got {type(fitted).__name__}")
    values, vectors, b = (
        _of_system(fitted, _numpy(each), system)
        for each in (fitted.eigenvalues_, fitted.modes_, fitted.amplitudes_)
    )
    some = ~np.isnan(values)
    return values[some], vectors[:, some], np.abs(b[some])


def _one_of_each_pair(values: npt.NDArray[Any], amplitudes: npt.NDArray[Any]) -> list[int]:
    """Places by falling amplitude, without the second of conjugate pairs."""
    order: list[int] = []
    for k in np.argsort(-amplitudes, kind="stable"):
        conjugate = [j for j in order if values[j] == values[k].conj() and values[k].imag != 0.0]
        if not conjugate:
            order.append(int(k))
    return order


def _numpy(values: Any) -> npt.NDArray[Any]:
    """Numbers of any library on the CPU."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    elif type(values).__module__.partition(".")[0] == "cupy":
        values = values.get()
    return np.asarray(values)


def _of_system(fitted: Any, values: Any, system: int) -> npt.NDArray[Any]:
    """One system's share, where there are several."""
    array = _numpy(values)
    result: npt.NDArray[Any] = array[system] if np.ndim(fitted.rank_) else array
    return result


def _states(X: Any, system: int) -> npt.NDArray[Any]:
    array = _numpy(X)
    return array[system] if array.ndim == 3 else array


def _hues(ink: _Ink, count: int) -> list[str]:
    more = [ink.first, ink.second, "#3f9e6b", "#a06cc9", "#b8952c", ink.faint]
    return [more[k % len(more)] for k in range(count)]


def _legend(axes: Any, ink: _Ink) -> None:
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
    axes.legend(frameon=False, fontsize=8, labelcolor=ink.text, ncols=4, **place)


def _dress(axes: Any, ink: _Ink) -> None:
    """Axes in the colours of their ground."""
    axes.set_facecolor(ink.ground)
    axes.tick_params(colors=ink.text, labelsize=8)
    axes.xaxis.label.set_color(ink.text)
    axes.yaxis.label.set_color(ink.text)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(ink.faint)


def _figure(dark: bool, size: tuple[float, float]) -> tuple[Any, _Ink]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'koopcore.plot needs matplotlib, which is not installed: pip install "koopcore[plot]"'
        ) from error
    ink = _DARK if dark else _LIGHT
    return Figure(figsize=size, dpi=110, layout="constrained", facecolor=ink.ground), ink
