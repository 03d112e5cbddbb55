"""What the learners on several workers share: Algorithm 2 in step, Algorithm 3 asynchronous."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from koopcore.learning.checks import positive_seconds, whole
from koopcore.learning.dictionaries.blocks import Blocks
from koopcore.learning.learners.estimator import Learner
from koopcore.learning.persistence import save
from koopcore.learning.progress import bar
from koopcore.learning.trajectories import Scaled
from koopcore.learning.workers.messages import MessageDtype
from koopcore.learning.workers.share import Division, divide, joined
from koopcore.learning.workers.supervisor import Report, Supervisor, WorkerError
from koopcore.types import FloatArray

Team: TypeAlias = tuple[Supervisor, Callable[[int], None]]
"""The supervised processes, and a function to tell how many iterations are done."""


@dataclass(eq=False, repr=False)
class ParallelLearner(Learner):
    """The settings of learners that divide their blocks among worker processes, and their care.

    dictionary: `Blocks`. workers: processes, at most one per block; blocks are dealt out in runs.
    timeout: seconds of silence after which a worker counts as lost. report_every: iterations
    between the states that the caller is sent, of which the last is what remains if a worker is
    lost. checkpoint: the directory to save it in then. messages: the dtype of numbers on their way.
    """

    dictionary: Blocks
    _: KW_ONLY
    workers: int = 2
    timeout: float = 60.0
    report_every: int = 100
    checkpoint: str | Path | None = None
    messages: MessageDtype = "float64"

    def _division(self, workers: int) -> Division:
        """The blocks dealt out to workers; raises for settings that cannot work."""
        division = divide(self.dictionary, whole("workers", workers))
        self._check()
        return division

    def _check(self) -> None:
        super()._check()
        whole("report_every", self.report_every)
        positive_seconds("timeout", self.timeout)
        if self.messages not in ("float64", "float32"):
            raise ValueError(f"messages is {self.messages!r}; 'float64' or 'float32' is needed")

    @contextmanager
    def _team(
        self, target: Callable[..., None], arguments: Sequence[tuple[Any, ...]], problem: Scaled
    ) -> Iterator[Team]:
        """Processes that run ``target``, ended on leaving.

        Where one of them is lost, the operator of the last iteration that all have reported is put
        into the error and the learner, and saved where asked.
        """
        with (
            Supervisor(target, arguments) as supervisor,
            bar(self.n_iterations, self.progress) as advance,
        ):
            try:
                yield supervisor, advance
            except WorkerError as error:
                states = supervisor.last_states()
                # What is not finite is not good; then nothing is left.
                with suppress(FloatingPointError), np.errstate(over="ignore", invalid="ignore"):
                    if states:
                        error.last_good = self._assembled(problem, whole_of(states))
                        self.operator_ = error.last_good
                if error.last_good is not None and self.checkpoint is not None:
                    save(error.last_good, self.checkpoint)
                raise


def whole_of(reports: Sequence[Report]) -> tuple[FloatArray, FloatArray]:
    """(θ, K) of reports of all workers."""
    return joined([report.part for report in reports if report.part is not None])
