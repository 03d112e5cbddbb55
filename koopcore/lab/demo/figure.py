"""The demonstration as a picture: losses, weights, and the steps saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from koopcore.lab.demo.demo import Outcome

_INK, _FAINT, _TRUE, _KOOPMAN = "#22262e", "#b9bec7", "#2f6db3", "#e0662c"
_HUES = ("#2f6db3", "#e0662c", "#2e9164", "#a2448f", "#c19a1b", "#5d6675")


def demo_figure(outcomes: Sequence[Outcome]) -> Figure:
    """One row per `Outcome`: loss (as [DR] Fig. 2b), weights ([DR] Fig. 2d), ``T^eq/T``.

    Steps are counted from ``t2``, the end of the recorded window; the shaded band is the window.
    """
    rows = len(outcomes)
    figure = Figure(figsize=(14, 4.5 * rows + 0.5), dpi=130, layout="constrained")
    grid: Any = figure.subplots(rows, 3, squeeze=False, width_ratios=(1.35, 1.35, 1.0))
    for outcome, (left, middle, right) in zip(outcomes, grid, strict=True):
        _draw_losses(left, outcome)
        _draw_weights(middle, outcome)
        _draw_equivalents(right, outcome)
    return figure


def _draw_losses(axes: Axes, outcome: Outcome) -> None:
    run, network = outcome.run, outcome.typical
    end = outcome.horizon * outcome.stride
    past = np.concatenate((run.before.losses[:-1], run.recorded.losses))
    past = past[-(end + 1) :]
    past_steps = np.arange(1 - len(past), 1)
    future = run.after.losses[: end + 1].numpy()
    predicted_steps = np.arange(outcome.horizon + 1) * outcome.stride
    _shade_window(axes, outcome)
    for other in range(future.shape[1]):
        chosen = other == network
        style: dict[str, Any] = {"lw": 2.2, "zorder": 4} if chosen else {"lw": 1.2, "alpha": 0.75}
        axes.plot(past_steps, past[:, other], color=_INK if chosen else _FAINT, **style)
        axes.plot(future[:, other], color=_TRUE, **style)
        dashes: dict[str, Any] = {**style, "ls": (0, (4, 2)), "zorder": 5 if chosen else 2}
        axes.plot(predicted_steps, outcome.losses[:, other], color=_KOOPMAN, **dashes)
    axes.plot([], [], color=_INK, lw=2.2, label="training up to $t_2$")
    axes.plot([], [], color=_TRUE, lw=2.2, label="training continued")
    axes.plot([], [], color=_KOOPMAN, lw=2.2, ls=(0, (4, 2)), label="Koopman prediction")
    axes.set(yscale="log", ylabel="loss")
    axes.set_ylim(*_limits(np.concatenate((past, future))))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:.3g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, loc="upper right", fontsize=9)
    _finish(
        axes,
        f"{run.optimizer.capitalize()}, an operator per {outcome.partition.removesuffix('s')}: "
        f"median $T^{{eq}}/T$ = {np.median(outcome.relative):.2f}",
    )


def _draw_weights(axes: Axes, outcome: Outcome, shown: int = 6) -> None:
    run, network = outcome.run, outcome.typical
    past = run.recorded.snapshots[:, network].numpy()
    future = run.after.snapshots[: outcome.horizon + 1, network].numpy()
    predicted = outcome.weights[:, network].numpy()
    start = past[-1]
    movement = np.abs(future[-1] - start)
    # Evenly through the movers, largest first: the largest alone are near copies of each other.
    order = np.argsort(-movement)[: len(movement) // 3]
    chosen = order[np.linspace(0, len(order) - 1, shown).astype(int)]
    _shade_window(axes, outcome)
    past_steps = np.arange(1 - len(past), 1) * outcome.stride
    steps = np.arange(outcome.horizon + 1) * outcome.stride
    for hue, weight in zip(_HUES, chosen, strict=False):
        axes.plot(past_steps, past[:, weight] - start[weight], color=hue, lw=1.8)
        axes.plot(steps, future[:, weight] - start[weight], color=hue, lw=4.5, alpha=0.3)
        axes.plot(steps, predicted[:, weight] - start[weight], color=hue, lw=1.8, ls=(0, (4, 2)))
    axes.plot([], [], color=_INK, lw=1.8, label="recorded")
    axes.plot([], [], color=_INK, lw=4.5, alpha=0.3, label="training continued")
    axes.plot([], [], color=_INK, lw=1.8, ls=(0, (4, 2)), label="Koopman prediction")
    axes.legend(frameon=False, loc="best", fontsize=9)
    axes.set(ylabel="weight - weight at $t_2$")
    _finish(
        axes,
        f"Six weights of network {network}: median error "
        f"{100 * outcome.error_ratio[network]:.1f} % of the movement",
    )


def _draw_equivalents(axes: Axes, outcome: Outcome) -> None:
    order = np.argsort(outcome.relative)
    places = np.arange(len(order))
    relative = outcome.relative[order]
    axes.axvline(1, color=_TRUE, lw=1.6, label="training continued, $T$ steps")
    axes.axvline(0, color=_INK, lw=0.8)
    axes.hlines(places, 0, relative, color=_KOOPMAN, lw=1.4, alpha=0.45)
    axes.plot(relative, places, "o", color=_KOOPMAN, ms=6.5, label="Koopman prediction")
    axes.set(xlim=(-0.03, 1.05 * max(1.0, float(relative.max()))), ylabel="network")
    axes.set_ylim(-0.7, len(order) + 0.16 * len(order) + 0.5)
    axes.set_yticks(places, [str(k) for k in order], fontsize=max(4.5, 9 - len(order) / 12))
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    _finish(axes, "Training steps that the prediction is worth", "$T^{eq}/T$")


def _shade_window(axes: Axes, outcome: Outcome) -> None:
    steps = (len(outcome.run.recorded.snapshots) - 1) * outcome.stride
    axes.axvspan(-steps, 0, color="#f0e9da", zorder=0, lw=0)
    axes.axvline(0, color="#a3947a", lw=0.8, zorder=1)
    axes.text(
        -steps / 2,
        0.02,
        "recorded\nwindow",
        transform=axes.get_xaxis_transform(),
        ha="center",
        va="bottom",
        fontsize=8.5,
        color="#7d6f55",
    )


def _limits(losses: NDArray[np.float32]) -> tuple[float, float]:
    """Axis limits from ordinary training alone: a prediction that blows up leaves the picture."""
    finite = losses[np.isfinite(losses)]
    low, high = float(finite.min()), float(finite.max())
    span = (high / low) ** 0.12 * 1.02
    return low / span, high * span**2.2


def _finish(axes: Axes, title: str, xlabel: str = "optimizer steps after $t_2$") -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=_INK)
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
