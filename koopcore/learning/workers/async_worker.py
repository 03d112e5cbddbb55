"""One worker of Algorithm 3: goes on with the last messages it has, as old as the bound allows."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection, Listener
from typing import NamedTuple

import numpy as np

from koopcore.learning.step_sizes import Diminishing, scheduled
from koopcore.learning.workers.mailbox import FINAL, Mailbox, PeerLost
from koopcore.learning.workers.share import Share
from koopcore.learning.workers.supervisor import Complaint, Report, tell
from koopcore.learning.workers.transport import Network, Transport
from koopcore.types import FloatArray


class AsyncRules(NamedTuple):
    """How every worker steps; the same for all of them."""

    n_iterations: int
    step_k: float | Diminishing
    step_w: float | Diminishing
    delay: int  # largest age in iterations of a message that is used
    timeout: float
    report_every: int
    network: Network | None


class Finished(NamedTuple):
    """What a worker ends with."""

    part: tuple[FloatArray, FloatArray]  # θ_i and the rows of K
    delays: dict[int, int]  # age in iterations: how many messages of that age were used
    sent_bytes: int
    seconds: float


def run_worker(
    pipe: Connection, number: int, slices: list[slice], mine: Share, rules: AsyncRules, key: bytes
) -> None:
    """Body of a worker process: join the mesh, iterate, report through the pipe."""
    peers = [p for p in range(len(slices)) if p != number]
    mailbox = Mailbox(peers)
    transport = Transport(number, mailbox, rules.network)
    with Listener(("127.0.0.1", 0), backlog=len(slices), authkey=key) as listener:
        tell(pipe, Report("address", 0, listener.address))
        try:
            transport.connect(listener, pipe.recv(), key)
        except (EOFError, OSError):  # another worker, or the caller, is gone already
            tell(pipe, Report("failed", 0, Complaint("could not connect to the others")))
            return
    worker = AsyncWorker(number, slices, mine, rules, mailbox, transport, pipe)
    try:
        worker.iterate()
    except PeerLost as error:
        complaint = Complaint(str(error), error.peer, error.stamp)
        tell(pipe, Report("failed", worker.done, complaint))
    except FloatingPointError:
        tell(pipe, Report("diverged", worker.done))
    except Exception as error:  # a dictionary's own code may raise anything
        tell(pipe, Report("failed", worker.done, Complaint(f"failed with {error!r}", number)))
    else:
        # Others may still be on their way: what they lost is repeated until the pipe is closed.
        while not pipe.poll(0.05):
            transport.repeat()
    transport.close()


class AsyncWorker:
    """The iterations of one worker."""

    def __init__(
        self,
        number: int,
        slices: list[slice],
        mine: Share,
        rules: AsyncRules,
        mailbox: Mailbox,
        transport: Transport,
        pipe: Connection,
    ) -> None:
        self.number, self.slices, self.mine, self.rules = number, slices, mine, rules
        self.mailbox, self.transport, self.pipe = mailbox, transport, pipe
        self.done = 0
        width = slices[-1].stop
        self._features = np.zeros((len(mine.data.states), width))

    def iterate(self) -> None:
        """All iterations, and the final messages, which are never too old for the others."""
        mine, rules = self.mine, self.rules
        start = time.perf_counter()
        for t in range(rules.n_iterations):
            with np.errstate(over="ignore", invalid="ignore"):  # divergence is looked for below
                error, back = self._exchange(t, t)
                rows = mine.row_gradient(self._features, error)
                slope = mine.parameter_gradient(error, back)
                moved = mine.parameters - scheduled(rules.step_w, t) * slope
                moved_rows = mine.rows - scheduled(rules.step_k, t) * rows
            if not (np.isfinite(moved).all() and np.isfinite(moved_rows).all()):
                raise FloatingPointError
            mine.parameters, mine.rows = moved, moved_rows
            self.done = t + 1
            if self.done % rules.report_every == 0:
                self._report(error, rows, slope)
        seconds = time.perf_counter() - start
        self._exchange(rules.n_iterations, FINAL)
        finished = Finished(
            (mine.parameters, mine.rows),
            dict(self.mailbox.delays),
            self.transport.sent_bytes,
            seconds,
        )
        tell(self.pipe, Report("done", self.done, finished))

    def _exchange(self, t: int, stamp: int) -> tuple[FloatArray, FloatArray]:
        """Send ψ_i, take everybody's; send K_ivᵀ e^i, take everybody's: e^i and Σ_v K_viᵀ e^v."""
        mine, peers = self.mine, self.mailbox.peers
        features = mine.linearize()
        self._features[:, mine.own] = features
        for peer in peers:
            self.transport.post(peer, "features", stamp, features)
        for peer, arrived in self._wait("features", t).items():
            self._features[:, self.slices[peer]] = arrived
        error = mine.errors(self._features)
        contributions = error @ mine.rows
        for peer in peers:
            part = np.ascontiguousarray(contributions[:, self.slices[peer]])
            self.transport.post(peer, "errors", stamp, part)
        back = contributions[:, mine.own].copy()
        for arrived in self._wait("errors", t).values():
            back += arrived
        return error, back

    def _wait(self, kind: str, t: int) -> dict[int, FloatArray]:
        rules = self.rules
        return self.mailbox.wait(kind, t, rules.delay, rules.timeout, self.transport.repeat)

    def _report(self, error: FloatArray, rows: FloatArray, slope: FloatArray) -> None:
        mine = self.mine
        numbers = (
            float(np.vdot(error, error)) / len(error),
            float(np.vdot(rows, rows)),
            float(np.vdot(slope, slope)),
        )
        tell(self.pipe, Report("state", self.done, (mine.parameters, mine.rows, numbers)))
