"""Both reports, of a run and of a benchmark: what is in them, and what a browser makes of them."""

import json
import re

import pytest
from browser import browser, look
from small_training import attached_run
from source_tree import ROOT

import koopcore as kc
from koopcore import page

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def run_report(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.html"
    attached_run().report(path)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bench_report():
    from koopcore.lab.bench.report import html
    from koopcore.lab.studies.catalogue import studies

    contents = json.loads((ROOT / "benchmarks/results/bench.json").read_text(encoding="utf-8"))
    some = ("peers", "parameters", "backpropagation")
    contents["studies"] = {name: contents["studies"][name] for name in some}
    return html(contents, [study for study in studies() if study.name in some])


def test_a_run_is_reported_with_losses_jumps_regimes_spectrum_averages_and_time(tmp_path):
    koop = attached_run()
    with koop.averaged():
        pass
    text = koop.report(tmp_path / "run.html").read_text(encoding="utf-8")
    headings = ["Losses, jumps, regimes", "Spectrum", "Averages", "Time"]
    assert re.findall("<h2>(.*?)</h2>", text) == headings
    accepted = [r for r in koop.stats.history if r.accepted]
    assert f"{len(accepted)} jumps" in text
    for record in koop.stats.history[-50:]:
        assert f'<th scope="row">{record.step:,}</th>' in text
    for name, loss in koop.stats.averages.items():
        assert f'<th scope="row">{name}</th><td class="number">{loss:.5g}</td>' in text
    for _, regime in koop.stats.regimes:
        assert regime in text
    assert "Adagrad" in text
    koop.detach()
    again = koop.report(tmp_path / "later.html").read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", again) == headings


def test_the_spectrum_is_that_of_the_last_operator():
    koop = attached_run()
    spectrum = koop.stats.spectrum
    assert spectrum.step <= koop.stats.steps
    assert spectrum.stride == koop.stats.history[-1].stride
    sizes = [abs(value) for value in spectrum.eigenvalues]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < len(sizes) < koop.settings.window
    points = kc.plot.spectrum(koop).axes[0].collections[0].get_offsets()
    assert len(points) == len(sizes)


def test_a_run_that_never_jumped_is_reported_too(tmp_path):
    koop = attached_run(30, regime="noise")
    text = koop.report(tmp_path / "run.html").read_text(encoding="utf-8")
    assert "Spectrum" not in text
    assert "No jump was attempted" in text
    assert "<figure>" not in text  # an empty one would say nothing
    with koop.averaged():
        pass
    places = kc.plot.averages(koop).axes[0].get_yticklabels()
    assert [label.get_text() for label in places] == list(koop.stats.averages)
    assert koop.report(tmp_path / "run.html").read_text(encoding="utf-8").count("<figure>") == 1


def test_averages_that_were_not_compared_are_not_drawn():
    with pytest.raises(ValueError, match=r"no averages were compared yet; koop.averaged\(\)"):
        kc.plot.averages(attached_run(5))


def test_a_report_that_cannot_be_written_says_so_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        attached_run(5).report(tmp_path / "missing" / "run.html")
    assert list(tmp_path.iterdir()) == []


def test_what_is_said_is_text_and_no_markup():
    text = page.page("<b>", [page.table([("<i>", "a&b")], ("<u>", ""), caption="<s>")], "<p>")
    for word in ("<b>", "<i>", "<u>", "<s>", "<p>"):
        assert word not in text.partition("<body>")[2].replace('<p class="soft">', "")
    assert "a&amp;b" in text


@pytest.mark.skipif(browser() is None, reason="needs Chromium on PATH")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("report", ["run_report", "bench_report"])
def test_a_browser_shows_the_report_whole_on_a_narrow_screen(report, dark, request, tmp_path):
    seen = look(request.getfixturevalue(report), tmp_path, width=360, dark=dark)
    assert seen["console"] == []
    assert seen["elsewhere"] == []
    assert seen["needed"] <= seen["width"] <= 360
    assert seen["ground"] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert seen["title"].startswith("koopcore")
    assert len(seen["images"]) >= 2
    for image in seen["images"]:
        assert image["drawn"] > 0
        assert len(image["alt"]) > 40
