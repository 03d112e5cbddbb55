"""What a person reads of a run: winners, regimes, lasting gains, losses of weights and averages."""

from __future__ import annotations

import io
import math
import re

import pytest

torch = pytest.importorskip("torch")

from small_training import OPTIMIZERS, attached_run, network  # noqa: E402

import koopcore as kc  # noqa: E402
from koopcore.training.statistics import JumpRecord, Statistics  # noqa: E402


def record(step, accepted, before, after, kind="koopman", hindcast=0.1):
    return JumpRecord(
        step, accepted, kind if accepted else "none", 8.0 if accepted else 0.0, 2, before, after,
        hindcast, 5, 0.01, "",
    )  # fmt: skip


def test_totals_are_those_of_the_records():
    stats = Statistics(steps=100)
    for each in (
        record(10, True, 1.0, 0.5),
        record(20, True, 0.7, 0.3, "line"),  # the gain has lasted: 0.7 < 1.0
        record(30, True, 0.8, 0.2),  # it has not: 0.8 > 0.7
        record(40, False, 0.3, 0.3, hindcast=math.inf),  # it has
        record(50, False, 0.2, 0.2, hindcast=0.3),
    ):
        stats.add(each)
    assert (stats.jumps, stats.accepted, stats.evaluations) == (5, 3, 25)
    assert (stats.lasting, stats.followed) == (2, 3)
    assert stats.steps_skipped == 3 * 8 * 2
    assert stats.winners == {"koopman": 2, "line": 1}
    assert stats.hindcast == 0.1
    text = str(stats)
    assert "3 of 5 accepted: koopman 2, line 1" in text
    assert "2 of 3 at the next attempt" in text
    assert "100 taken, 48 skipped" in text


def test_a_run_is_shown_as_text_as_html_and_by_rich():
    rich = pytest.importorskip("rich.console")
    koop = attached_run()
    with koop.averaged():
        pass
    stats = koop.stats
    rows = stats.rows()
    assert [name for name, _ in rows] == [
        "regime", "steps", "jumps", "gains that lasted", "hindcast error", "loss", "time",
    ]  # fmt: skip
    page = stats._repr_html_()
    console = rich.Console(width=100, record=True, file=io.StringIO())
    console.print(stats)
    table = console.export_text()
    for name, value in rows:
        assert f"<th>{name}</th><td>{value}</td>" in page
        assert name in table
        assert value in table
        assert f"{name}: {value}" in str(stats)
    assert re.search(r"at the weights, \S+ at average \S+", str(stats))
    assert 0 < stats.share < 1


def test_nothing_is_claimed_of_a_run_that_has_not_begun():
    model = network()
    koop = kc.attach(OPTIMIZERS["sgd"](model.parameters()), model)
    assert "undecided" in str(koop.stats)
    assert "jumps" not in str(koop.stats)
    assert math.isnan(koop.stats.hindcast)
    assert repr(koop) == "<koopcore.Attached: undecided, step 0, 0 of 0 jumps accepted>"


def test_after_detach_the_clock_stands_still():
    koop = attached_run(60)
    koop.detach()
    share = koop.stats.share
    assert koop.stats.share == share
    assert "detached" in repr(koop)


# -- drawn ----------------------------------------------------------------------------------------


def test_a_run_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    koop = attached_run()
    figure = kc.plot.run(koop)
    above, below = figure.axes
    assert above.get_yscale() == below.get_yscale() == "log"
    assert len(below.lines[0].get_xdata()) == koop.stats.jumps
    labels = [text.get_text() for text in above.get_legend().get_texts()]
    rejected = koop.stats.jumps - koop.stats.accepted
    assert labels == [f"{koop.stats.accepted} jumps", f"{rejected} attempts in vain"]
    shown = [text.get_text() for text in above.texts]
    assert shown == [regime for _, regime in koop.stats.regimes]
    figure.savefig(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_a_run_without_attempts_can_be_drawn_too(tmp_path):
    pytest.importorskip("matplotlib")
    koop = attached_run(30, regime="noise")
    koop.detach()
    kc.plot.run(koop).savefig(tmp_path / "run.png")


@pytest.mark.parametrize("given", [None, 3, network()])
def test_only_attachments_are_drawn(given):
    with pytest.raises(TypeError, match=r"draws what koopcore.attach returned; got"):
        kc.plot.run(given)
