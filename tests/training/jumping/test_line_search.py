"""The line search and its candidates: the best place, or none at all."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import koopcore as kc  # noqa: E402
from koopcore.training.jumping import line_search as places  # noqa: E402
from koopcore.training.jumping.line_search import Candidate, Ladder, line_search  # noqa: E402


def ladder(losses, kind="koopman", rungs=4, fallback=False):
    """Candidates whose vector is the loss itself, at horizons 1, 2, 3, ..."""
    steps = [
        Candidate(kind, k + 1, (lambda x: lambda: torch.tensor([x]))(loss))
        for k, loss in enumerate(losses)
    ]
    return Ladder(steps, rungs, fallback)


def search(base, *ladders, **options):
    return line_search(base, ladders, lambda vector: float(vector), **options)


@pytest.mark.parametrize(
    ("losses", "slack", "horizon"),
    [
        ([0.9, 0.8, 0.5, 0.7], 0.0, 3),
        ([0.9, 0.8, 0.5, 0.7], 0.4, 4),  # 0.7 <= 0.5 + 0.4 (1 - 0.5)
        ([0.9, 0.8, 0.5, 0.71], 0.4, 3),
        ([0.9, 0.8, 0.5, 0.7], 0.9, 4),
        ([0.5, 0.5, 0.5, 2.0], 0.0, 3),  # of equal losses the farthest
        ([1.0, 1.1, 2.0, 3.0], 0.9, None),  # no better than now is no gain
        ([math.nan, math.inf, -math.inf, 0.99], 0.0, 4),
        ([math.nan] * 4, 0.5, None),
    ],
)
def test_the_farthest_candidate_near_the_lowest_loss_wins(losses, slack, horizon):
    result = search(1.0, ladder(losses), slack=slack)
    if horizon is None:
        assert result.best is None
        assert result.loss == 1.0
    else:
        assert result.best.horizon == horizon
        assert result.loss == pytest.approx(losses[horizon - 1], rel=1e-7)  # float32 vectors
    assert len(result.losses) == 4


@pytest.mark.parametrize("slack", [0.0, 0.3, 0.9])
def test_the_winner_always_lowers_the_loss(slack):
    generator = np.random.default_rng(0)
    for _ in range(200):
        losses = generator.lognormal(0.0, 1.0, 6).tolist()
        result = search(1.0, ladder(losses), slack=slack)
        assert (result.best is None) == (min(losses[:4]) >= 1.0) or result.best.horizon > 4
        assert result.best is None or result.loss < 1.0


@pytest.mark.parametrize(
    ("losses", "tried"),
    [
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 6),  # the end stays the best: to the very end
        ([0.9, 0.8, 0.7, 0.6, 0.65, 0.4], 5),
        ([0.9, 0.8, 0.5, 0.6, 0.1, 0.1], 4),
        ([2.0, 2.0, 2.0, 2.0, 0.1, 0.1], 4),
    ],
)
def test_a_ladder_goes_on_while_its_end_is_the_best(losses, tried):
    assert len(search(1.0, ladder(losses)).losses) == tried


def test_a_fallback_is_tried_only_where_nothing_else_gained():
    line = ladder([0.5], "line", 1, fallback=True)
    assert search(1.0, ladder([0.9]), line).best.kind == "koopman"
    assert search(1.0, ladder([1.1]), line).best.kind == "line"


def test_a_margin_asks_for_more_than_any_gain():
    assert search(1.0, ladder([0.95]), margin=0.1).best is None
    assert search(1.0, ladder([0.85]), margin=0.1).best is not None
    assert search(-1.0, ladder([-1.05]), margin=0.1).best is None
    assert search(-1.0, ladder([-1.15]), margin=0.1).best is not None


def test_a_vector_with_a_non_finite_element_never_wins():
    bad = Candidate("koopman", 1, lambda: torch.tensor([0.0, math.nan]))
    result = line_search(1.0, [Ladder([bad], 1)], lambda vector: 0.1)
    assert result.best is None


@pytest.mark.parametrize(
    ("first", "last", "ratio", "expected"),
    [
        (2, 128, 4, [2, 8, 32, 128]),
        (0.25, 4, 4, [1, 4]),  # rounded to whole snapshots, each once
        (0.3, 8, 2, [1, 2, 5]),
        (5, 4, 2, []),
        (1, 3**10, 3, [3**k for k in range(11)]),
    ],
)
def test_horizons_are_geometric_and_whole(first, last, ratio, expected):
    assert places.geometric(first, last, ratio) == expected


def decaying(n, size=64):
    """Rows of sum of two exact exponentials: the affine model predicts them to rounding."""
    t = torch.arange(n, dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, size, generator=generator, dtype=torch.float64)
    return a + b * 0.9**t + c * 0.7**t


@pytest.mark.parametrize("together", [0, 1 << 24])
def test_koopman_candidates_are_the_operators_predictions(together, monkeypatch):
    monkeypatch.setattr(places, "_TOGETHER", together)
    true = decaying(60)
    part = kc.Partition.groups(64, [np.arange(64)])
    operators = kc.fit(true[:6], part, model="affine")
    result = list(places.koopman(operators, [1, 4, 16, 50], 3))
    assert [c.horizon for c in result] == [1, 4, 16, 50]
    for candidate in result:
        # Two modes in five differences: exact up to float64 rounding times a condition of 1e3.
        assert torch.allclose(candidate.vector(), true[5 + candidate.horizon], rtol=0, atol=1e-9)


def test_line_and_mean_follow_the_time_order_of_a_turned_ring():
    rows = torch.tensor([[30.0], [0.0], [10.0], [20.0]])
    order = [1, 2, 3, 0]
    assert [c.vector().item() for c in places.line(rows, order, [1, 5])] == [40.0, 80.0]
    assert places.mean(rows, order).vector().item() == 15.0
    assert places.mean(rows, [2, 3, 0]).vector().item() == 20.0


def test_regression_recovers_a_line_and_begins_where_it_is_now():
    generator = torch.Generator().manual_seed(1)
    start, slope = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    data = torch.full((7, 40), math.nan, dtype=torch.float64)
    order = [5, 6, 0, 1, 2]
    for k, row in enumerate(order):
        data[row] = start + k * slope
    data[[3, 4]] = 0.0  # rows that are not of the window do not count
    result = list(places.regression(data, order, [1, 10]))
    assert [c.horizon for c in result] == [0, 1, 10]
    for candidate in result:
        expected = start + (4 + candidate.horizon) * slope
        assert torch.allclose(candidate.vector(), expected, rtol=0, atol=1e-12)


def test_regression_hears_less_noise_than_the_line_through_the_ends():
    generator = torch.Generator().manual_seed(2)
    time = torch.arange(17, dtype=torch.float64)[:, None]
    rows = time + torch.randn(17, 4000, generator=generator, dtype=torch.float64)
    errors = {}
    for made in (places.line, places.regression):
        candidate = next(c for c in made(rows, list(range(17)), [8]) if c.horizon == 8)
        errors[made.__name__] = float((candidate.vector() - 24.0).std())
    # Eight beyond the end, 16 from the middle: variance 1/n + 16^2 12 / (n^3 - n) = 0.69; through
    # the ends (1 + 8/16)^2 + (8/16)^2 = 2.5. The ratio of the deviations is 0.52.
    assert errors["regression"] < 0.6 * errors["line"]
