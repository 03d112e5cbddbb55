"""Studies: what they ask, whether they stand missing times, and what some of them measure."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from koopcore.lab.bench.report import picture
from koopcore.lab.bench.study import Row, Size, forget, races_of
from koopcore.lab.studies import backpropagation, capture, memory
from koopcore.lab.studies.catalogue import studies

NAMES = [study.name for study in studies()]


@pytest.fixture(autouse=True)
def nothing_is_shared():
    yield
    forget()


def test_every_study_asks_a_question_and_has_cases_of_distinct_names():
    assert len(set(NAMES)) == len(NAMES)
    for study in studies():
        assert study.question.endswith("?") or "?" in study.question
        for size in Size:
            cases = study.cases(size)
            names = [(case.race, case.name) for case in cases]
            assert names
            assert len(set(names)) == len(names)
            # A race's cases are together: they run together.
            races = [case.race for case in cases]
            assert sorted(set(races), key=races.index) == races_of(
                [Row(race, "") for race in races]
            )


@pytest.mark.parametrize(
    ("pattern", "expected"), [("*", NAMES), ("p*", ["peers", "parameters", "partitions"])]
)
def test_studies_are_selected_by_pattern(pattern, expected):
    assert [study.name for study in studies(pattern)] == expected


def test_an_unknown_study_is_answered_with_all_names():
    with pytest.raises(ValueError, match="peer-review") as error:
        studies("peer-review")
    assert all(name in str(error.value) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_summaries_and_plots_stand_missing_times(name):
    (study,) = studies(name)
    rows = [Row(case.race, case.name, case.x, missing="x") for case in study.cases(Size.once)]
    assert not any(claim.met for claim in study.summary(rows).claims)
    from matplotlib.figure import Figure

    study.draw(Figure().add_subplot(), rows)


def test_the_peak_of_a_process_is_counted():
    if not memory.RESET.exists():
        pytest.skip("this system does not tell the peak of a process (no /proc/self/clear_refs)")
    size = 64 * 2**20
    peak = memory.peak_of(lambda: np.ones(size, np.uint8).sum())
    # Everything else that is allocated meanwhile is far less than a quarter of that.
    assert size <= peak + 2**20
    assert peak < 1.25 * size + 16 * 2**20


def test_a_line_search_leaves_the_network_as_it_was():
    training = backpropagation.Training((1, 4, 2))
    before = [p.detach().clone() for p in training.model.parameters()]
    losses = training.search(16)
    assert len(losses) == len(backpropagation.HORIZONS)
    assert all(math.isfinite(loss) for loss in losses)
    after = list(training.model.parameters())
    assert all((a == b).all() for a, b in zip(after, before, strict=True))


def test_the_picture_has_one_plot_per_study_that_was_run():
    rows = {"rows": [{"race": "P", "case": "a", "x": 10.0, "seconds": 1.0}]}
    contents = {"studies": {"parameters": rows, "groups": rows}}
    figure = picture(contents, studies())
    assert [axes.get_title() for part in figure.subfigs for axes in part.axes] == [
        "parameters",
        "groups",
    ]
    from io import BytesIO

    buffer = BytesIO()
    figure.savefig(buffer, format="svg")
    assert ElementTree.fromstring(buffer.getvalue()).tag.endswith("svg")


def test_a_run_that_gains_nothing_has_attempts_and_an_overhead():
    (study,) = studies("capture")
    (case,) = (case for case in study.cases(Size.once) if case.race == capture.NOTHING)
    job = study.build(case)
    assert job.error(job.call()) == 0.0  # attempts, and none accepted
    assert job.figures["share"] > 0
    row = Row(case.race, case.name, seconds=1.0, figures={"share": 0.04})
    claims = [claim for claim in study.summary([row]).claims if "overhead" in claim.text]
    assert [(claim.value, claim.met) for claim in claims] == [(0.04, False)]
