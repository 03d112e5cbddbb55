"""Starts worker processes, gathers their reports, and names the one that died or stalled."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, NoReturn

from koopcore.learning.learned_operator import LearnedOperator
from koopcore.learning.workers.share import Part

STARTING = 60.0
"""Seconds in which workers must be up: imports on a busy machine are no silence of a worker."""

PRELOADED = (
    "koopcore.learning.workers.asynchronous",
    "koopcore.learning.workers.ranks",  # cannot be imported without torch
    "koopcore._native._cpu",  # nor this in a pure Python install
    "koopcore.backends.native_cpu",
)
"""What the fork server imports once, before any worker is forked from it.

It imports each by itself and passes over those that raise ImportError.
"""

_GRACE = 5.0  # seconds in which a death, or others, may still explain a worker's complaint


class Report(NamedTuple):
    """What a worker tells: how far it is, and why it stopped."""

    kind: str  # "here" or "address" once up, then "state", "done", "failed", "diverged"
    iteration: int
    content: Any = None
    part: Part | None = None  # of the best iterate; with "state" and "done"


class Complaint(NamedTuple):
    """Why a worker cannot go on, the content of a "failed" report."""

    message: str
    blamed: int | None = None  # the worker it blames: itself, a peer, or None where it cannot know
    stamp: int = -1  # iteration of the last message from a peer that is blamed


def tell(pipe: Connection, report: Report) -> None:
    """Send a report, unless the supervisor has gone: then there is nobody to tell."""
    with suppress(OSError):
        pipe.send(report)


class WorkerError(RuntimeError):
    """A worker died, stalled or lost its connection; the others were stopped.

    ``worker`` is its number. ``last_good`` is the operator assembled from every worker's last
    report, or None if some worker had not reported yet.
    """

    def __init__(self, message: str, worker: int) -> None:
        super().__init__(message)
        self.worker = worker
        self.last_good: LearnedOperator | None = None


class Supervisor:
    """Worker processes and their reports. Use as a context: leaving it ends all processes."""

    def __init__(self, target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
        # A fork server starts with torch and threads not yet running, so its forks are safe; and
        # each fork has the imports already, where a spawned process would pay seconds for them.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        self._states: list[dict[int, Report]] = [{} for _ in arguments]  # by iteration
        for number, some in enumerate(arguments):
            here, there = context.Pipe()
            process = context.Process(
                target=target, args=(there, *some), name=f"worker {number}", daemon=True
            )
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes:
            pipe.close()  # tells a waiting worker to end
        for process in self.processes:
            process.join(timeout=0.5)
            if process.is_alive():
                process.kill()
                process.join()

    def gather(
        self, kind: str, timeout: float, on_state: Callable[[int, Report], object] | None = None
    ) -> list[Report]:
        """One report of ``kind`` from every worker; "state" reports on the way are remembered.

        timeout: seconds without any report from any worker. Raises `WorkerError`, and
        FloatingPointError where a worker says that its numbers are not finite any more.
        """
        reports: dict[int, Report] = {}
        silent, looked = 0.0, time.monotonic()
        while len(reports) < len(self.pipes):
            missing = [n for n in range(len(self.pipes)) if n not in reports]
            ready = wait([self.pipes[n] for n in missing], timeout=0.2)
            # Time in which this process itself was suspended is no silence of the workers'.
            now = time.monotonic()
            silent, looked = silent + min(now - looked, 0.4), now
            for number in missing:
                if self.pipes[number] not in ready:
                    continue
                silent = 0.0
                report = self._receive(number)
                if report.kind == "failed":
                    self._explain(number, report)
                if report.kind == kind:
                    reports[number] = report
                elif on_state is not None:
                    on_state(number, report)
            if silent > timeout:
                first = next(n for n in missing if n not in reports)
                raise WorkerError(
                    f"no worker reported for {timeout:g} s; waiting for worker {first}", first
                )
        return [reports[n] for n in range(len(self.pipes))]

    def last_states(self) -> list[Report]:
        """Every worker's "state" of the last iteration that all have reported; [] if there is none.

        States of one iteration belong together; the newest of each worker need not.
        """
        common = set.intersection(*(set(states) for states in self._states))
        return [states[max(common)] for states in self._states] if common else []

    def send(self, message: Any) -> None:
        """The same message to every worker; one that is gone is noticed by `gather`."""
        for pipe in self.pipes:
            with suppress(OSError):
                pipe.send(message)

    def _receive(self, number: int) -> Report:
        """A worker's next report; states are remembered, a divergence and a death are raised."""
        try:
            report: Report = self.pipes[number].recv()
        except (EOFError, OSError):
            process = self.processes[number]
            process.join(timeout=_GRACE)  # its pipe closes some moments before it is gone
            self._raise_dead([number])
            raise WorkerError(f"worker {number} closed its pipe", number) from None
        if report.kind == "state":
            self._states[number][report.iteration] = report
            common = self.last_states()
            if common:
                for states in self._states:
                    for old in [t for t in states if t < common[0].iteration]:
                        del states[old]
        elif report.kind == "diverged":
            raise FloatingPointError(f"worker {number}, iteration {report.iteration}")
        return report

    def _raise_dead(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            code = self.processes[number].exitcode
            if code:
                raise WorkerError(f"worker {number} died with exit code {code}", number)

    def _explain(self, first: int, report: Report) -> NoReturn:
        """A worker complains, often about another: hear the others, then name the guilty one.

        Whoever died or diverged, or says that it failed itself, is to blame. Of workers that only
        lost each other, it is the one most of them lost, and then the one last heard of first.
        """
        heard = {first: report}
        until = time.monotonic() + _GRACE
        while time.monotonic() < until:
            self._raise_dead(range(len(self.processes)))
            silent = [n for n in range(len(self.pipes)) if n not in heard]
            if not silent:
                break
            for pipe in wait([self.pipes[n] for n in silent], timeout=0.05):
                number = next(n for n in silent if self.pipes[n] is pipe)
                other = self._receive(number)
                if other.kind == "failed":
                    heard[number] = other
        blamed = Counter(r.content.blamed for r in heard.values())

        def weight(item: tuple[int, Report]) -> tuple[bool, bool, int, int, int]:
            number, complaint = item[0], item[1].content
            known = complaint.blamed is not None
            return (
                complaint.blamed != number,
                not known,
                -blamed[complaint.blamed],
                complaint.stamp,
                number,
            )

        number, report = min(heard.items(), key=weight)
        complaint: Complaint = report.content
        raise WorkerError(
            f"worker {number}, iteration {report.iteration}: {complaint.message}",
            number if complaint.blamed is None else complaint.blamed,
        )
