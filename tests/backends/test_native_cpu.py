"""What only native_cpu has: instruction sets, threads, and arguments checked in C++."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from backend_cases import U, gram_error, ragged, read_only, same_bits, walks

from koopcore.backends.native_cpu import NativeCpu
from koopcore.backends.protocol import Ahead, Snapshots
from koopcore.backends.reference import Reference
from koopcore.partition.partition import Partition

_cpu = pytest.importorskip(
    "koopcore._native._cpu", reason="the C++ module is not built", exc_type=ImportError
)
native = NativeCpu(_cpu)
ISAS = _cpu.supported_isas()


@pytest.fixture
def threads(monkeypatch):
    return lambda count: monkeypatch.setenv("KOOPCORE_NUM_THREADS", str(count))


@pytest.mark.parametrize(
    "sizes",
    [[70_001], [300, 50_000, 7, 20_000, 65], [65] * 3000, [3] * 40],
    ids=["one large", "mixed", "many", "few small"],
)
def test_results_do_not_depend_on_the_number_of_threads(threads, sizes):
    rng = np.random.default_rng(2)
    part = ragged(rng, sizes)
    snapshots = walks(rng, 6, part.size, np.float32)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        fit = native.gram_solve(snapshots, part, True, 1)
        weights, growth = native.rollout(fit.coefficients, True, [5, 40])
        out = np.zeros((2, part.size), np.float32)
        native.combine(snapshots, part, weights, out)
        results.append([native.gram(snapshots, part), *fit, weights, growth, out])
        if sizes[0] == 3:
            made = native.feature_fit(snapshots, part, True, 1, Ahead([9, 2], out))
            solved = native.feature_fit(snapshots, part, True, 1)
            results[-1] += [*made[:4], out, *solved[:4], *solved.projection, solved.readout]
    for other in results[1:]:
        same_bits(other, results[0])
    assert gram_error(results[0][0], Reference().gram(snapshots, part), 6) < 70_001 * U


def test_calls_from_several_threads_at_once():
    rng = np.random.default_rng(4)
    part = ragged(rng, [65] * 400)
    snapshots = walks(rng, 12, part.size, np.float32)
    expected = native.gram_solve(snapshots, part, True, 2)
    results = []
    callers = [
        threading.Thread(target=lambda: results.append(native.gram_solve(snapshots, part, True, 2)))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 4
    for result in results:
        same_bits(result, expected)


def three(*shape):
    return np.ones((2, 3, *shape))


#: What is wrong: (the call on 3 snapshots and 2 groups of 20, what the message must say).
BAD = {
    "row that is not there": (lambda p, s: native.gram(s._replace(order=np.array([0, 9])), p), "9"),
    "negative row": (lambda p, s: native.gram(s._replace(order=np.array([0, -1])), p), "-1"),
    "too few columns": (lambda p, s: native.gram(s._replace(array=s.array[:, :50]), p), "50"),
    "integers": (lambda p, s: native.gram(s._replace(array=s.array.astype(int)), p), "int64"),
    "swapped bytes": (lambda p, s: native.gram(s._replace(array=s.array.astype(">f4")), p), ">f4"),
    "one row": (lambda p, s: native.gram(s._replace(array=s.array[0]), p), "two-dimensional"),
    "gram of another n": (lambda p, s: native.solve(np.ones((3, 5)), 3, True, 0), "6"),
    "holdout": (lambda p, s: native.solve(np.ones((3, 6)), 3, True, -1), "holdout"),
    "horizon 0": (lambda p, s: native.rollout(np.ones((2, 2)), True, [3, 0]), "horizon"),
    "weights of another n": (
        lambda p, s: native.combine(s, p, np.ones((1, 2, 7)), np.zeros((1, p.size))),
        "weights",
    ),
    "out of another size": (
        lambda p, s: native.combine(s, p, np.ones((1, 2, 3)), np.zeros((1, 7))),
        "out must",
    ),
    "read-only out": (
        lambda p, s: native.combine(s, p, np.ones((1, 2, 3)), read_only(np.zeros((1, p.size)))),
        "read-only",
    ),
    "groups of unequal size": (
        lambda p, s: native.feature_gram(s, Partition.groups(p.size, [[1, 2], [3]]), True, [3]),
        "equal size",
    ),
    "stop past the window": (lambda p, s: native.feature_gram(s, p, True, [4]), "stop"),
    "stop too early": (lambda p, s: native.feature_gram(s, p, True, [2]), "stop"),
    "matrices of unequal size": (
        lambda p, s: native.project(three(3), np.ones((2, 4, 4)), three(), None, 0.0, False),
        "shape",
    ),
    "negative ridge": (
        lambda p, s: native.project(three(3), three(3), three(), None, -1.0, False),
        "ridge",
    ),
    "start of another size": (
        lambda p, s: native.rollout_dense(three(3), np.ones((2, 4)), True, [1]),
        "shape",
    ),
    "values of another size": (
        lambda p, s: native.scatter(p, np.ones((1, 2, 5)), np.ones((1, p.size))),
        "values",
    ),
    "out too narrow": (
        lambda p, s: native.scatter(p, np.ones((1, 2, 20)), np.ones((1, 30))),
        "outside",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments_are_refused_before_any_work(call, message):
    rng = np.random.default_rng(5)
    part = ragged(rng, [20, 20])
    with pytest.raises(ValueError, match=message):
        call(part, walks(rng, 3, part.size, np.float32, spare=0))


@pytest.mark.parametrize("start", [-1, 2**62, 95])
def test_segments_outside_a_snapshot_are_refused(start):
    one = np.ones(1, dtype=np.int64)
    part = Partition(100, np.array([0, 1]), one * start, one * 3, one * 4)
    with pytest.raises(ValueError, match="outside"):
        native.gram(Snapshots(np.zeros((2, 100), np.float32), np.arange(2)), part)


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="accept portable"):
        _cpu.force_isa("mmx")


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_chooses_instruction_set_and_threads(isa):
    code = (
        "from koopcore.backends import backend_for\n"
        "from koopcore._native import _cpu\n"
        "print(_cpu.isa(), _cpu.num_threads(), backend_for('cpu').name)"
    )
    environment = {**os.environ, "KOOPCORE_ISA": isa, "KOOPCORE_NUM_THREADS": "3"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [isa, "3", "native_cpu"]


@pytest.mark.parametrize("count", ["0", "-2", "two", "1e9"])
def test_a_bad_number_of_threads_is_refused(monkeypatch, count):
    monkeypatch.setenv("KOOPCORE_NUM_THREADS", count)
    with pytest.raises(ValueError, match="KOOPCORE_NUM_THREADS"):
        native.solve(np.ones((1, 6)), 3, True, 1)
