"""DDP: what ranks decide together, with real processes on gloo."""

import itertools
from pathlib import Path

import pytest
from ranks import launch

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request):
    reports = launch(HERE / "replicated_worker.py", request.param)
    assert [r["exit"] for r in reports] == [0] * request.param, reports[0]["errors"][-2000:]
    return reports


def test_ranks_with_losses_of_their_own_stay_bitwise_the_same(ranks):
    for report in ranks:
        difference, accepted, losses, regime = report["local"]
        assert difference == 0.0
        assert accepted > 0
        assert losses == ranks[0]["local"][2]
        assert regime == ranks[0]["local"][3]
        assert report["averaged"] == ranks[0]["averaged"]
        assert report["averaged"][1] == 0.0


def test_a_loss_that_reduces_itself_is_not_counted_twice(ranks):
    for report in ranks:
        difference, losses = report["reduced"]
        assert difference == 0.0
        # The first attempt is at the same weights as with losses of each rank's own.
        assert losses[0] == pytest.approx(ranks[0]["local"][2][0], rel=1e-6)


def test_an_exception_on_one_rank_is_a_rejection_on_all(ranks):
    for rank, report in enumerate(ranks):
        found = report["exception"]
        assert found["apart"] == 0.0
        assert found["accepted"] > 0
        if rank == 1:
            assert len(found["errors"]) == 1
            assert "no such batch" in found["errors"][0]
        else:
            assert found["errors"] == []
            assert any("rank 1" in r and "no such batch" in r for r in found["reasons"])


def test_a_loss_that_is_not_finite_on_one_rank_wins_nowhere(ranks):
    for report in ranks:
        found = report["nan"]
        assert found["apart"] == 0.0
        assert found["errors"] == []
        assert found["accepted"] > 0


def test_misuse_is_said_on_all_ranks_and_names_them(ranks):
    for rank, report in enumerate(ranks):
        assert "the option stride is 2 on rank 0; 3 on rank 1" in report["options"]
        assert "loss is none on rank 0; a function on rank 1" in report["one"]
        assert "'1.weight' of shape (2, 4) on rank 0" in report["wide"]
        assert "'1.weight' of shape (3, 4) on rank 1" in report["wide"]
        assert "none on rank 0; '1.weight' of shape (4, 4) on rank 1" in report["deep"]
        assert report["alone"] == ""
        assert report["wrong"].startswith("ValueError: process_group is 'all'; give \"auto\"")
        assert report["never"].startswith("TypeError: process_group is a int")
        if rank == 0:
            assert report["failed"].startswith("ValueError: window is 2")
        else:
            assert "attach failed on rank 0: ValueError: window is 2" in report["failed"]
            assert f"rank {rank} is not in the process group" in report["stranger"]
        if rank == 1:  # whose own error it is, told to the others once
            assert report["raised"].startswith("ValueError: the loss failed")
        else:
            assert "attach failed on rank 1: IndexError: list index" in report["raised"]


def test_an_attempt_sends_what_the_page_says(ranks):
    for report in ranks:
        traffic = report["traffic"]
        assert len(traffic) > 2
        for (_, before), (evaluations, sent) in itertools.pairwise(traffic):
            # 32 (e + 3), and one header more where winners are compared.
            assert sent - before == 32 * (evaluations + 4)


def test_full_batches_are_told_by_the_gradient_of_all_ranks(ranks):
    for report in ranks:
        assert report["gradient"] == {"full": True, "half": False, "failing": False, "apart": 0.0}


def test_partitioned_optimizers_and_residuals_jump_alike(ranks):
    if len(ranks) > 2:
        pytest.skip("of two ranks")
    for report in ranks:
        for name in ("zero", "residuals"):
            difference, accepted = report[name]
            assert difference == 0.0
            assert accepted > 0


def test_weights_that_differ_between_ranks_are_named_with_the_checksums_of_each(ranks):
    if len(ranks) > 2:
        pytest.skip("of two ranks")
    ours, theirs = (report["strayed"][2] for report in ranks)
    assert [name for name in ours if ours[name] != theirs[name]] == ["1.weight", "3.bias"]
    checksums = f"checksum {ours['1.weight']} on rank 0; checksum {theirs['1.weight']} on rank 1"
    for report in ranks:
        error, steps, _ = report["strayed"]
        assert error.startswith(
            "RuntimeError: the weights differ between ranks: '1.weight' and 1 more of 6 "
            f"({checksums}). Is the model wrapped in DistributedDataParallel"
        )
        assert steps == 9  # the first attempt


@pytest.mark.parametrize("how", ["killed", "away"])
def test_a_rank_that_is_gone_is_an_error_within_the_timeout(how):
    first, second = launch(HERE / "lost_worker.py", 2, how, limit=60)
    assert second["exit"] != 0
    assert first["exit"] == 0, first["errors"][-2000:]
    assert "rank 0 waited" in first["error"]
    assert first["seconds"] < 20  # 5 s, and what the machine adds
    assert "rank 1 did not come" in first["error"]
