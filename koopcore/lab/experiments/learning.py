"""What the experiments of Liu, Ding, Chen, Yeung 2020 share: seeds, errors, output."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

import koopcore
from koopcore.files import write_whole
from koopcore.learning import (
    AlternatingLearner,
    DistributedLearner,
    LearnedOperator,
    prediction_errors,
)
from koopcore.types import FloatArray

FIRST_SEED = 1000
"""Seeds from here on are for results: no setting was chosen with any of them."""

ERRORS = ("one_step_features", "multi_step_features", "one_step_states", "multi_step_states")


def timed(learner: AlternatingLearner | DistributedLearner, train: FloatArray) -> float:
    """Seconds of wall-clock time that ``fit`` took."""
    start = time.perf_counter()
    learner.fit(train)
    return time.perf_counter() - start


def state_errors(learned: LearnedOperator, test: FloatArray) -> dict[str, float]:
    """The errors named in `ERRORS`, as fractions."""
    return dict(vars(prediction_errors(learned, test)))


def wide_console() -> Console:
    """Standard output, of 118 columns at least: rich assumes 80 where it is no terminal."""
    console = Console()
    return console if console.width >= 118 else Console(width=118)


def percent(fraction: float) -> str:
    """A fraction as per cent to three digits; "diverged" from 1000 % on."""
    return f"{100.0 * fraction:.3g} %" if np.isfinite(fraction) and fraction < 10.0 else "diverged"


def written(
    console: Console,
    output: Path,
    name: str,
    settings: dict[str, Any],
    result: dict[str, Any],
    picture: Figure,
) -> dict[str, Any]:
    """Write ``name.json`` and ``name.png`` whole, say where, and return what the JSON holds."""
    output.mkdir(parents=True, exist_ok=True)
    flags = "".join(
        f" --{key.replace('_', '-')} {value}"
        for key, value in settings.items()
        if isinstance(value, int) and key != "first_seed"  # which is no option
    )
    head = {
        "command": f"koopcore reproduce {name}{flags}",
        "settings": settings,
        "koopcore": koopcore.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    whole: dict[str, Any] = {**head, **result}
    text = json.dumps(whole, indent=1) + "\n"
    writers: list[tuple[str, Callable[[Path], object]]] = [
        (".json", lambda path: path.write_text(text, encoding="utf-8")),
        (".png", picture.savefig),
    ]
    for ending, save in writers:
        path = output / f"{name}{ending}"
        write_whole(path, save)
        console.print(str(path), soft_wrap=True)
    return whole
