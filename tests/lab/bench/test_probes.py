"""Probes: every byte is read or written, every multiply-add done, on any number of threads."""

import threading

import numpy as np
import pytest

from koopcore.lab.bench import machine, machine_code, probes
from koopcore.lab.bench.machine_code import FMA_CHAINS, READS


@pytest.mark.parametrize("shape", READS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_read_is_the_exclusive_or_of_all_words_that_it_counts(shape, threads):
    words = np.random.default_rng(0).integers(0, 2**63, 100_003)
    streams, lines, _ = shape
    word, size = probes.read(words, shape, threads)
    # Each stream of each thread leaves out less than one turn, at the end of its own piece.
    piece = words.nbytes // (threads * streams) // (lines * 64) * (lines * 64)
    assert size == piece * threads * streams
    assert word == np.bitwise_xor.reduce(words[: size // 8])
    assert size > 0.9 * words.nbytes


def test_a_read_notices_a_single_bit():
    words = np.zeros(1 << 16, np.int64)
    assert probes.read(words, READS[0], 2)[0] == 0
    words[40_000] = 1 << 33
    assert probes.read(words, READS[0], 2)[0] == 1 << 33


@pytest.mark.parametrize("past_caches", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_a_write_zeroes_what_it_counts_and_nothing_else(past_caches, threads, offset):
    memory = np.ones(50_000, np.float32)
    array = memory[offset : offset + 40_000]
    size = probes.write(array, past_caches, threads)
    assert np.count_nonzero(memory == 0) * 4 == size
    assert (memory[:offset] == 1).all()
    assert (memory[offset + 40_000 :] == 1).all()
    # Up to a cache line before the first whole one, and one per thread at the end.
    assert array.nbytes - size <= 64 * (threads + 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_multiply_adds_reach_their_fixed_point(threads):
    # y <- y/2 + 1/2 from 1/2: one, to the last bit, after some fifty turns; all chains summed.
    assert probes.multiply_add(1000, threads) == FMA_CHAINS
    # After one turn it is 3/4, exactly.
    assert probes.multiply_add(1, threads) == 0.75 * FMA_CHAINS


def test_flops_count_two_for_a_multiply_add_in_every_lane_of_every_thread():
    lanes = machine_code.vector_bytes() // 8
    assert probes.flops_of_loop(10, 3) == 2 * 10 * 3 * FMA_CHAINS * lanes


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (lambda: probes.read(np.zeros(8), READS[0]), "too small"),
        (lambda: probes.read(np.zeros((100, 100))[:, ::2], READS[0]), "contiguous"),
        (lambda: probes.write(np.zeros(4)), "too small"),
        (lambda: probes.write(np.zeros((100, 100))[:, ::2]), "contiguous"),
    ],
)
def test_what_cannot_be_probed_is_an_error(probe, message):
    with pytest.raises(ValueError, match=message):
        probe()


def test_threads_run_at_once():
    meeting = threading.Barrier(3, timeout=20)  # breaks unless three threads meet
    probes.on_threads(lambda thread, threads: meeting.wait(), 3)
    assert not meeting.broken


def test_eviction_reads_more_than_the_cache():
    probes.evict(1 << 16)
    assert probes._ballast(1 << 18).nbytes == 1 << 18


def test_the_machine_is_described_without_names_or_paths():
    facts = machine.describe()
    assert facts["threads"] >= 1
    assert facts["last_level_cache_bytes"] > 0
    assert facts["memory_bytes"] > 2**28
    assert not any("/" in str(value) for value in facts.values())
    total, free = machine.memory()
    assert 0 < free <= total


def test_a_machine_that_tells_nothing_still_has_a_cache(monkeypatch):
    monkeypatch.setattr(machine, "_text", lambda path: "")
    machine.last_level_cache.cache_clear()
    assert machine.last_level_cache() == machine.ASSUMED_CACHE
    machine.last_level_cache.cache_clear()
    assert machine.processor()
