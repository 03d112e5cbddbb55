"""docs/performance.md says what the committed results say, and refers to files that exist."""

import copy
import json

import performance_page
import pytest

from koopcore.lab.bench.results import Results, load
from koopcore.lab.bench.study import Row, Size
from koopcore.lab.studies.catalogue import studies


def test_the_page_is_that_of_the_committed_results():
    written = performance_page.PAGE.read_text(encoding="utf-8")
    committed = load(performance_page.RESULTS / "bench.json")
    mapped = load(performance_page.RESULTS / "shapes.json")
    assert written == performance_page.page(committed, performance_page.instructions(), mapped)
    for picture in (performance_page.PICTURE, performance_page.MAP):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_committed_run_is_full_and_of_every_study():
    committed = load(performance_page.RESULTS / "bench.json")
    assert committed["size"] == "full"
    assert set(committed["studies"]) == {study.name for study in studies()}


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """A run of every study in which the k-th case took k milliseconds."""
    path = tmp_path_factory.mktemp("page") / "bench.json"
    results = Results(path, Size.full)
    figures = {"bytes": 1e6, "flops": 1e6, "parameters": 1e3, "peak_bytes": 1e5, "share": 0.02}
    for study in studies():
        rows = [
            Row(
                case.race,
                case.name,
                case.x,
                seconds=1e-3 * k,
                median=1e-3 * k,
                rounds=3,
                pace=1.0,
                error=0.001,
                bound=0.01,
                figures=figures,
            )
            for k, case in enumerate(study.cases(Size.once), start=1)
        ]
        results.add(study, rows)
    return load(path)


@pytest.fixture(scope="module")
def counted():
    return performance_page.instructions()


@pytest.fixture(scope="module")
def mapped():
    return load(performance_page.RESULTS / "shapes.json")


def test_cells_in_which_a_peer_is_faster_are_named(contents, counted, mapped):
    slower = copy.deepcopy(mapped)
    row = next(row for row in slower["studies"]["shapes"]["rows"] if row["engine"])
    row["seconds"] = 1e6
    assert f"| {row['race']} |" in performance_page.page(contents, counted, slower)
    assert {"shapes", "goals"} == set(mapped["studies"])


def test_every_study_its_claims_and_its_shares_are_on_the_page(contents, counted, mapped):
    text = performance_page.page(contents, counted, mapped)
    for name, study in contents["studies"].items():
        assert f"## {name}" in text
        assert study["question"] in text
        for figure in (*study["claims"], *study["shares"]):
            assert figure["text"].replace("|", "\\|") in text
    assert "| W1, warm: native_cpu |" in text


def test_a_changed_figure_changes_the_page(contents, counted, mapped):
    changed = copy.deepcopy(contents)
    changed["studies"]["peers"]["claims"][0] |= {"value": 12345.0, "met": False}
    changed["studies"]["endpoint"]["shares"][0]["roof"] = 0.4321
    text = performance_page.page(changed, counted, mapped)
    assert "12,345" in text
    assert "43 %" in text
    assert text != performance_page.page(contents, counted, mapped)


def test_a_study_that_was_not_run_is_left_out(contents, counted, mapped):
    few = {**contents, "studies": {"horizon": contents["studies"]["horizon"]}}
    text = performance_page.page(few, counted, mapped)
    assert "## horizon" in text
    assert "## peers" not in text


def test_a_peer_without_a_time_is_a_dash(contents, counted, mapped):
    changed = copy.deepcopy(contents)
    for row in changed["studies"]["peers"]["rows"]:
        if row["case"] == "PyDMD, loop":
            row["seconds"], row["missing"] = None, "not installed"
    text = performance_page.page(changed, counted, mapped)
    assert "| PyDMD, loop | - | - | - | - | - |" in text
    assert "PyDMD, loop: not run: not installed" in text


def test_a_peer_has_its_time_its_ratio_and_its_error(contents, counted, mapped):
    text = performance_page.page(contents, counted, mapped)
    # The first case of the study is native_cpu on W1 with 1 ms, the third NumPy with 3 ms.
    assert "| native_cpu | 1 ms · 1.0 · 1.0e-03 |" in text
    assert "| NumPy Gram matrices, stacked | 3 ms · 3.0 · 1.0e-03 |" in text


def test_the_instructions_are_on_the_page(contents, counted, mapped):
    text = performance_page.page(contents, {**counted, "instructions": 987654321}, mapped)
    assert "987,654,321 instructions" in text


def test_the_commands_on_the_page_name_files_that_exist():
    root = performance_page.ROOT
    assert "benchmarks/bench_studies.py" in performance_page.INTRODUCTION
    assert (root / "benchmarks" / "bench_studies.py").exists()
    assert json.loads((root / "benchmarks/results/instructions.json").read_text())["command"]
