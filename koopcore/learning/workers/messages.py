"""Messages between asynchronous workers: latest wins, none too old, nobody waits to send.

A transport of its own, because collectives wait for everybody; what is done in step goes through
torch.distributed (`collectives`).
"""

from __future__ import annotations

import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from koopcore.types import FloatArray

MessageDtype: TypeAlias = Literal["float64", "float32"]
"""What arrays travel in between workers."""

FINAL = 2**62
"""Stamp of a worker's last message: never too old."""

_PATIENCE = 0.05  # seconds between two repeats of the own messages while waiting
_HEADER = struct.Struct("<8sqqq")  # kind, stamp, rows, columns


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
        self, kind: str, now: int, bound: int, timeout: float, repeat: Callable[[], object]
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
                # Without one that went before its end nobody comes to an end, in time or late.
                gone = [p for p in self._closed if self._stamp(kind, p) < FINAL]
                if gone:
                    first = gone[0]  # the others may have gone because it did
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


class Envelope(NamedTuple):
    """What a network sees of a message."""

    sender: int
    receiver: int
    kind: str  # "features" or "errors"
    stamp: int  # iteration, or FINAL


Network: TypeAlias = Callable[[Envelope], "float | None"]
"""A model of a network: seconds by which to delay a message, or None to lose it."""


class Transport:
    """A full mesh of TCP connections between workers, with one sender and receiver per peer.

    A message that has not left when the next of its kind is posted is replaced by it: a slow
    connection loses iterations, not the newest state, and holds nobody up. ``dtype``: of all
    workers' numbers on their way.
    """

    def __init__(
        self, number: int, mailbox: Mailbox, network: Network | None, dtype: MessageDtype
    ) -> None:
        self.number, self.mailbox, self.network = number, mailbox, network
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.sent_bytes = 0
        self._posts: dict[int, _Post] = {}

    def connect(self, listener: Listener, addresses: Sequence[tuple[str, int]], key: bytes) -> None:
        """Connect to every worker: call the lower numbers, be called by the higher ones."""
        for peer in range(self.number):
            connection = Client(addresses[peer], authkey=key)
            connection.send(self.number)
            self._open(peer, connection)
        for _ in range(self.number + 1, len(addresses)):
            connection = listener.accept()
            self._open(int(connection.recv()), connection)

    def post(self, peer: int, kind: str, stamp: int, content: FloatArray) -> None:
        """Send when possible; replaces what waits under the same kind."""
        self._posts[peer].put(kind, stamp, content)

    def repeat(self) -> None:
        """Send the latest messages once more, for peers that may have lost them."""
        for post in self._posts.values():
            post.repeat()

    def close(self) -> None:
        """Close every connection."""
        for post in self._posts.values():
            post.close()

    def _open(self, peer: int, connection: Connection[Any, Any]) -> None:
        post = _Post(self, peer, connection)
        self._posts[peer] = post
        threading.Thread(target=post.send_all, daemon=True).start()
        threading.Thread(target=self._receive, args=(peer, connection), daemon=True).start()

    def _receive(self, peer: int, connection: Connection[Any, Any]) -> None:
        try:
            while True:
                data = connection.recv_bytes()
                kind, stamp, rows, columns = _HEADER.unpack_from(data)
                numbers = np.frombuffer(data, self.dtype, offset=_HEADER.size).astype(np.float64)
                name = kind.rstrip(b"\0").decode()
                self.mailbox.put(name, peer, stamp, numbers.reshape(rows, columns))
        except (EOFError, OSError, TypeError):  # TypeError: closed by ourselves during the read
            self.mailbox.close(peer)


class _Post:
    """Messages that wait for one peer's connection."""

    def __init__(self, transport: Transport, peer: int, connection: Connection[Any, Any]) -> None:
        self._transport, self._peer, self._connection = transport, peer, connection
        self._changed = threading.Condition()
        self._latest: dict[str, tuple[int, bytes]] = {}
        self._pending: set[str] = set()
        self._closed = False

    def put(self, kind: str, stamp: int, content: FloatArray) -> None:
        rows, columns = content.shape
        numbers = content.astype(self._transport.dtype).tobytes()
        data = _HEADER.pack(kind.encode(), stamp, rows, columns) + numbers
        with self._changed:
            self._latest[kind] = (stamp, data)
            self._pending.add(kind)
            self._changed.notify()

    def repeat(self) -> None:
        with self._changed:
            self._pending.update(self._latest)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        with suppress(OSError):
            self._connection.close()

    def send_all(self) -> None:
        """Body of the sending thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closed)
                if self._closed:
                    return
                kind = self._pending.pop()
                stamp, data = self._latest[kind]
            if self._transport.network is not None:
                envelope = Envelope(self._transport.number, self._peer, kind, stamp)
                delay = self._transport.network(envelope)
                if delay is None:
                    continue
                time.sleep(delay)
            try:
                self._connection.send_bytes(data)
            except (OSError, ValueError, TypeError):  # closed at either end: the reader reports it
                return
            self._transport.sent_bytes += len(data)
