"""The engine as a torch operator: snapshots in, predictions out, differentiable and compilable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from koopcore.backends import backend_for
from koopcore.backends.protocol import Snapshots
from koopcore.operators import fit
from koopcore.partition.partition import Partition
from koopcore.torch_ops.adjoint import gradient_by_snapshots

_partitions: list[Partition] = []  # operators take numbers: a partition is passed by its place here


class Endpoint(torch.nn.Module):
    """x_{n+T} from a window of snapshots, as one operator of a torch graph.

        linear  x_{n+T} = U^T x_n                U = F'F⁺
        affine  x_{n+T} = x_n + Σ_{j=1..T} A^j d_{n-1}      (see `koopcore.fit`)

    part: which parameters share an operator. horizons: T >= 1, in snapshots, or several. model:
    "affine" or "linear". Called with snapshots (n, n_parameters), float32 or float64, oldest
    first, it returns (len(horizons), n_parameters) of the same dtype and device.

    Gradients reach the snapshots through fit, rollout and prediction; they are those of full-rank
    windows. ``torch.compile(fullgraph=True)`` keeps it in one graph. On CUDA nothing waits for the
    device where all groups have m >= n - 1, so that a CUDA graph can record it, after one call that
    has uploaded the partition. Raises what `koopcore.fit` raises.

    Cost: forwards that of `fit` and `predict`; backwards the same in torch operations, O(T) of
    them. Not for training a model through thousands of steps: the gradient of an unstable rollout
    grows like the rollout.
    """

    def __init__(
        self, part: Partition, horizons: int | Sequence[int], model: str = "affine"
    ) -> None:
        super().__init__()
        if model not in ("affine", "linear"):
            raise ValueError(f"model is {model!r}; 'affine' and 'linear' are differentiable")
        self.horizons = [horizons] if isinstance(horizons, int) else [int(t) for t in horizons]
        if not self.horizons or min(self.horizons) < 1:
            raise ValueError(f"horizons is {horizons!r}; give whole numbers of snapshots >= 1")
        self.model = model
        self.number = _number_of(part)

    def forward(self, snapshots: Tensor) -> Tensor:
        """Predictions (len(horizons), n_parameters) from snapshots (n, n_parameters)."""
        result: Tensor = endpoint(snapshots, self.number, self.horizons, self.model == "affine")
        return result


def _number_of(part: Partition) -> int:
    if part not in _partitions:
        _partitions.append(part)
    return _partitions.index(part)


@torch.library.custom_op("koopcore::endpoint", mutates_args=())
def endpoint(snapshots: Tensor, partition: int, horizons: Sequence[int], affine: bool) -> Tensor:
    """x_{n+T} (n_horizons, n_parameters); ``partition`` is a number that `Endpoint` has given."""
    part = _partitions[partition]
    if snapshots.device.type != "cpu" and part.smallest >= len(snapshots) - 1 >= 1 + int(affine):
        import numpy as np

        backend = backend_for(snapshots.device.type)
        window = Snapshots(snapshots.detach(), np.arange(len(snapshots)))  # type: ignore[arg-type]
        out = snapshots.detach()[-1].expand(len(horizons), -1).clone()
        if backend.endpoint(window, part, affine, list(horizons), out):  # type: ignore[arg-type]
            return out
    model = "affine" if affine else "linear"
    predicted: Tensor = fit(snapshots.detach(), part, model).predict(list(horizons))
    return predicted


@endpoint.register_fake
def _(snapshots: Tensor, partition: int, horizons: Sequence[int], affine: bool) -> Tensor:
    return snapshots.new_empty((len(horizons), snapshots.shape[1]))


@torch.library.custom_op("koopcore::endpoint_backward", mutates_args=())
def endpoint_backward(
    gradient: Tensor, snapshots: Tensor, partition: int, horizons: Sequence[int], affine: bool
) -> Tensor:
    """The gradient by the snapshots (n, n_parameters), from that by the predictions."""
    part = _partitions[partition]
    by_snapshots = gradient_by_snapshots(
        snapshots.detach().double(), part, list(horizons), affine, gradient.double()
    )
    return by_snapshots.to(snapshots.dtype)


@endpoint_backward.register_fake
def _(
    gradient: Tensor, snapshots: Tensor, partition: int, horizons: Sequence[int], affine: bool
) -> Tensor:
    return torch.empty_like(snapshots, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    snapshots, *ctx.options = inputs
    ctx.save_for_backward(snapshots)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    return endpoint_backward(gradient, *ctx.saved_tensors, *ctx.options), None, None, None


endpoint.register_autograd(_backward, setup_context=_setup)
