"""Calls are timed in turns, the first round left out."""

import pytest

from koopcore.lab import stopwatch


class Clock:
    """A clock that moves only when a call says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    return clock


def taking(clock, name, seconds, calls):
    durations = iter(seconds)

    def call():
        calls.append(name)
        clock.now += next(durations)

    return call


def test_each_call_gets_its_own_median_without_the_first_round(clock):
    calls = []
    slow_to_compile = taking(clock, "a", [100.0, 2.0, 1.0, 3.0], calls)
    steady = taking(clock, "b", [5.0, 5.0, 5.0, 5.0], calls)
    assert stopwatch.in_turns((slow_to_compile, steady), rounds=3) == [2.0, 5.0]
    assert calls == ["a", "b"] * 4


def test_a_slow_spell_of_the_machine_keeps_ratios(clock):
    spell = [1.0, 1.0, 3.0, 3.0, 3.0, 1.0]
    calls = []
    one = taking(clock, "a", spell, calls)
    two = taking(clock, "b", [2 * s for s in spell], calls)
    first, second = stopwatch.in_turns((one, two), rounds=5)
    assert second == 2 * first


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds is 0"):
        stopwatch.in_turns((), rounds=0)
