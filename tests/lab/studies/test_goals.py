"""Goals: every case has the right answer, and each line of the summary is of the times it names."""

import numpy as np
import pytest

from koopcore.lab.bench.measure import run_race
from koopcore.lab.bench.study import Row, Size, forget
from koopcore.lab.studies import goals


@pytest.fixture(autouse=True)
def nothing_is_shared():
    yield
    forget()


@pytest.mark.parametrize("start", ["long windows", "one layer", "small", "W3, torch"])
def test_every_case_has_the_right_answer(start):
    cases = [case for case in goals.cases(Size.once) if case.race.startswith(start)]
    for race in dict.fromkeys(case.race for case in cases):
        rows = run_race(goals.STUDY, [c for c in cases if c.race == race], 0.001, lambda case: None)
        forget()
        for row in rows:
            assert row.seconds is not None, (race, row.case, row.error)
            assert row.engine == (row.case not in (goals.NUMPY, goals.BLOCKS, goals.ONE_CALL))


def test_an_operator_that_is_wrong_is_found():
    case = next(case for case in goals.cases(Size.once) if case.name == goals.NUMPY)
    job = goals.build(case)
    operators = job.call()
    assert job.error(operators) <= job.bound
    assert not job.error([0.9 * operator for operator in operators]) <= job.bound


def test_claims_are_of_the_times_that_they_name():
    race = goals.long_race("float64", "linear")
    rows = [
        Row(race, goals.ENGINE, seconds=0.01),
        Row(race, goals.NUMPY, seconds=0.2, engine=False),
        Row("one layer, n = 16", "weights", seconds=3.0),
        Row("one layer, n = 16", "network", seconds=2.0),
        Row("W2, torch", goals.ENGINE, seconds=1.0),
        Row("W2, torch", goals.ONE_CALL, seconds=14.0, engine=False),
        Row(goals.SMALL, goals.ENGINE, seconds=16e-6),
        Row("one group, fit and predict", "one horizon", seconds=1.0),
        Row("one group, fit and predict", "eight horizons", seconds=1.25),
    ]
    claims = {claim.text: claim for claim in goals.summary(rows).claims}
    assert claims[f"{race}: ms"].value == pytest.approx(10.0)
    assert claims[f"{race}: times NumPy"].value == pytest.approx(20.0)
    assert claims["weights / network"].value == 1.5
    assert not claims[f"W2: {goals.ONE_CALL} / {goals.ENGINE}"].met
    assert not claims[f"{goals.SMALL}, fit and predict: µs"].met
    assert claims["one group, fit and predict: eight horizons / one"].met
    assert len(claims) == 6
    assert np.all([claim.value > 0.0 for claim in claims.values()])
