"""Races: turns, checks before and after, no time for a wrong result or for what cannot run."""

import gc
import math
from itertools import pairwise

import pytest

from koopcore.lab.bench import measure
from koopcore.lab.bench.study import (
    Case,
    Claim,
    Job,
    Row,
    Size,
    Study,
    Summary,
    Unavailable,
    forget,
    races_of,
    seconds_of,
    series,
    shared,
    spread,
)


def study_of(jobs, races=("race",)):
    """A study with the given jobs (or exceptions) in every race."""

    def build(case):
        job = jobs[case.name]
        if isinstance(job, Exception):
            raise job
        return job

    return Study(
        name="made up",
        question="?",
        x_label="",
        cases=lambda size: [Case(race, name, 1.0) for race in races for name in jobs],
        build=build,
        summary=lambda rows: Summary(),
        draw=lambda axes, rows: None,
    )


def job(error=0.0, bound=0.1, **options):
    return Job(call=lambda: None, error=lambda result: error, bound=bound, **options)


def rows_of(jobs, seconds=0.002, **options):
    return {
        row.case: row for row in measure.run_study(study_of(jobs, **options), Size.once, seconds)
    }


def test_every_case_takes_its_turn_and_has_a_time():
    calls = []

    def named(name):
        return Job(call=lambda: calls.append(name), error=lambda result: 0.0, bound=0.0, most=60)

    rows = rows_of({"a": named("a"), "b": named("b")})
    for row in rows.values():
        assert 0 < row.seconds <= row.median
        assert row.rounds == 60
        assert row.pace > 0
    # Not all of one and then all of the other: a turn is at most MOST_A_TURN calls.
    changes = sum(x != y for x, y in pairwise(calls))
    assert changes >= 2 * (60 // measure.MOST_A_TURN)


@pytest.mark.parametrize("error", [0.2, math.inf, math.nan])
def test_a_wrong_result_has_no_time(error):
    calls = []
    wrong = Job(call=lambda: calls.append(1), error=lambda result: error, bound=0.1)
    row = rows_of({"wrong": wrong})["wrong"]
    assert row.wrong
    assert row.seconds is None
    assert row.median is None
    assert len(calls) == 1  # not even timed


@pytest.mark.parametrize("later", [5.0, math.nan])
def test_a_result_that_goes_wrong_while_it_is_timed_has_no_time(later):
    errors = iter([0.0, later])
    row = rows_of({"a": Job(call=lambda: None, error=lambda result: next(errors), bound=0.1)})["a"]
    assert row.wrong
    assert row.seconds is None


def test_a_later_good_result_does_not_excuse_an_earlier_bad_one():
    errors = iter([0.09, 0.01])
    row = rows_of({"a": Job(call=lambda: None, error=lambda result: next(errors), bound=0.1)})["a"]
    assert row.error == 0.09


def test_what_cannot_run_says_why_and_the_others_run():
    rows = rows_of({"absent": Unavailable("install it"), "there": job()})
    assert rows["absent"].missing == "install it"
    assert rows["absent"].seconds is None
    assert not rows["absent"].wrong
    assert rows["there"].seconds > 0


def test_times_of_a_part_are_scaled_to_the_whole():
    rows = rows_of({"whole": job(), "part": job(scale=1e6)})
    # Empty calls take between 1e-8 and 1e-3 s; a factor of 10^6 cannot be mistaken.
    assert rows["part"].seconds > 10 * rows["whole"].seconds


def test_what_comes_before_a_call_precedes_every_call_and_is_not_timed():
    events = []
    prepared = Job(
        call=lambda: events.append("call"),
        error=lambda result: 0.0,
        bound=0.0,
        before=lambda: events.append("before"),
        most=5,
    )
    row = rows_of({"a": prepared})["a"]
    assert events == ["before", "call"] * (len(events) // 2)
    assert row.rounds == 5


def test_ticks_count_every_case_once():
    ticked = []
    study = study_of({"bad": job(error=1.0), "gone": Unavailable("x"), "good": job()})
    measure.run_study(study, Size.once, 0.001, ticked.append)
    assert sorted(case.name for case in ticked) == ["bad", "gone", "good"]


def test_a_slow_case_is_not_repeated_beyond_patience():
    # FEWEST turns would take more than PATIENCE times the time asked for.
    assert measure._over(1, measure.PATIENCE)
    assert not measure._over(1, measure.PATIENCE - 0.1)
    assert not measure._over(0, 100.0)
    assert measure._over(measure.FEWEST, 1.0)
    assert not measure._over(measure.FEWEST, 0.9)


def test_garbage_collection_is_off_while_timing_and_back_afterwards():
    states = []
    rows_of({"a": Job(lambda: states.append(gc.isenabled()), lambda result: 0.0, 0.0)})
    assert states[0]  # the checking call is not timed
    assert not any(states[1:-1])
    assert gc.isenabled()


def test_what_a_race_shares_is_made_once_and_forgotten_after_it():
    made = []

    @shared
    def data(key):
        made.append(key)
        return [key]

    assert data("x") is data("x")
    forget()
    data("x")
    assert made == ["x", "x"]


def test_races_run_one_after_the_other():
    order = []
    study = study_of({"a": job(), "b": job()}, races=("first", "second"))
    rows = measure.run_study(study, Size.once, 0.001, lambda case: order.append(case.race))
    assert order == ["first"] * 2 + ["second"] * 2
    assert races_of(rows) == ["first", "second"]


ROWS = [
    Row("r", "a", 1.0, seconds=2.0),
    Row("r", "b", 2.0, seconds=None),
    Row("r", "c", 4.0, seconds=8.0),
    Row("other", "a", 1.0, seconds=5.0),
]


def test_series_has_the_points_with_times_only():
    assert series(ROWS, "r") == ([1.0, 4.0], [2.0, 8.0])


@pytest.mark.parametrize(("case", "expected"), [("a", 2.0), ("b", math.nan), ("none", math.nan)])
def test_a_missing_time_is_not_a_number(case, expected):
    assert seconds_of(ROWS, "r", case) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ([1.0, 4.0], 2, 4.0),
        ([1.0, None], 2, math.nan),
        ([1.0, math.nan], 2, math.nan),
        ([1.0], 2, math.nan),
    ],
)
def test_a_spread_needs_all_its_values(values, count, expected):
    assert spread(values, count) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("value", "limit", "at_most", "met"),
    [
        (1.4, 1.5, True, True),
        (1.6, 1.5, True, False),
        (500.0, 400.0, False, True),
        (300.0, 400.0, False, False),
        (math.nan, 1.5, True, False),
        (math.nan, 400.0, False, False),
    ],
)
def test_claims_are_met_by_numbers_only(value, limit, at_most, met):
    assert Claim("", value, limit, at_most).met is met
