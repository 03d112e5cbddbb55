"""The instruction count: read from callgrind's report, of one job, and never of a wrong one."""

import sys

import instructions
import pytest

REPORT = """==7== Callgrind, a call-graph generating cache profiler
==7==
==7== Events    : Ir
==7== Collected : 1234567890
==7==
==7== I   refs:      1,234,567,890
"""


def test_the_total_is_read_from_the_report():
    assert instructions.collected(REPORT) == 1234567890


def test_a_report_without_a_total_is_an_error():
    with pytest.raises(ValueError, match="no total"):
        instructions.collected("==7== Process terminating")


def test_one_job_is_the_difference_and_not_what_starting_costs(monkeypatch):
    starting, each = 10**9, 10**6
    monkeypatch.setattr(instructions, "counted", lambda name, groups, runs: starting + runs * each)
    count = instructions.result("W1", 100)
    assert count["instructions"] == each
    assert count["instructions_per_element"] == each / (100 * 65 * 16)


def test_a_wrong_result_is_not_counted(monkeypatch):
    monkeypatch.setattr(instructions, "bound", lambda *arguments: 0.0)
    with pytest.raises(SystemExit, match="no count"):
        instructions.job("W1", 10, 1)


def test_a_right_result_is_accepted():
    instructions.job("W1", 20, 2)


def test_without_valgrind_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="apt install valgrind"):
        instructions.counted("W1", 10, 1)


def test_too_few_groups_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["instructions.py", "--groups", "3"])
    with pytest.raises(SystemExit):
        instructions.main()
    assert "give 10 or more" in capsys.readouterr().err
