"""Mailboxes of asynchronous workers: the latest message wins, and none is too old."""

import threading
import time
from multiprocessing.connection import Listener

import numpy as np
import pytest

from koopcore.learning.workers.messages import FINAL, Mailbox, PeerLost, Transport


def never():
    raise AssertionError("nothing to wait for, so nothing to repeat")


def test_a_mailbox_gives_the_latest_and_ignores_what_comes_late():
    box = Mailbox([4, 7])
    for stamp in (0, 2, 1):
        box.put("features", 4, stamp, np.full((1, 1), stamp))
    box.put("features", 7, 5, np.full((1, 1), 5))
    found = box.wait("features", 3, 1, 1.0, never)
    assert {peer: int(v[0, 0]) for peer, v in found.items()} == {4: 2, 7: 5}
    assert box.delays == {1: 1, 0: 1}  # from the future counts as no delay


def test_a_mailbox_waits_no_longer_than_its_timeout_and_repeats_meanwhile():
    box = Mailbox([1, 2])
    box.put("errors", 1, FINAL, np.zeros((1, 1)))
    box.put("errors", 2, 3, np.zeros((1, 1)))
    repeats = []
    with pytest.raises(PeerLost, match=r"iteration 8 or later from worker 2 .*of iteration 3\)"):
        box.wait("errors", 10, 2, 0.2, lambda: repeats.append(1))
    assert repeats
    box.close(1)
    box.put("errors", 2, 9, np.zeros((1, 1)))
    box.wait("errors", 10, 2, 0.2, never)  # a peer that closed after its last message is done
    with pytest.raises(PeerLost, match="worker 1 closed its connection") as caught:
        box.wait("features", 0, 2, 5.0, never)
    assert caught.value.peer == 1


def test_of_closed_peers_a_mailbox_names_the_one_that_went_first():
    box = Mailbox([0, 2])
    box.put("features", 0, 7, np.zeros((1, 1)))
    box.put("features", 2, 9, np.zeros((1, 1)))  # new enough, but its end is why worker 0 ended
    box.close(2)
    box.close(0)
    with pytest.raises(PeerLost, match="worker 2 closed its connection") as caught:
        box.wait("features", 10, 2, 5.0, never)
    assert (caught.value.peer, caught.value.stamp) == (2, 9)


def test_a_peer_that_went_before_its_end_is_named_although_another_is_late():
    box = Mailbox([0, 2])
    box.put("features", 0, 7, np.zeros((1, 1)))  # too old, but only because worker 2 went
    box.put("features", 2, 9, np.zeros((1, 1)))
    box.close(2)
    with pytest.raises(PeerLost, match="worker 2 closed its connection"):
        box.wait("features", 10, 2, 5.0, never)
    box.put("features", 2, FINAL, np.zeros((1, 1)))  # nothing more was to come from it
    with pytest.raises(PeerLost, match=r"no features .* from worker 0"):
        box.wait("features", 10, 2, 0.1, lambda: None)


@pytest.mark.parametrize(("dtype", "size"), [("float64", 8), ("float32", 4)])
def test_numbers_travel_in_the_messages_dtype(dtype, size):
    boxes = Mailbox([1]), Mailbox([0])
    ends = [Transport(number, box, None, dtype) for number, box in enumerate(boxes)]
    content = np.random.default_rng(0).normal(size=(5, 3))
    with Listener(("127.0.0.1", 0), authkey=b"key") as listener:
        addresses = [listener.address] * 2
        calling = threading.Thread(target=ends[1].connect, args=(listener, addresses, b"key"))
        calling.start()
        ends[0].connect(listener, addresses, b"key")
        calling.join()
    ends[0].post(1, "features", 0, content)
    found = boxes[1].wait("features", 0, 0, 20.0, lambda: None)[0]
    np.testing.assert_array_equal(found, content.astype(dtype))
    assert found.dtype == np.float64
    # Counted when it has left, a moment after it may have arrived.
    deadline = time.monotonic() + 20.0
    while ends[0].sent_bytes == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert ends[0].sent_bytes == 32 + size * content.size
    for end in ends:
        end.close()
