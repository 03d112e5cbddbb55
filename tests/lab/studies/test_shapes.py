"""The map of shapes: every cell is right, peers of both models agree, losing cells are named."""

import numpy as np
import pytest

from koopcore.lab.bench.measure import run_race, run_study
from koopcore.lab.bench.results import Results
from koopcore.lab.bench.study import Case, Row, Size, forget
from koopcore.lab.studies import shapes

CELLS = [
    shapes.Cell(m, n, dtype, model, groups)
    for m, n in ((1, 8), (4, 30), (40, 8))
    for dtype, model, groups in (("float32", "affine", 3), ("float64", "linear", 1))
]


@pytest.fixture(autouse=True)
def nothing_is_shared():
    yield
    forget()


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_engine_and_peers_have_the_answer_of_least_squares(cell):
    names = [name for name in (shapes.ENGINE, *shapes.PEERS) if name != shapes.COMPILED]
    for name in names:
        job = shapes.build(Case(str(cell), name, options=cell))
        assert job.error(job.call()) <= job.bound, name
        assert job.engine == (name == shapes.ENGINE)
        assert job.figures["flops"] > 0


@pytest.mark.parametrize("cell", CELLS[:4], ids=str)
def test_compiled_by_jax_the_answer_is_the_same(cell):
    pytest.importorskip("jax", reason="a peer that is measured where it is installed")
    job = shapes.build(Case(str(cell), shapes.COMPILED, options=cell))
    assert job.error(job.call()) <= job.bound
    assert job.call().dtype == np.float64


def test_a_peer_that_a_singular_group_leaves_without_an_answer_has_no_time(monkeypatch):
    cell = CELLS[0]
    grouped = np.ones_like(shapes._grouped(cell))
    monkeypatch.setattr(shapes, "_grouped", lambda cell: grouped)
    stacked = Case(str(cell), "NumPy, stacked", options=cell)
    (row,) = run_race(shapes.STUDY, [stacked], 0.001, lambda case: None)
    assert row.missing == "no answer: Singular matrix"
    assert row.seconds is None


def test_a_group_whose_prediction_leaves_all_bounds_is_not_what_is_checked():
    cells = [shapes.Cell(1, 3, "float64", "affine", groups) for groups in (1, 40)]
    for cell in cells:
        for k, answer in shapes._answers(cell, tuple(range(cell.groups))).items():
            limit = shapes.BOUNDED * np.linalg.norm(shapes._grouped(cell)[k])
            assert np.linalg.norm(answer) < limit


def test_a_wrong_prediction_has_an_error():
    job = shapes.build(Case(str(CELLS[0]), shapes.ENGINE, options=CELLS[0]))
    assert not job.error(2.0 * job.call()) <= job.bound


def test_a_map_has_each_cell_once_and_leaves_out_what_takes_seconds():
    cells = shapes.cells(Size.full)
    assert len(set(cells)) == len(cells)
    assert all(min(cell.m, cell.n) <= shapes.MOST for cell in cells)
    assert {cell.m for cell in cells} == set(shapes.SIZES[Size.full])
    assert {cell.n for cell in cells} == set(shapes.WINDOWS[Size.full])
    for cell in cells:
        size = cell.m * cell.n * cell.groups * np.dtype(cell.dtype).itemsize
        assert cell.groups == 1 or size <= shapes.BYTES[Size.full]


def rows_of_a_run():
    figures = {"m": 4.0, "n": 16.0, "flops": 1e6, "bytes": 1e6}
    return [
        Row("a", shapes.ENGINE, seconds=2.0, figures=figures),
        Row("a", "NumPy, stacked", seconds=5.0, engine=False),
        Row("a", "torch batched Cholesky", seconds=3.0, engine=False),
        Row("b", shapes.ENGINE, seconds=2.0, figures={**figures, "m": 8.0}),
        Row("b", "NumPy, stacked", seconds=1.0, engine=False),
        Row("c", shapes.ENGINE, error=1.0, bound=0.1, figures=figures),
    ]


def test_cells_in_which_a_peer_is_faster_are_counted_and_named():
    found = shapes.standings(rows_of_a_run())
    assert [(cell.text, cell.peer, cell.times) for cell in found] == [
        ("a", "torch batched Cholesky", 1.5),
        ("b", "NumPy, stacked", 0.5),
    ]
    summary = shapes.summary(rows_of_a_run())
    assert [(claim.value, claim.met) for claim in summary.claims] == [(1.0, False)]
    assert summary.notes[0] == "b: NumPy, stacked takes 0.50 of the time"
    assert shapes.summary(rows_of_a_run()[:3]).claims[0].met


def test_the_picture_shows_the_worst_of_each_cell():
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    shapes.draw(axes, rows_of_a_run())
    texts = [text.get_text() for text in axes.child_axes[0].texts]
    assert texts == ["1.5", "0.5"]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    study = shapes.STUDY
    built = []

    def build(case):
        built.append(case.race)
        if len(set(built)) == 3:
            raise KeyboardInterrupt
        return shapes.build(case)

    import dataclasses

    some = [case for case in study.cases(Size.once) if case.race != shapes.ROOFS][:12]
    interrupted = dataclasses.replace(study, build=build, cases=lambda size: some)
    results = Results(tmp_path / "bench.json", Size.once)
    with pytest.raises(KeyboardInterrupt):
        run_study(interrupted, Size.once, 0.001, keep=lambda rows: results.keep(interrupted, rows))
    again = Results(tmp_path / "bench.json", Size.once)
    finished = again.unfinished(interrupted)
    assert {row.race for row in finished} == set(dict.fromkeys(built[:-1])) - {built[-1]}
    whole = dataclasses.replace(interrupted, build=shapes.build)
    rows = run_study(whole, Size.once, 0.001, finished=finished)
    assert rows[: len(finished)] == finished
    assert [row.race for row in rows] == [case.race for case in some]
    again.add(whole, rows)
    assert Results(tmp_path / "bench.json", Size.once).unfinished(whole) == []
