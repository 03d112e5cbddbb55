"""Groups that would outrun the straight line are bent to it; the others stay as predicted."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_training import loss_of, network, train  # noqa: E402

import koopcore as kc  # noqa: E402
from koopcore.training.jumping.bounds import GroupBounds  # noqa: E402

#: Three groups of 2, 3 and 2 elements, one out of order; element 5 is in none.
GROUPS = [[0, 1], [4, 2, 3], [7, 6]]


def bounds(**options):
    return GroupBounds(kc.Partition.groups(8, GROUPS), **options)


def rows():
    """The window's ends: every element moved by 1."""
    return torch.zeros(8), torch.ones(8)


@pytest.mark.parametrize(
    ("factor", "bent"),
    [(0.0, False), (1.0, False), (1.49, False), (1.51, True), (-1.6, True), (1e30, True)],
)
@pytest.mark.parametrize("group", range(3))
def test_a_group_beyond_the_bound_goes_along_the_line(factor, bent, group):
    oldest, newest = rows()
    predicted = newest + 0.5
    predicted[GROUPS[group]] = 1.0 + 0.5 * factor
    predicted[5] = 100.0  # in no group: not judged
    expected = predicted.clone()
    if bent:
        expected[GROUPS[group]] = 1.5
    assert torch.equal(bounds()(predicted, newest, oldest, 0.5), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_element_that_is_not_finite_bends_its_whole_group(bad):
    oldest, newest = rows()
    predicted = newest + 1.0
    predicted[6] = bad
    got = bounds()(predicted, newest, oldest, 1.0)
    assert got[[6, 7]].tolist() == [2.0, 2.0]
    assert torch.equal(got[:6], predicted[:6])


def test_a_group_that_does_not_move_may_only_stay():
    still = torch.ones(8)
    assert torch.equal(bounds()(still, still, still, 3.0), still)
    moved = still + 1e-3
    assert torch.equal(bounds()(moved, still, still, 3.0)[:5], still[:5])


@pytest.mark.parametrize("limit", [0.99, 0.0, -2.0, math.nan])
def test_a_limit_below_the_line_itself_is_refused(limit):
    with pytest.raises(ValueError, match="number >= 1"):
        bounds(limit=limit)


def test_one_wild_group_no_longer_spoils_a_prediction():
    """Two groups of exact exponentials, and one of noise that its operator amplifies."""
    time = np.arange(6)[:, None]
    random = np.random.default_rng(3)
    window = 1.0 + random.normal(size=(1, 60)) * 0.8**time
    window[:, 40:] = 1e-6 * random.normal(size=(6, 20)) * 3.0**time
    snapshots = torch.from_numpy(window).float()
    part = kc.Partition.groups(60, [range(0, 20), range(20, 40), range(40, 60)])
    ahead = 24
    predicted = kc.fit(snapshots, part, model="affine").predict(ahead)
    bent = GroupBounds(part)(predicted, snapshots[-1], snapshots[0], ahead / 5)
    assert torch.equal(bent[:40], predicted[:40])
    assert float(predicted[40:].norm()) > 100 * float(bent[40:].norm())


@pytest.mark.parametrize("partition", ["network", "layers", "nodes"])
def test_training_with_groups_still_lowers_the_loss_at_each_jump(partition):
    model = network()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    koop = kc.attach(optimizer, model, loss=loss_of(model), partition=partition)
    train(optimizer, loss_of(model), 300)
    jumps = [j for j in koop.stats.history if j.accepted]
    assert jumps
    assert all(j.loss_after < j.loss_before for j in jumps)


def test_a_blind_jump_of_many_groups_is_bounded_too():
    """schedule= without loss= jumps whatever comes; each group within the bound of its line."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options = {"stride": 2, "schedule": (20, 40, 400), "record": "last"}
    koop = kc.attach(optimizer, model, partition="nodes", **options)
    seen = []
    for step in range(1, 41):
        train(optimizer, loss_of(model), 1)
        weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        if step in (20, 39):
            seen.append(weights)
    assert koop.stats.accepted == 1
    gone = (weights - seen[1]).norm()
    # 400 steps ahead of a window of 20, so 20 windows at 1.5 times the line's pace; the newest
    # snapshot lies one step beyond the last weights seen, hence the allowance of 5 %.
    assert float(gone) < 1.05 * 1.5 * 20 * float((seen[1] - seen[0]).norm()) * 20 / 19
