"""``koopcore bench``: writes its files, flags regressions by its exit code, refuses misuse."""

import json
import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from koopcore import cli
from koopcore.lab.bench import report, run
from koopcore.lab.bench.powers import Power
from koopcore.lab.bench.study import Case, Claim, Job, Share, Size, Study, Summary
from koopcore.lab.studies import catalogue

ERROR = {"value": 0.0}


def made_up(name="made-up"):
    def draw(axes, rows):
        axes.plot([row.x for row in rows], [row.seconds or 0.0 for row in rows])

    return Study(
        name=name,
        question="Is <it> & is it?",
        x_label="x",
        cases=lambda size: [Case("race", f"case {k}", float(k)) for k in (1, 2)],
        build=lambda case: Job(lambda: None, lambda result: ERROR["value"], 0.1, most=5),
        summary=lambda rows: Summary(
            {"cost": Power(1.0, 0.05, 1e-6, 1e-9, 5)},
            [Share("job", 0.2, 0.347)],
            [Claim("c", 1.0, 2.0, True)],
            ["a [note]"],
        ),
        draw=draw,
    )


@pytest.fixture
def undrawn(monkeypatch):
    """No plots: they take seconds, and most tests look at something else."""

    class Picture:
        def savefig(self, path):
            path.write_bytes(b"")

    monkeypatch.setattr(report, "_plot", lambda study, rows, dark=False: Figure())
    monkeypatch.setattr(run, "picture", lambda contents, studies: Picture())


@pytest.fixture
def bench(monkeypatch, capsys, tmp_path):
    """``koopcore bench ARGUMENTS`` with two quick studies: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    every = [made_up(), made_up("another")]

    def studies(only="*"):
        matching = [study for study in every if only in ("*", study.name)]
        if not matching:
            raise ValueError(f"only is {only!r} and matches no study")
        return matching

    monkeypatch.setattr(run, "studies", studies)
    monkeypatch.setitem(run.SECONDS, Size.full, 0.001)
    monkeypatch.setitem(ERROR, "value", 0.0)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["koopcore", "bench", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        text = capsys.readouterr()
        return end.value.code or 0, text.out, text.err

    return call


def test_a_run_writes_json_a_picture_and_a_report_that_stands_alone(bench, tmp_path):
    code, out, _ = bench("--output", "out")
    assert code == 0
    for text in ("1.00±0.05", "a [note]", "35 %", "of the roof"):
        assert text in out
    folder = tmp_path / "out"
    assert sorted(path.name for path in folder.iterdir()) == [
        "bench.html",
        "bench.json",
        "bench.png",
    ]
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    contents = json.loads((folder / "bench.json").read_text())
    assert list(contents["studies"]) == ["made-up", "another"]
    assert len(contents["studies"]["made-up"]["rows"]) == 2
    page = (folder / "bench.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml;base64,") == 2 * 2  # for light and for dark ground
    for outside in ("http://", "https://", "<script", 'rel="stylesheet"', 'src="/'):
        assert outside not in page
    assert "35 %" in page
    assert "Is &lt;it&gt; &amp; is it?" in page
    assert "<it>" not in page


def test_quick_runs_have_files_of_their_own(bench, undrawn, tmp_path):
    bench("--quick")
    assert (tmp_path / "koopcore-results" / "bench-quick.json").exists()
    assert not (tmp_path / "koopcore-results" / "bench.json").exists()


def test_a_long_run_may_be_done_in_pieces(bench, undrawn, tmp_path):
    bench("--only", "another", "--output", ".")
    bench("--only", "made-up", "--output", ".")
    contents = json.loads((tmp_path / "bench.json").read_text())
    assert set(contents["studies"]) == {"made-up", "another"}
    assert (tmp_path / "bench.html").read_text().count("<h2>") == 2


def altered(path, factor):
    """A copy of a result file in which every time is ``factor`` times what it was."""
    contents = json.loads(path.read_text())
    for study in contents["studies"].values():
        for row in study["rows"]:
            row["seconds"] *= factor
    copy = path.with_name("earlier.json")
    copy.write_text(json.dumps(contents))
    return str(copy)


# Times of empty calls vary by much more than real ones: factors that nothing makes up for.
@pytest.mark.parametrize(("factor", "code"), [(1e-6, 1), (1e6, 0)])
def test_regressions_are_flagged_by_the_exit_code(bench, undrawn, tmp_path, factor, code):
    bench("--output", ".")
    earlier = altered(tmp_path / "bench.json", factor)
    ended, out, _ = bench("--output", ".", "--compare", earlier)
    assert ended == code
    assert ("slower by" in " ".join(out.split())) == bool(code)
    assert "Against the earlier run" in (tmp_path / "bench.html").read_text()


def test_a_wrong_result_has_no_time_and_an_exit_code(bench, undrawn, tmp_path):
    ERROR["value"] = 0.5
    code, out, _ = bench("--output", ".")
    assert code == 1
    assert "wrong, no time" in " ".join(out.split())
    contents = json.loads((tmp_path / "bench.json").read_text())
    assert contents["studies"]["made-up"]["rows"][0]["seconds"] is None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--quik"], ["--quik", "--quick", "--compare", "--output", "--only"]),
        (["--compare", "missing.json"], ["missing.json"]),
        (["--compare", "other.json"], ["other.json", "no results of koopcore bench"]),
        (["--compare", "."], ["'.'"]),
        (["--compare", "quick.json"], ["earlier run is quick", "--quick"]),
        (["--only", "nothing"], ["'nothing'"]),
        (["--tolerance", "0.9"], ["tolerance", "above 1"]),
        (["--tolerance", "nan"], ["tolerance", "above 1"]),
        (["--tolerance", "much"], ["--tolerance"]),
        (["--output", "other.json"], ["other.json"]),
        (["--output", "other.json/folder"], ["other.json"]),
    ],
)
def test_misuse_is_named_before_anything_is_measured(
    bench, monkeypatch, tmp_path, arguments, named
):
    def nothing_runs(*_arguments, **_options):
        raise AssertionError("a study ran")

    monkeypatch.setattr(run, "run_study", nothing_runs)
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "quick.json").write_text('{"size": "quick", "studies": {}}')
    code, _, err = bench(*arguments)
    assert code == 2
    assert "Traceback" not in err
    for word in named:
        assert word in " ".join(err.split())


def test_an_interrupted_run_leaves_what_was_finished(bench, monkeypatch, tmp_path):
    real, done = run.run_study, []

    def second_is_interrupted(study, *rest):
        if done:
            raise KeyboardInterrupt
        done.append(study.name)
        return real(study, *rest)

    monkeypatch.setattr(run, "run_study", second_is_interrupted)
    code, _, err = bench("--output", ".")
    assert code == 130
    assert "what was finished is kept" in err
    assert list(json.loads((tmp_path / "bench.json").read_text())["studies"]) == ["made-up"]


def test_a_real_study_runs_from_the_installed_package(tmp_path):
    # In a process of its own, away from the source tree and its benchmarks directory.
    command = [sys.executable, "-m", "koopcore", "bench", "--quick", "--only", "window"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    contents = json.loads((tmp_path / "koopcore-results" / "bench-quick.json").read_text())
    rows = contents["studies"]["window"]["rows"]
    assert rows
    assert all(row["seconds"] > 0 and row["error"] <= row["bound"] for row in rows)


def test_every_study_of_the_catalogue_is_run_by_default(monkeypatch):
    assert [study.name for study in run.studies()] == [study.name for study in catalogue.studies()]
