"""How many training steps does a prediction cost: when is a predicted step the cheaper one?

Networks of four sizes, batches from 1 to 1,024, a training step of Adam in torch; n = 16 snapshots
of that very training, one affine operator, one endpoint. A prediction T steps ahead replaces T
steps, so it pays, as far as time goes, if T is more than "steps per prediction" here. With a line
search it costs eight horizons and eight evaluations of the loss on the batch; that is another
case. (The question of Dogra & Redman 2020, supplement S1.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

import koopcore as kc
from koopcore.lab.bench import plots
from koopcore.lab.bench.study import (
    INSTALL,
    Case,
    Job,
    Row,
    Size,
    Study,
    Summary,
    Unavailable,
    races_of,
    shared,
)
from koopcore.lab.studies.workloads import one_group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N, STRIDE, HORIZON, RATE = 16, 5, 10, 1e-3
HORIZONS = (1, 2, 3, 4, 5, 6, 8, HORIZON)
NETWORKS = {
    "1-10-10-2": (1, 10, 10, 2),
    "784-20-20-10": (784, 20, 20, 10),
    "784-256-256-10": (784, 256, 256, 10),
    "784-1024-1024-10": (784, 1024, 1024, 10),
}
BATCHES = {Size.full: (1, 16, 64, 256, 1024), Size.quick: (1, 64), Size.once: (1, 16)}
COUNT = {Size.full: 4, Size.quick: 3, Size.once: 2}  # of the networks
PREDICT, SEARCH = "fit and predict", "fit, eight horizons, eight losses of batch "


def cases(size: Size) -> list[Case]:
    networks = list(NETWORKS)[: COUNT[size]]
    batches = BATCHES[size]
    return [
        Case(name, case, batch, name)
        for name in networks
        for case, batch in [
            (PREDICT, float("nan")),
            *((f"step, batch {batch}", batch) for batch in batches),
            *((f"{SEARCH}{batch}", batch) for batch in batches[1:]),
        ]
    ]


class Training:
    """A network in training on made-up data that it can learn, and its recorded snapshots."""

    def __init__(self, widths: Sequence[int]) -> None:
        import torch
        from torch import nn

        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
        self.model = nn.Sequential(*layers[:-1])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE)
        self.inputs = torch.randn(max(max(BATCHES.values(), key=max)), widths[0])
        self.targets = torch.randn(len(self.inputs), widths[-1]).mul_(0.1)
        self.rows: Any = np.stack([self._recorded() for _ in range(N)])
        self.part = one_group(self.rows.shape[1])
        self.expected = self.predict(HORIZONS, "reference")

    def _recorded(self) -> Any:
        import torch

        for _ in range(STRIDE):
            self.step(64)
        parameters = [p.detach().reshape(-1) for p in self.model.parameters()]
        return torch.cat(parameters).numpy()

    def loss(self, batch: int) -> Any:
        from torch.nn.functional import mse_loss

        return mse_loss(self.model(self.inputs[:batch]), self.targets[:batch])

    def step(self, batch: int) -> float:
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def predict(self, horizons: Any, backend: str | None = None) -> Any:
        operators = kc.fit(self.rows, self.part, backend=backend, horizon=horizons)
        return operators.predict(horizons)

    def search(self, batch: int) -> list[float]:
        """Predict eight horizons, and the losses there."""
        return self.losses(self.predict(HORIZONS), batch)

    def losses(self, predicted: Any, batch: int) -> list[float]:
        """The loss at each of several sets of parameters; the network is left as it was."""
        import torch
        from torch.nn.utils import parameters_to_vector, vector_to_parameters

        parameters = list(self.model.parameters())
        with torch.no_grad():
            before = parameters_to_vector(parameters)
            losses = []
            for row in torch.from_numpy(predicted):
                vector_to_parameters(row, parameters)
                losses.append(float(self.loss(batch)))
            vector_to_parameters(before, parameters)
        return losses


@shared
def _training(name: str) -> Training:
    try:
        return Training(NETWORKS[name])
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed: {INSTALL}") from None


def build(case: Case) -> Job:
    training = _training(case.options)
    size = {"parameters": float(training.rows.shape[1])}
    if case.name.startswith("step"):
        batch = int(case.x)
        return Job(
            call=lambda: training.step(batch),
            error=lambda loss: 0.0 if math.isfinite(loss) else 1.0,
            bound=0.0,
            engine=False,
        )
    expected = training.expected[-1]  # at HORIZON
    if case.name == PREDICT:
        # The definition in NumPy, in float64: another order of sums, and of what they round to.
        movement = float(np.linalg.norm(expected - training.rows[-1]))

        def error(predicted: Any) -> float:
            return float(np.linalg.norm(predicted - expected)) / movement

        return Job(lambda: training.predict(HORIZON), error, 1e-3, 1.0, size)
    batch = int(case.x)
    losses_there = np.array(training.losses(training.expected, batch))

    def differs(losses: list[float]) -> float:
        return float(np.abs(losses / losses_there - 1.0).max())

    return Job(lambda: training.search(batch), differs, 1e-2, 1.0, size)


def summary(rows: Sequence[Row]) -> Summary:
    notes = []
    for race in races_of(rows):
        timed = {row.case: row for row in rows if row.race == race and row.seconds}
        if PREDICT not in timed:
            continue
        predicted = timed[PREDICT].seconds or float("nan")
        for case, row in timed.items():
            if not case.startswith("step"):
                continue
            steps = predicted / (row.seconds or float("nan"))
            text = f"{race}, batch {row.x:.0f}: {steps:.2f} steps per prediction"
            searched = timed.get(f"{SEARCH}{row.x:.0f}")
            if searched and searched.seconds and row.seconds:
                text += f", {searched.seconds / row.seconds:.1f} with a line search"
            notes.append(text)
    return Summary(notes=notes)


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Steps per prediction against the batch, one line per network."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for race in races_of(rows):
        timed = [row for row in rows if row.race == race and row.seconds]
        cost = next((row.seconds for row in timed if row.case == PREDICT), None)
        steps = [row for row in timed if row.case.startswith("step")]
        if cost and steps:
            ratios = [cost / (row.seconds or 1.0) for row in steps]
            axes.plot([row.x for row in steps], ratios, "o-", label=race)
    axes.axhline(1.0, color=axes.spines["left"].get_edgecolor(), linewidth=1)
    axes.set_ylabel("training steps that a prediction costs")
    plots.legend(axes)


STUDY = Study("backpropagation", __doc__.splitlines()[0], "batch size", cases, build, summary, draw)
