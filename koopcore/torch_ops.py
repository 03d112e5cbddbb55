"""The engine as a torch operator: snapshots in, predictions out, differentiable and compilable.

``torch.ops.koopcore.endpoint(snapshots, segments, size, horizons, affine, backend)`` is x_{n+T}
of every group; :class:`Endpoint` is the module around it. It is registered with ``torch.library``
(define, impl, register_fake, register_autograd), so that autograd, ``torch.compile``,
``torch.export`` and CUDA graphs know it.

Gradients are the adjoint of fit, rollout and prediction at full rank. With λ_T the gradient by a
prediction, going backwards through x_{n+T} = F' c_T, c_T = S^{T-1} a:

    a = F⁺f          dF += r zᵀ - (F z) aᵀ,  df += F z,   (FᵀF) z = da,  r = f - F a
    U = F'F⁺         dF' += G C⁻¹F,  dF += C⁻¹Gᵀ(F' - U F) - UᵀG C⁻¹F,   C = FFᵀ,  G = dU

where F has full column rank (m >= N, the companion fit) and full row rank (m < N) respectively.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from koopcore.backends import backend_for
from koopcore.backends.protocol import Snapshots
from koopcore.operators import fit
from koopcore.partition.partition import Partition

__all__ = ["Endpoint"]

Model = Literal["affine", "linear"]


class Endpoint(torch.nn.Module):
    """x_{n+T} from a window of snapshots, as one operator of a torch graph.

        linear  x_{n+T} = U^T x_n                U = F'F⁺
        affine  x_{n+T} = x_n + Σ_{j=1..T} A^j d_{n-1}      (see `koopcore.fit`)

    Args:
        part: which parameters share an operator. horizons: T >= 1, in snapshots, or several.
        model: "affine" or "linear". backend: as in `koopcore.fit`; None is the first that runs, or
            the one that KOOPCORE_BACKEND names.

    Called with snapshots (n, n_parameters), float32 or float64, oldest first, it returns
    (len(horizons), n_parameters) of the same dtype and device. Parameters in no group keep their
    last value. Raises ValueError for other models or horizons, and what `koopcore.fit` raises.

    Gradients reach the snapshots through fit, rollout and prediction; they are those of full-rank
    windows. ``torch.compile(fullgraph=True)`` keeps it in one graph. On CUDA nothing waits for the
    device where all groups have m >= n - 1, so that a CUDA graph can record it, after one call that
    has uploaded the partition.

    Cost: forwards that of `fit` and `predict`; backwards the same in torch operations, O(T) of
    them. Not for training a model through thousands of steps: the gradient of an unstable rollout
    grows like the rollout.
    """

    def __init__(
        self,
        part: Partition,
        horizons: int | Sequence[int],
        model: Model = "affine",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if model not in get_args(Model):
            raise ValueError(f"model is {model!r}; 'affine' and 'linear' are differentiable")
        self.horizons = [horizons] if isinstance(horizons, int) else [int(t) for t in horizons]
        if not self.horizons or min(self.horizons) < 1:
            raise ValueError(f"horizons is {horizons!r}; give whole numbers of snapshots >= 1")
        self.model = model
        self.backend = backend
        self.size = part.size
        # No buffer: it stays on the CPU, where the operator reads it without waiting for a device.
        self.segments = segments_of(part)

    def forward(self, snapshots: Tensor) -> Tensor:
        """Predictions (len(horizons), n_parameters) from snapshots (n, n_parameters)."""
        affine = self.model == "affine"
        return torch.ops.koopcore.endpoint(
            snapshots, self.segments, self.size, self.horizons, affine, self.backend
        )


def segments_of(part: Partition) -> Tensor:
    """Return a partition as the operator takes it: int64 (4, n_segments) on the CPU.

    The rows are the group of each segment, where it starts, how long it is, and its stride.
    """
    group = np.repeat(np.arange(part.n_groups), np.diff(part.group_ptr))
    segments = torch.from_numpy(np.stack([group, part.start, part.length, part.stride]))
    _partitions[segments] = part
    return segments


_partitions: Any = WeakTensorKeyDictionary()


def _partition_of(segments: Tensor, size: int) -> Partition:
    """The partition of a tensor of segments; of a copy of one, made again and kept as well."""
    part: Partition | None = _partitions.get(segments)
    if part is None:
        group, *rest = segments.numpy()
        pointer = np.searchsorted(group, np.arange(group[-1] + 2))
        part = _partitions[segments] = Partition(size, pointer, *rest)
    return part


torch.library.define(
    "koopcore::endpoint",
    "(Tensor snapshots, Tensor segments, int size, int[] horizons, bool affine, str? backend)"
    " -> Tensor",
)
torch.library.define(
    "koopcore::endpoint_backward",
    "(Tensor gradient, Tensor snapshots, Tensor segments, int size, int[] horizons, bool affine)"
    " -> Tensor",
)


@torch.library.impl("koopcore::endpoint", ("cpu", "cuda"))
def _endpoint(
    snapshots: Tensor,
    segments: Tensor,
    size: int,
    horizons: Sequence[int],
    affine: bool,
    backend: str | None,
) -> Tensor:
    part = _partition_of(segments, size)
    if snapshots.device.type != "cpu" and part.smallest >= len(snapshots) - 1 >= 1 + int(affine):
        window: Any = Snapshots(snapshots, np.arange(len(snapshots)))  # type: ignore[arg-type]
        if part.n_parameters == size:  # all of it will be written
            out: Any = snapshots.new_empty((len(horizons), size))
        else:
            out = snapshots[-1].expand(len(horizons), -1).clone()
        device = backend_for(snapshots.device.type, backend)
        if device.endpoint(window, part, affine, list(horizons), out):
            return out
    operators = fit(snapshots, part, "affine" if affine else "linear", backend=backend)
    return operators.predict(list(horizons))


def _endpoint_shape(
    snapshots: Tensor,
    segments: Tensor,
    size: int,
    horizons: Sequence[int],
    affine: bool,
    backend: str | None,
) -> Tensor:
    return snapshots.new_empty((len(horizons), snapshots.shape[1]))


@torch.library.impl("koopcore::endpoint_backward", ("cpu", "cuda"))
def _endpoint_backward(
    gradient: Tensor,
    snapshots: Tensor,
    segments: Tensor,
    size: int,
    horizons: Sequence[int],
    affine: bool,
) -> Tensor:
    part = _partition_of(segments, size)
    by_snapshots = gradient_by_snapshots(
        snapshots.double(), part, list(horizons), affine, gradient.double()
    )
    return by_snapshots.to(snapshots.dtype)


def _endpoint_backward_shape(
    gradient: Tensor,
    snapshots: Tensor,
    segments: Tensor,
    size: int,
    horizons: Sequence[int],
    affine: bool,
) -> Tensor:
    return torch.empty_like(snapshots, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    snapshots, segments, *ctx.options, _ = inputs
    ctx.save_for_backward(snapshots, segments)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    by_snapshots = torch.ops.koopcore.endpoint_backward(gradient, *ctx.saved_tensors, *ctx.options)
    return by_snapshots, None, None, None, None, None


torch.library.register_fake("koopcore::endpoint", _endpoint_shape)
torch.library.register_fake("koopcore::endpoint_backward", _endpoint_backward_shape)
torch.library.register_autograd("koopcore::endpoint", _backward, setup_context=_setup)


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
    a = _triangular_solve(r, (q.mT @ target[:, :, None]))[:, :, 0]
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
    z = _triangular_solve(r, _triangular_solve(r.mT, by_a[:, :, None], upper=False))[:, :, 0]
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


def _triangular_solve(r: Tensor, right: Tensor, upper: bool = True) -> Tensor:
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
