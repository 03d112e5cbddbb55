"""Yeast glycolysis learned by seven processes, each of which sees one of the seven species.

python examples/glycolysis_distributed.py glycolysis.png
"""

from __future__ import annotations

import sys

import numpy as np

from koopcore.lab.problems.glycolysis import NAMES, paper_split
from koopcore.learning import Blocks, DistributedLearner, Layered, StateInclusive


def main(picture: str | None = None, iterations: int = 200, workers: int = 7) -> dict[str, float]:
    """Learn from 600 points, predict 400; the processes exchange features, never states."""
    train, test = paper_split()  # (600, 7) and (401, 7): its first row is where predictions begin
    block = StateInclusive(Layered(1, (15, 15, 14), bias=1.0, scale=2.0))  # 15 features a species
    learner = DistributedLearner(
        Blocks((block,) * 7),
        workers=workers,
        n_iterations=iterations,
        standardize=True,
        track="objective",
        polish=True,
        random_state=1000,
    )
    learner.fit(train)
    predicted = learner.predict(test[0], n_steps=len(test) - 1)
    error = float(np.linalg.norm(predicted - test[1:]) / np.linalg.norm(test[1:]))
    received = max((t.gathered + t.exchanged) / t.iterations for t in learner.traffic_)
    print(
        f"error of {len(predicted)} steps {100 * error:.1f} %; {workers} processes, each received "
        f"{received / 1e6:.2f} MB an iteration"
    )
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4.4), dpi=110, layout="constrained")
        panels = figure.subplots(2, 4, sharex=True).flat
        minutes = 0.01 * np.arange(1, len(test))
        for k, (axes, name) in enumerate(zip(panels, NAMES, strict=False)):
            axes.plot(minutes, test[1:, k], color="#b4bac3", lw=4, label="true")
            axes.plot(minutes, predicted[:, k], color="#d4581f", lw=1.2, label="predicted")
            axes.set_title(f"{name} [mM]", fontsize=9)
        panels = figure.axes
        panels[7].axis("off")
        panels[7].legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="center")
        for axes in panels[3:7]:
            axes.set_xlabel("minutes ahead")
        figure.savefig(picture)
    return {"error": error, "received": received}


if __name__ == "__main__":  # processes are started: they import this file
    main(*sys.argv[1:])
