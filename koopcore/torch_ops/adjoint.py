"""Gradients of predictions by snapshots: the adjoint of fit, rollout and prediction, full rank.

With λ_T the gradient by a prediction, going backwards through x_{n+T} = F' c_T, c_T = S^{T-1} a:

    a = F⁺f          dF += r zᵀ - (F z) aᵀ,  df += F z,   (FᵀF) z = da,  r = f - F a
    U = F'F⁺         dF' += G C⁻¹F,  dF += C⁻¹Gᵀ(F' - U F) - UᵀG C⁻¹F,   C = FFᵀ,  G = dU

where F has full column rank (m >= N, the companion fit) and full row rank (m < N) respectively.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from koopcore.partition.partition import Partition


def gradient_by_snapshots(
    snapshots: Tensor,
    part: Partition,
    horizons: Sequence[int],
    affine: bool,
    by_predictions: Tensor,
) -> Tensor:
    """The gradient (n, n_parameters) by float64 snapshots, from that by x_{n+T} (n_horizons, …).

    Groups of one size go together. Parameters in no group kept their last value.
    """
    out = torch.zeros_like(snapshots)
    out[-1] = by_predictions.sum(dim=0)
    for m in np.unique(part.sizes):
        columns = torch.from_numpy(part.index_matrix(np.flatnonzero(part.sizes == m)))
        columns = columns.to(snapshots.device)
        x = snapshots[:, columns].permute(1, 2, 0)  # (n_groups, m, n)
        given = by_predictions[:, columns]  # (n_horizons, n_groups, m)
        rows = x.diff(dim=2) if affine else x
        f, ahead = rows[:, :, :-1], rows[:, :, 1:]
        adjoint = _companion if f.shape[1] >= f.shape[2] else _dense
        by_f, by_ahead, by_newest = adjoint(f, ahead, horizons, affine, given)
        by_rows = torch.zeros_like(rows)
        by_rows[:, :, :-1] += by_f
        by_rows[:, :, 1:] += by_ahead
        by_rows[:, :, -1] += by_newest
        by_x = by_rows
        if affine:  # d_k = x_{k+1} - x_k, and x_n itself
            by_x = torch.zeros_like(x)
            by_x[:, :, 1:] += by_rows
            by_x[:, :, :-1] -= by_rows
            by_x[:, :, -1] += given.sum(dim=0)
        out[:, columns.reshape(-1)] = by_x.permute(2, 0, 1).reshape(len(out), -1)
    return out


def _companion(
    f: Tensor, ahead: Tensor, horizons: Sequence[int], affine: bool, given: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dF, dF', df) for the newest column f = a combination of F."""
    target = ahead[:, :, -1]
    q, r = torch.linalg.qr(f)
    a = _solved(r, (q.mT @ target[:, :, None]))[:, :, 0]
    shift = torch.eye(f.shape[2], dtype=f.dtype, device=f.device).roll(1, 0)[:, :-1]
    step = torch.cat([shift.expand(len(f), -1, -1), a[:, :, None]], dim=2)  # the companion matrix
    states, sums = _states(step, a, horizons)
    rolled = sums if affine else states
    by_ahead = sum(given[i][:, :, None] * rolled[t - 1][:, None, :] for i, t in enumerate(horizons))
    by_state: dict[int, Tensor] = {}
    for i, t in enumerate(horizons):
        along_ahead = (ahead.mT @ given[i][:, :, None])[:, :, 0]
        by_state[t] = by_state[t] + along_ahead if t in by_state else along_ahead
    by_step, by_a = _backwards(step, states, by_state, affine)
    by_a = by_a + by_step[:, :, -1]
    z = _solved(r, _solved(r.mT, by_a[:, :, None], upper=False))[:, :, 0]
    along = (f @ z[:, :, None])[:, :, 0]
    rest = target - (f @ a[:, :, None])[:, :, 0]
    by_f = rest[:, :, None] * z[:, None, :] - along[:, :, None] * a[:, None, :]
    assert isinstance(by_ahead, Tensor)
    return by_f, by_ahead, along


def _dense(
    f: Tensor, ahead: Tensor, horizons: Sequence[int], affine: bool, given: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dF, dF', df) for groups of fewer parameters than columns: U itself is rolled, from U f."""
    inverse_f = torch.linalg.solve(f @ f.mT, f)  # C⁻¹F
    operator = ahead @ inverse_f.mT
    target = ahead[:, :, -1]
    first = (operator @ target[:, :, None])[:, :, 0]
    states, _ = _states(operator, first, horizons)
    by_state: dict[int, Tensor] = {}
    for i, t in enumerate(horizons):
        by_state[t] = by_state[t] + given[i] if t in by_state else given[i]
    by_operator, by_first = _backwards(operator, states, by_state, affine)
    by_operator = by_operator + by_first[:, :, None] * target[:, None, :]
    by_newest = (operator.mT @ by_first[:, :, None])[:, :, 0]
    weighted = by_operator @ inverse_f
    rest = torch.linalg.solve(f @ f.mT, by_operator.mT @ (ahead - operator @ f))
    return rest - operator.mT @ weighted, weighted, by_newest


def _solved(r: Tensor, right: Tensor, upper: bool = True) -> Tensor:
    return torch.linalg.solve_triangular(r, right, upper=upper)


def _states(
    step: Tensor, first: Tensor, horizons: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """S^{t-1} z and Σ_{j<t} S^j z for t = 1 … the longest horizon."""
    states, sums = [first], [first]
    for _ in range(1, max(horizons)):
        states.append((step @ states[-1][:, :, None])[:, :, 0])
        sums.append(sums[-1] + states[-1])
    return states, sums


def _backwards(
    step: Tensor, states: list[Tensor], by_state: dict[int, Tensor], affine: bool
) -> tuple[Tensor, Tensor]:
    """(dS, dz) from the gradients by the state, or by the sum of states, at some horizons."""
    by_step, pending = torch.zeros_like(step), torch.zeros_like(states[0])
    carried = torch.zeros_like(states[0])
    for t in range(len(states), 0, -1):
        if t in by_state:
            pending = pending + by_state[t]
        carried = carried + pending  # the sums hold every earlier state as well
        if not affine:
            pending = torch.zeros_like(pending)
        if t > 1:
            by_step = by_step + carried[:, :, None] * states[t - 2][:, None, :]
            carried = (step.mT @ carried[:, :, None])[:, :, 0]
    return by_step, carried
