"""Figures by matplotlib: what an attachment did in a training run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colours of the regimes behind the curves.
_SHADES = {"undecided": "#eeeeee", "smooth": "#e3f1e8", "between": "#fbeedb", "noise": "#f6dfe4"}


def run(koop: Any) -> Figure:
    """Draw losses, jumps, regimes and hindcast errors of a run over its steps.

    koop: what ``koopcore.attach`` returned, also after ``detach()``.

    Above, the loss before and after each attempt, accepted jumps as arrows down, rejected attempts
    as dots; below, the hindcast error over the movement; behind both, the regime. Under noise there
    are no attempts, and so no losses: see ``koop.averaged()``.

    Returns a ``matplotlib.figure.Figure`` (``run(koop).savefig("run.png")``), which matplotlib's
    ``pyplot`` does not know and need not close. ImportError, with what to install, without
    matplotlib; TypeError for what is no attachment.
    """
    stats: Any = getattr(koop, "stats", None)
    if not hasattr(stats, "history") or not hasattr(stats, "regimes"):
        raise TypeError(f"run draws what koopcore.attach returned; got {type(koop).__name__}")
    figure = _figure()
    losses, hindcasts = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    ends = [*stats.regimes[1:], (max(stats.steps, 1), "")]
    for (begin, regime), (end, _) in zip(stats.regimes, ends, strict=True):
        for axes in (losses, hindcasts):
            axes.axvspan(begin, end, color=_SHADES.get(regime, "#ffffff"), lw=0, zorder=0)
        losses.annotate(regime, (begin, 1.01), xycoords=("data", "axes fraction"), fontsize=8)
    judged = [r for r in stats.history if r.loss_before is not None]
    jumps = [r for r in judged if r.accepted]
    losses.plot([r.step for r in judged], [r.loss_before for r in judged], color="#b9bec7", lw=1)
    losses.vlines(
        [r.step for r in jumps],
        [r.loss_after for r in jumps],
        [r.loss_before for r in jumps],
        color="#e0662c",
        lw=1.2,
        label=f"{len(jumps)} jumps",
    )
    vain = [r for r in judged if not r.accepted]
    losses.plot(
        [r.step for r in vain],
        [r.loss_before for r in vain],
        "o",
        color="#7d8590",
        ms=3,
        label=f"{len(vain)} attempts in vain",
    )
    known = [r for r in stats.history if math.isfinite(r.hindcast) and r.hindcast > 0]
    hindcasts.plot([r.step for r in known], [r.hindcast for r in known], ".", color="#2e6f94")
    losses.set(ylabel="loss")
    hindcasts.set(xlabel="optimizer steps", ylabel="hindcast error\n/ movement")
    values = [v for r in judged for v in (r.loss_before, r.loss_after)]
    if values and min(values) > 0:
        losses.set_yscale("log")
    if known:
        hindcasts.set_yscale("log")
    if judged:
        losses.legend(frameon=False, fontsize=8)
    for axes in (losses, hindcasts):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'koopcore.plot needs matplotlib, which is not installed: pip install "koopcore[plot]"'
        ) from error
    return Figure(figsize=(8, 5), dpi=110, layout="constrained")
