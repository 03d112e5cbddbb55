"""Result files and comparison: what is written is read back, regressions are found, no others."""

import dataclasses
import json
import math

import pytest

from koopcore.lab.bench.powers import Power
from koopcore.lab.bench.report import duration, figure, troubles
from koopcore.lab.bench.results import Results, compare, load, rows_of
from koopcore.lab.bench.study import Claim, Row, Share, Size, Study, Summary

STUDY = Study(
    name="made-up",
    question="Is it?",
    x_label="x",
    cases=lambda size: [],
    build=lambda case: None,
    summary=lambda rows: Summary(
        {"cost": Power(1.0, 0.1, 0.0, 1e-9, 5)},
        [Share("job", 0.25, 0.5), Share("gone", math.nan, math.nan)],
        [Claim("a / b", math.nan, 1.5, True), Claim("c", 2.0, 1.9, False)],
        ["a note"],
    ),
    draw=lambda axes, rows: None,
)


def row(case="a", seconds=1.0, pace=1.0, **more):
    values = {"error": 0.0, "bound": 0.1, **more}
    return Row("race", case, seconds=seconds, median=seconds, rounds=3, pace=pace, **values)


ROWS = [
    row(),
    row("wrong", None, error=math.nan),
    row("gone", None, error=math.nan, missing="not installed"),
    row("peer", 5.0, bound=math.inf, engine=False, figures={"bytes": 8.0}),
]


def written(path, rows, size=Size.full):
    results = Results(path, size)
    results.add(STUDY, rows)
    return results


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "r.json"
    written(path, ROWS)
    back = rows_of(load(path)["studies"]["made-up"])
    for was, now in zip(ROWS, back, strict=True):
        for name in ("race", "case", "seconds", "median", "rounds", "missing", "engine", "figures"):
            assert getattr(now, name) == getattr(was, name)
        assert now.wrong == was.wrong
        assert math.isnan(now.x)


def test_the_file_is_plain_json_without_nan(tmp_path):
    path = tmp_path / "r.json"
    written(path, ROWS)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    contents = json.loads(path.read_text(), parse_constant=refuse)
    study = contents["studies"]["made-up"]
    assert [claim["met"] for claim in study["claims"]] == [False, True]
    assert study["claims"][0]["value"] is None
    assert [share["roof"] for share in study["shares"]] == [0.5, None]
    assert study["powers"]["cost"]["exponent"] == 1.0
    assert contents["command"] == "koopcore bench"


def test_a_file_that_is_there_keeps_its_other_studies(tmp_path):
    path = tmp_path / "r.json"
    written(path, ROWS)
    again = Results(path, Size.full)
    assert list(again.studies) == ["made-up"]
    again.add(STUDY, ROWS[:1])
    assert len(rows_of(load(path)["studies"]["made-up"])) == 1


def test_a_quick_run_does_not_mix_with_a_full_one(tmp_path):
    path = tmp_path / "r.json"
    written(path, ROWS)
    assert Results(path, Size.quick).studies == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "\x00",
        '{"size": "full"}',
        '{"size": "huge", "studies": {}}',
        '{"size": "full", "studies": {"a": {}}}',
        '{"size": "full", "studies": {"a": {"rows": [1]}}}',
        '{"size": "full", "studies": {"a": {"rows": [{}]}}}',
    ],
)
def test_another_file_is_refused_by_name(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json holds no results of koopcore bench"):
        load(path)


def runs(tmp_path, before, now, sizes=(Size.full, Size.full)):
    pair = []
    for name, rows, size in zip("ab", (before, now), sizes, strict=True):
        written(tmp_path / f"{name}.json", rows, size)
        pair.append(load(tmp_path / f"{name}.json"))
    return pair


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        (row(seconds=1.0), row(seconds=1.2), ""),
        (row(seconds=1.0), row(seconds=1.3), "slower by 1.30"),
        (row(seconds=1.0), row(seconds=0.5), ""),
        # Half the clock: twice the time is the same cost, and the same time is twice the cost.
        (row(seconds=1.0, pace=1.0), row(seconds=2.0, pace=2.0), ""),
        (row(seconds=1.0, pace=2.0), row(seconds=1.0, pace=1.0), "slower by 2.00"),
        (row(), row(seconds=None, error=0.5), "wrong: 0.5"),
        (row(), row(seconds=None, missing="no compiler"), "missing: no compiler"),
        (row(seconds=None, error=0.5), row(), ""),
        (row(seconds=None, missing="x"), row(seconds=None, missing="x"), ""),
    ],
)
def test_regressions_and_nothing_else_have_a_reason(tmp_path, before, now, reason):
    (change,) = compare(*runs(tmp_path, [before], [now]))
    assert change.reason == reason


def test_peers_are_not_compared_and_the_worst_comes_first(tmp_path):
    before = [row("a"), row("b"), row("c"), row("peer", engine=False)]
    now = [row("a", 1.5), row("b", 1.1), row("c", 3.0), row("peer", 99.0, engine=False)]
    changes = compare(*runs(tmp_path, before, now))
    assert [change.case for change in changes] == ["c", "a", "b"]


def test_the_tolerance_is_the_callers(tmp_path):
    before, now = runs(tmp_path, [row()], [row(seconds=1.5)])
    assert compare(before, now, 1.6)[0].reason == ""
    assert compare(before, now, 1.4)[0].reason != ""


def test_runs_of_different_sizes_are_not_compared(tmp_path):
    before, now = runs(tmp_path, [row()], [row()], (Size.quick, Size.full))
    with pytest.raises(ValueError, match="earlier run is quick, this one is full"):
        compare(before, now)


def test_runs_of_different_machines_are_not_compared(tmp_path):
    before, now = runs(tmp_path, [row()], [row()])
    before["studies"]["made-up"]["machine"]["processor"] = "Another"
    with pytest.raises(ValueError, match="Another"):
        compare(before, now)


def test_runs_with_nothing_in_common_are_not_compared(tmp_path):
    before, now = runs(tmp_path, [row("a")], [row("b")])
    with pytest.raises(ValueError, match="no case in common"):
        compare(before, now)


def test_troubles_name_what_is_wrong_and_what_did_not_run(tmp_path):
    path = tmp_path / "r.json"
    elsewhere = [dataclasses.replace(row, race="elsewhere") for row in ROWS if row.missing]
    written(path, [*ROWS, *elsewhere])
    lines = troubles(load(path)["studies"]["made-up"])
    assert len(lines) == 2
    assert "wrong, no time" in lines[0]
    assert "not installed" in lines[1]
    assert f"({elsewhere[0].race}" not in lines[1]  # one line for all races
    assert "elsewhere)" in lines[1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (2.0, "2 s"), (0.0123, "12.3 ms"), (4.5e-6, "4.5 µs"), (3.2e-8, "32 ns")],
)
def test_durations_are_in_the_unit_that_suits(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (1.2345, "1.23"), (0.01234, "0.0123"), (1234.5, "1,234")]
)
def test_figures_have_three_digits(value, text):
    assert figure(value) == text
