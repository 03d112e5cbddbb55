"""docs/performance.md says what the committed results say, and refers to files that exist."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

import performance_page

from koopcore.lab.bench.results import load
from koopcore.lab.studies.catalogue import studies


@pytest.fixture(scope="module")
def contents():
    return load(performance_page.RESULTS / "bench.json")


@pytest.fixture(scope="module")
def counted():
    return performance_page.instructions()


def test_the_page_is_that_of_the_committed_results(contents, counted):
    written = performance_page.PAGE.read_text(encoding="utf-8")
    assert written == performance_page.page(contents, counted)
    assert performance_page.PICTURE.read_bytes().startswith(b"\x89PNG")


def test_the_committed_run_is_full_and_of_every_study(contents):
    assert contents["size"] == "full"
    assert set(contents["studies"]) == {study.name for study in studies()}


def test_a_changed_figure_changes_the_page(contents, counted):
    changed = copy.deepcopy(contents)
    claim = changed["studies"]["endpoint"]["claims"][0]
    claim["value"], claim["met"] = 12345.0, False
    text = performance_page.page(changed, counted)
    assert "12,345" in text
    assert text != performance_page.page(contents, counted)


def test_a_study_that_was_not_run_is_left_out(contents, counted):
    few = {**contents, "studies": {"horizon": contents["studies"]["horizon"]}}
    text = performance_page.page(few, counted)
    assert "## horizon" in text
    assert "## peers" not in text


def test_a_peer_without_a_time_is_a_dash(contents, counted):
    changed = copy.deepcopy(contents)
    for row in changed["studies"]["peers"]["rows"]:
        if row["case"] == "PyDMD, loop":
            row["seconds"], row["missing"] = None, "not installed"
    text = performance_page.page(changed, counted)
    assert "| PyDMD, loop | - | - | - | - | - | - |" in text
    assert "PyDMD, loop: not run: not installed" in text


def test_the_instructions_are_on_the_page(contents, counted):
    text = performance_page.page(contents, {**counted, "instructions": 987654321})
    assert "987,654,321 instructions" in text
