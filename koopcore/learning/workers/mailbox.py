"""The last messages that arrived from every peer, and the bound on how old they may be."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from koopcore.types import FloatArray

FINAL = 2**62
"""Stamp of a worker's last message: never too old."""

_PATIENCE = 0.05  # seconds between two repeats of the own messages while waiting


class PeerLost(RuntimeError):
    """A peer closed its connection or kept silent; ``peer`` is its number.

    ``stamp`` is the iteration of its last message, -1 if there was none.
    """

    def __init__(self, message: str, peer: int, stamp: int) -> None:
        super().__init__(message)
        self.peer, self.stamp = peer, stamp


class Mailbox:
    """Latest message of each kind from each peer; older ones that arrive late are ignored."""

    def __init__(self, peers: list[int]) -> None:
        self.peers = peers
        self.delays: Counter[int] = Counter()  # iterations between need and stamp of what was used
        self._arrived = threading.Condition()
        self._latest: dict[tuple[str, int], tuple[int, FloatArray]] = {}
        self._closed: list[int] = []  # in the order in which they went

    def put(self, kind: str, peer: int, stamp: int, content: FloatArray) -> None:
        """Called by receiving threads."""
        with self._arrived:
            known = self._latest.get((kind, peer))
            if known is None or stamp > known[0]:
                self._latest[kind, peer] = (stamp, content)
                self._arrived.notify_all()

    def close(self, peer: int) -> None:
        """The peer's connection ended: what it sent stays, nothing more will come."""
        with self._arrived:
            self._closed.append(peer)
            self._arrived.notify_all()

    def wait(
        self,
        kind: str,
        now: int,
        bound: int,
        timeout: float,
        repeat: Callable[[], object],
    ) -> dict[int, FloatArray]:
        """Every peer's latest message of a kind, none older than ``bound`` iterations.

        Goes on at once with what is there, if it is young enough. Otherwise waits, calling
        ``repeat`` now and then: peers that wait for a lost message of ours get it again. Raises
        `PeerLost` naming the peer that closed first, or too old after ``timeout`` seconds.
        """
        least = max(0, now - bound)
        waited, looked = 0.0, time.monotonic()
        with self._arrived:
            while True:
                late = [p for p in self.peers if self._stamp(kind, p) < least]
                if not late:
                    break
                if any(peer in self._closed for peer in late):
                    first = self._closed[0]  # the others may have gone because it did
                    last = self._stamp(kind, first)
                    raise PeerLost(f"worker {first} closed its connection", first, last)
                # Of several, name the one not heard of for longest: the others wait for it as well.
                oldest = min(late, key=lambda p: self._stamp(kind, p))
                last = self._stamp(kind, oldest)
                # Time in which this process itself was suspended is no silence of the peer's.
                now_is = time.monotonic()
                waited, looked = waited + min(now_is - looked, 2.0 * _PATIENCE), now_is
                if waited > timeout:
                    raise PeerLost(
                        f"no {kind} of iteration {least} or later from worker {oldest} for "
                        f"{timeout:g} s (its last was of iteration {last})",
                        oldest,
                        last,
                    )
                if not self._arrived.wait(_PATIENCE):
                    repeat()
            for peer in self.peers:
                self.delays[max(0, now - self._stamp(kind, peer))] += 1
            return {p: self._latest[kind, p][1] for p in self.peers}

    def _stamp(self, kind: str, peer: int) -> int:
        return self._latest.get((kind, peer), (-1, None))[0]
