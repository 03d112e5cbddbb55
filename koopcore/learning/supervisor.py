"""Starts worker processes, gathers their reports, and names the one that died or stalled."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from koopcore.learning.learned_operator import LearnedOperator

_GRACE = 1.0  # seconds in which a death may still explain another worker's complaint


class Report(NamedTuple):
    """What a worker tells: its latest good part of the result, or why it stopped."""

    kind: str  # "address", "state", "done", "failed", "diverged"
    iteration: int
    content: Any = None


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
        context.set_forkserver_preload(["koopcore.learning.preloaded"])
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        self.states: list[Report | None] = [None] * len(arguments)
        for number, given in enumerate(arguments):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=target, args=(theirs, *given), name=f"worker {number}", daemon=True
            )
            process.start()
            theirs.close()
            self.pipes.append(mine)
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
        """One report of ``kind`` from every worker; "state" reports are kept on the way.

        timeout: seconds without any report from any worker. Raises `WorkerError`.
        """
        found: dict[int, Report] = {}
        silent, looked = 0.0, time.monotonic()
        while len(found) < len(self.pipes):
            missing = [n for n in range(len(self.pipes)) if n not in found]
            ready = wait([self.pipes[n] for n in missing], timeout=0.2)
            # Time in which this process itself was suspended is no silence of the workers'.
            now = time.monotonic()
            silent, looked = silent + min(now - looked, 0.4), now
            for number in missing:
                if self.pipes[number] not in ready:
                    continue
                silent = 0.0
                report = self._receive(number)
                if report.kind == "state":
                    self.states[number] = report
                    if on_state is not None:
                        on_state(number, report)
                elif report.kind == kind:
                    found[number] = report
                elif report.kind == "diverged":
                    raise FloatingPointError(f"worker {number}, iteration {report.iteration}")
                else:
                    self._explain(number, report)
            if silent > timeout:
                first = next(n for n in missing if n not in found)
                raise WorkerError(
                    f"no worker reported for {timeout:g} s; waiting for worker {first}", first
                )
        return [found[n] for n in range(len(self.pipes))]

    def send(self, message: Any) -> None:
        """The same message to every worker."""
        for pipe in self.pipes:
            pipe.send(message)

    def _receive(self, number: int) -> Report:
        try:
            report: Report = self.pipes[number].recv()
        except (EOFError, OSError):
            self._died(number, 0.5)
            raise WorkerError(f"worker {number} closed its connection", number) from None
        return report

    def _died(self, number: int, patience: float = 0.0) -> None:
        process = self.processes[number]
        process.join(timeout=patience)
        if process.exitcode is not None:
            raise WorkerError(
                f"worker {number} died with exit code {process.exitcode}; the last good state of "
                "all workers was kept",
                number,
            )

    def _explain(self, number: int, report: Report) -> None:
        """A worker complains: about itself, or about another that may just have died."""
        message, blamed = report.content
        until = time.monotonic() + _GRACE
        while time.monotonic() < until:
            for other, process in enumerate(self.processes):
                if process.exitcode not in (None, 0):
                    self._died(other)
            time.sleep(0.05)
        guilty = number if blamed is None else blamed
        raise WorkerError(f"worker {number}, iteration {report.iteration}: {message}", guilty)
