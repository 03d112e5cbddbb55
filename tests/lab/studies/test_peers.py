"""Peers: they predict what they should, in blocks and on threads as in one piece."""

import numpy as np
import pytest
import torch

from koopcore.lab.bench.study import Case, Row, Size, Unavailable, forget
from koopcore.lab.studies.peers import numpy_peers, study, torch_peers
from koopcore.lab.studies.peers.powers import powered, summed
from koopcore.lab.studies.workloads import Workload, decays, workload


@pytest.fixture(autouse=True)
def nothing_is_shared():
    yield
    forget()


@pytest.mark.parametrize("horizon", [1, 2, 3, 7, 8, 100])
def test_powers_by_doubling_are_those_of_products(horizon):
    rng = np.random.default_rng(0)
    step = rng.normal(size=(3, 5, 5)) / 4
    start = rng.normal(size=(3, 5, 1))
    total, state = np.zeros_like(start), start
    for _ in range(horizon):
        total, state = total + state, step @ state
    # Sums of at most a hundred terms that decay: some hundred roundings.
    assert np.allclose(summed(step, start, horizon), total, rtol=1e-12)
    assert np.allclose(powered(step, start, horizon), state, rtol=1e-12, atol=1e-300)
    tensors = torch.from_numpy(step), torch.from_numpy(start)
    assert np.allclose(summed(*tensors, horizon).numpy(), total, rtol=1e-12)


PEERS = {
    "NumPy Gram matrices, stacked": numpy_peers.gram_stack,
    "NumPy Gram matrices, loop": numpy_peers.gram_loop,
    "NumPy pinv, stacked": numpy_peers.pinv_stack,
    "NumPy pinv, loop": numpy_peers.pinv_loop,
    "torch Cholesky": torch_peers.cholesky,
    "torch lstsq": torch_peers.lstsq,
    "torch pinv": torch_peers.pinv,
}


@pytest.mark.parametrize("peer", PEERS)
def test_peers_predict_a_well_conditioned_recurrence(peer):
    groups, truth = oscillations(n_groups=4, n=7 if "pinv" in peer else 8, m=20, ahead=4)
    assert np.allclose(PEERS[peer](groups, 4), truth, atol=1e-6)


@pytest.mark.parametrize("peer", ["NumPy Gram matrices, stacked", "torch Cholesky"])
def test_peers_that_can_predict_groups_of_few_parameters(peer):
    # Six modes in six parameters, and more snapshots than they need.
    groups, truth = oscillations(n_groups=4, n=12, m=6, ahead=4)
    assert np.allclose(PEERS[peer](groups, 4), truth, atol=1e-6)


def oscillations(n_groups, n, m, ahead):
    """As many modes as n = 7 determines, of moduli 0.9: no rounding is amplified."""
    rng = np.random.default_rng(0)
    eigenvalues = 0.9 * np.exp(1j * np.array([0.4, 1.2, 2.2]))
    powers = eigenvalues[None, :] ** np.arange(n + ahead)[:, None]
    modes = rng.normal(size=(2, n_groups, 3, m))
    truth = (powers @ (modes[0] + 1j * modes[1])).real
    return np.ascontiguousarray(truth[:, :n]), truth[:, -1]


@pytest.mark.parametrize("module", [numpy_peers, torch_peers])
def test_columns_of_a_large_group_may_be_taken_in_blocks(module, monkeypatch):
    peer = numpy_peers.gram_stack if module is numpy_peers else torch_peers.cholesky
    rows = decays(16, 1000).rows
    whole = peer(rows[None], 20)
    monkeypatch.setattr(module, "COLUMNS", 300)
    # Sums in another order; the recurrence amplifies their rounding by its condition.
    assert np.allclose(peer(rows[None], 20), whole, atol=1e-5)


@pytest.mark.parametrize(("way", "groups"), [("blocks", 90), ("loop", 90), ("blocks", 1)])
def test_a_way_of_calling_changes_nothing(way, groups, monkeypatch):
    monkeypatch.setattr(study, "BLOCK", 8 * 16 * 65 * 7)  # seven groups a block, the last one less
    load = Workload(groups, 64, 16) if groups > 1 else Workload(20_000, 0, 16)
    batch, _ = study.grouped(load)
    threads = torch.get_num_threads()
    call = study.in_its_way(way, numpy_peers.gram_stack, batch)
    assert np.allclose(call(), numpy_peers.gram_stack(batch, study.HORIZON), rtol=1e-6)
    assert torch.get_num_threads() == threads


def test_torch_has_one_thread_inside_and_as_many_as_before_outside():
    threads = torch.get_num_threads()
    with study.one_thread_each():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", list(study.PEERS))
def test_a_peer_that_is_not_installed_says_how_to_install_it(name, monkeypatch):
    monkeypatch.setattr(study, "find_spec", lambda package: None)
    case = Case("W1", name, options=workload("W1", Size.once))
    with pytest.raises(Unavailable, match=r"not installed: pip install \"koopcore\[bench\]\""):
        study.build(case)


def test_a_wrong_peer_is_wrong(monkeypatch):
    case = Case("W1", "NumPy Gram matrices, stacked", options=workload("W1", Size.once))
    job = study.build(case)
    assert job.error(job.call()) <= job.bound
    monkeypatch.setattr(numpy_peers, "gram_stack", lambda groups, horizon: groups[:, -1])
    job = study.build(case)
    assert not job.error(job.call()) <= job.bound  # nothing moved: an error of one


def test_the_fastest_peer_is_named_and_must_not_be_faster():
    rows = [
        Row("W1", "native_cpu", seconds=2.0),
        Row("W1", "torch pinv", seconds=5.0, engine=False),
        Row("W1", "torch lstsq", seconds=1.0, engine=False),
    ]
    (claim,) = study.summary(rows).claims
    assert "torch lstsq" in claim.text
    assert claim.value == 0.5
    assert not claim.met
    assert study.summary(rows[:2]).claims[0].met


def test_a_workload_is_grouped_as_its_partition_says():
    load = workload("W1", Size.once)
    groups, part = study.grouped(load)
    rows = decays(load.n, part.size).rows
    assert groups.shape == (load.groups, load.n, load.fan_in + 1)
    for g in (0, 7, load.groups - 1):
        assert (groups[g] == rows[:, part.indices(g)]).all()
