"""Rooflines: the work of stages and jobs, checks that notice what is wrong, shares of the roof."""

import math

import numpy as np
import pytest

from koopcore.lab.bench.roofs import MULTIPLY_ADDS, READS, Roofs, Work, roofs_of, share_of
from koopcore.lab.bench.study import Row
from koopcore.lab.studies import roofline
from koopcore.lab.studies.workloads import HORIZON, Workload


def test_the_work_of_stages_is_that_of_their_formulas():
    work = roofline.stage_work(Workload(20, 9, 6))  # 20 groups of 10, n = 6
    assert work["gram"] == Work(20 * 10 * 42, 4 * 6 * 200 + 8 * 21 * 20)
    # Weights of all six snapshots are read beside them.
    assert work["combine"] == Work(2 * 200 * 6, 4 * 6 * 200 + 8 * 20 * 6 + 4 * 200)
    assert work["rollout"].flops == 2 * 20 * 4 * HORIZON


def test_the_whole_job_adds_the_flops_of_its_stages_and_reads_the_snapshots_twice():
    load = Workload(20, 9, 6)
    whole = roofline.endpoint_work(load)
    assert whole.flops == sum(work.flops for work in roofline.stage_work(load).values())
    assert whole.bytes == 2 * 4 * 6 * 200 + 4 * 200
    several = roofline.endpoint_work(load, (1, 10, HORIZON))
    assert several.bytes - whole.bytes == 2 * 4 * 200
    assert several.flops - whole.flops == 2 * 2 * 200 * 6


def test_groups_on_the_feature_side_roll_out_their_operator_and_are_read_once():
    load = Workload(20, 2, 8)  # m = 3 < 6 columns
    work = roofline.endpoint_work(load)
    assert work.bytes == 4 * 8 * 60 + 4 * 60
    longer = roofline.feature_flops(load, HORIZON + 1)
    assert longer - work.flops == 20 * 2 * 9  # one more product of 3 x 3 with a vector


def test_horizons_beyond_the_steps_are_squared():
    load = Workload(10, 19, 16)
    steps, squarings = (roofline.stage_work(load, (t,))["rollout"].flops for t in (1000, 100_000))
    assert squarings < steps


def test_the_roof_is_the_fastest_probe_and_a_share_its_part():
    rows = [
        Row("r", MULTIPLY_ADDS, seconds=2.0, figures={"flops": 8.0}),
        *(Row("r", name, seconds=k + 1.0, figures={"bytes": 6.0}) for k, name in enumerate(READS)),
        Row("other", MULTIPLY_ADDS, seconds=1.0, figures={"flops": 8.0}),
    ]
    roofs = roofs_of(rows, "r")
    assert roofs == Roofs(4.0, 6.0)
    job = Row("r", "job", seconds=4.0, figures={"flops": 8.0, "bytes": 6.0})
    share = share_of("job", job, roofs)
    assert (share.flops, share.bytes, share.roof) == (0.5, 0.25, 0.5)


def test_without_a_probe_there_is_no_share():
    rows = [Row("r", MULTIPLY_ADDS, seconds=1.0, figures={"flops": 8.0})]
    assert roofs_of(rows, "r") is None
    job = Row("r", "job", seconds=4.0, figures={"flops": 8.0, "bytes": 6.0})
    assert math.isnan(share_of("job", job, None).roof)
    assert math.isnan(share_of("job", Row("r", "job"), Roofs(1.0, 1.0)).roof)


@pytest.mark.parametrize("stage", roofline.STAGES)
def test_a_stage_that_is_wrong_by_little_is_noticed(stage):
    stages = roofline.Stages(Workload(40, 64, 16))
    check, allowed = stages.check(stage)
    right = stages.call(stage)
    assert check(right) <= allowed
    if stage == "solve":
        wrong = right._replace(residual=right.residual * 1.1)
    else:
        wrong = right + 1e-4 * np.abs(right).max()
    assert check(wrong) > allowed
