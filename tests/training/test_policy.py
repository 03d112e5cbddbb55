"""When the adaptive policy and the paper's schedule record, how far they look, when they rest."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("torch")

from koopcore.training.policy import AdaptivePolicy, FixedSchedule


def policy(window=9, stride=6, max_horizon=256, warmup=0, ladder=4):
    return AdaptivePolicy(window, stride, max_horizon, warmup, ladder)


def test_the_ladder_climbs_from_a_quarter_window():
    assert policy(ladder=2, max_horizon=2).horizons() == [2, 4, 8, 16]
    assert (policy().rungs, policy(ladder=2).rungs, policy(max_horizon=4).rungs) == (4, 7, 3)
    assert policy().horizons() == [2, 8, 32, 128, 512, 2048]
    assert policy(max_horizon=16).horizons() == [2, 8, 32, 128]
    assert policy(max_horizon=0.5).horizons() == [2]
    assert policy(window=3).horizons()[:4] == [1, 2, 8, 32]  # whole snapshots, each once


def test_an_accepted_jump_begins_a_new_window_at_once():
    plan = policy()
    plan.accepted(54, 8)
    assert (plan.start, plan.keep, plan.rungs) == (54, 0, 4)


@pytest.mark.parametrize(
    ("jumped", "first", "rungs"), [(0, 2, 4), (32, 2, 4), (128, 8, 3), (512, 32, 2), (2048, 128, 1)]
)
def test_rungs_far_below_the_last_jump_are_left_out(jumped, first, rungs):
    plan = policy()
    plan.accepted(54, jumped)
    assert (plan.horizons()[0], plan.horizons()[-1], plan.rungs) == (first, 2048, rungs)
    plan.rejected(108)
    assert (plan.horizons()[0], plan.rungs) == (2, 4)


def test_after_a_gain_two_rejections_slide_the_window_before_it_rests():
    plan = policy()
    plan.accepted(54, 8)
    seen = []
    for step in (108, 138, 168, 276, 438):
        plan.rejected(step)
        seen.append((plan.start - step, plan.keep, plan.rungs))
    assert seen == [(0, 4, 4), (0, 4, 4), (54, 0, 2), (108, 0, 2), (216, 0, 2)]
    plan.accepted(600, 8)
    plan.rejected(654)
    assert (plan.start, plan.keep) == (654, 4)


def test_without_any_gain_attempts_are_logarithmic_in_the_run():
    plan = policy()
    step, attempts = 0, []
    while step < 20_000:
        step = plan.start + plan.window_steps
        attempts.append(step)
        plan.rejected(step)
    gaps = [b - a for a, b in itertools.pairwise(attempts)]
    assert gaps[:4] == [54 + 54, 54 + 108, 54 + 216, 54 + 432]
    assert max(gaps) == 54 + 64 * 54
    assert len(attempts) <= 12


@pytest.mark.parametrize(
    ("hindcast", "growth", "ready"),
    [(0.1, 1.0, True), (0.3, 1.0, False), (0.1, 10.0, False), (float("inf"), 1.0, False)],
)
def test_auto_waits_for_hindcast_and_growth_and_then_stays_ready(hindcast, growth, ready):
    plan = policy(warmup="auto")
    assert not plan.ready
    assert plan.judge(hindcast, growth) is ready
    assert plan.judge(0.0, 1.0)
    assert plan.judge(9.9, 9.9)


def test_a_number_of_steps_is_waited_and_nothing_else():
    plan = policy(warmup=100)
    assert plan.start == 100
    assert plan.judge(9.9, 9.9)


@pytest.mark.parametrize(
    ("hindcast", "snapshots"), [(0.3, 0), (0.21, 0), (0.2, 4), (0.1, 8), (0.01, 80), (0.0, 2048)]
)
def test_a_blind_jump_is_as_long_as_the_hindcast_allows(hindcast, snapshots):
    assert policy().blind_horizon(hindcast) == snapshots


def test_a_policy_continues_from_its_state():
    plan = policy(warmup="auto")
    plan.judge(0.0, 0.0)
    plan.accepted(54, 8)
    plan.rejected(108)
    other = policy(warmup="auto")
    other.load_state_dict(plan.state_dict())
    for step in (138, 168, 276):
        plan.rejected(step)
        other.rejected(step)
        assert other.state_dict() == plan.state_dict()


@pytest.mark.parametrize(
    ("t1", "t2", "horizon", "stride", "window", "snapshots"),
    [(35_001, 45_000, 2_500, 1, 10_000, 2_500), (1, 9, 4, 2, 5, 2), (20, 50, 41, 5, 7, 8)],
)
def test_the_papers_schedule(t1, t2, horizon, stride, window, snapshots):
    plan = FixedSchedule(t1, t2, horizon, stride)
    due = [s for s in range(max(plan.start, 0) + 1, t2 + 1) if (s - plan.start) % stride == 0]
    assert len(due) == plan.window == window
    assert (due[0], due[-1]) == (t1, t1 + (window - 1) * stride)
    assert plan.horizons() == [snapshots]
    assert plan.blind_horizon(9.9) == snapshots
    assert plan.judge(9.9, 9.9)
    assert not plan.over
    for finish in (lambda: plan.accepted(t2, 1), lambda: plan.rejected(t2)):
        plan.over = False
        finish()
        other = FixedSchedule(t1, t2, horizon, stride)
        other.load_state_dict(plan.state_dict())
        assert plan.over
        assert other.over
