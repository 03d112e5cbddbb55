"""The engine's stages on CUDA devices: kernels over groups; the arithmetic is in csrc/cuda.

Mirrors backends/reference.py stage by stage. Snapshots are CUDA tensors of torch or CuPy arrays;
kernels are queued on the current stream of their device and nothing waits for them, but for small
matrices that come back as NumPy arrays. Small matrices may come in as NumPy arrays as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore._native import build_record
from koopcore.arrays import Resident
from koopcore.backends.composed import Composed
from koopcore.backends.native_cuda.launch import (
    Launch,
    divided,
    horizon_blocks,
    one_pass_columns,
)
from koopcore.backends.native_cuda.queue import (
    NOWHERE,
    companion_fields,
    gram_numbers,
    queue_combine,
    queue_gram,
    queue_one_pass,
    queue_rollout,
    queue_single_pass,
    queue_solve,
    queue_stages,
    target_of,
)
from koopcore.backends.protocol import Ahead, Companion, Projection, Snapshots, packed_size
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray


class NativeCuda(Composed):
    """The engine's stages as CUDA kernels; ``module`` is koopcore._native._cuda."""

    name = "native_cuda"
    device = "cuda"

    def __init__(self, module: Any) -> None:
        self._cuda = module

    def gram(self, snapshots: Snapshots, part: Partition) -> FloatArray:
        on = Launch(self._cuda, snapshots, part, exact=True)  # `project` knows of no other noise
        out = on.empty(part.n_groups, packed_size(on.n))
        queue_gram(on, on.address(out), side_by_side=False)
        return on.memory.download(out)

    def feature_gram(
        self, snapshots: Snapshots, part: Partition, affine: bool, stops: Sequence[int]
    ) -> FloatArray:
        on = Launch(self._cuda, snapshots, part)
        m, groups = int(part.sizes[0]), part.n_groups
        out = on.empty(len(stops), groups, 2, m, m)
        space = on.space(self._cuda.feature_gram_space(groups, m, on.number))
        self._cuda.feature_gram(
            on.window, on.groups, m, affine, list(stops), on.address(out), space, on.target
        )
        return on.memory.download(out)

    def solve(self, gram: FloatArray, n: int, affine: bool, holdout: int) -> Companion:
        on = Launch.anywhere(self._cuda)
        batches = -(-len(gram) // self._cuda.batch)
        side_by_side = np.zeros((batches * self._cuda.batch, gram.shape[1]))
        side_by_side[: len(gram)] = gram
        turned = side_by_side.reshape(batches, self._cuda.batch, gram.shape[1]).transpose(0, 2, 1)
        device = on.upload(np.ascontiguousarray(turned))
        fields = queue_solve(on, on.address(device), len(gram), n, affine, holdout, 1.0)
        return Companion(*(on.memory.download(field) for field in fields))

    def gram_solve(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        holdout: int,
        ahead: Ahead | None = None,
    ) -> Companion:
        """``solve(gram(snapshots, part), …)`` on the device; fields stay there until looked at.

        With ``ahead`` also rollout and combine; nothing waits in between. In one pass over the
        snapshots where every group fits the shared memory of a block.
        """
        on = Launch(self._cuda, snapshots, part)
        horizons = [] if ahead is None else list(ahead.horizons)
        out = NOWHERE if ahead is None else on.output(ahead.out, len(horizons))
        if divided(on, horizons)[1] is None:
            fields = companion_fields(on, part.n_groups, on.n - 1 - int(affine))
            addresses = tuple(map(on.address, fields))
            queue_one_pass(on, affine, holdout, horizons, addresses, 0, out, ())
        else:
            gram = on.space(gram_numbers(on))
            queue_gram(on, gram, side_by_side=True)
            fields = queue_solve(on, gram, part.n_groups, on.n, affine, holdout, on.noise)
            if horizons:
                queue_combine(on, queue_rollout(on, fields[0], affine, horizons)[0], out)
        return Companion(*(Resident(field, on.memory) for field in fields))  # type: ignore[arg-type]

    def project(
        self, a: FloatArray, h: FloatArray, g: FloatArray, rank: int | None, ridge: float, raw: bool
    ) -> Projection:
        """K = Vᵀ H V, z = Vᵀ g, V Vᵀ = A⁺; one group per thread, whatever their ranks."""
        on = Launch.anywhere(self._cuda)
        groups, size = g.shape
        operator, whitener = on.empty(groups, size, size), on.empty(groups, size, size)
        start, ranks, condition = on.empty(groups, size), on.integers(groups), on.empty(groups)
        arrays = (*map(on.upload, (a, h, g)), operator, whitener, start, ranks, condition)
        space = on.space(self._cuda.project_space(groups, size, on.number))
        if groups and size:
            addresses = tuple(map(on.address, arrays))
            self._cuda.project(groups, size, rank or 0, ridge, raw, addresses, space, on.target)
        made = [
            on.memory.download(array) for array in (operator, whitener, start, ranks, condition)
        ]
        width = int(made[3].max(initial=0)) if size else 0
        return Projection(
            made[0][:, :width, :width], made[1][:, :, :width], made[2][:, :width], made[3], made[4]
        )

    def rollout(
        self, coefficients: FloatArray, affine: bool, horizons: Sequence[int]
    ) -> tuple[FloatArray, FloatArray]:
        on = Launch.anywhere(self._cuda, coefficients)
        weights, growth = queue_rollout(on, on.upload(coefficients), affine, horizons)
        return on.returned(coefficients, weights), on.returned(coefficients, growth)

    def rollout_dense(
        self, operator: FloatArray, start: FloatArray, affine: bool, horizons: Sequence[int]
    ) -> tuple[FloatArray, FloatArray]:
        on = Launch.anywhere(self._cuda)
        groups, size = start.shape
        states, growth = on.empty(len(horizons), groups, size), on.empty(len(horizons), groups)
        k, z = on.upload(operator), on.upload(start)
        given = on.address(k), on.address(z)
        for some, out in horizon_blocks(on, horizons, states, growth):
            space = on.space(self._cuda.rollout_dense_space(groups, size, some, on.number))
            self._cuda.rollout_dense(*given, groups, size, affine, some, *out, space, on.target)
        return on.memory.download(states), on.memory.download(growth)

    def combine(
        self, snapshots: Snapshots, part: Partition, weights: FloatArray, out: npt.NDArray[Any]
    ) -> None:
        on = Launch(self._cuda, snapshots, part)
        queue_combine(on, on.upload(weights), on.output(out, len(weights)))

    def gather(self, snapshots: Snapshots, part: Partition, rows: Sequence[int]) -> FloatArray:
        order = snapshots.order[np.asarray(rows, dtype=np.int64)]
        on = Launch(self._cuda, Snapshots(snapshots.array, order), part)
        m = int(part.sizes[0])
        out = on.empty(len(rows), part.n_groups, m)
        self._cuda.gather(on.window, on.groups, m, on.address(out), on.target)
        return on.memory.download(out)

    def scatter(self, part: Partition, values: FloatArray, out: npt.NDArray[Any]) -> None:
        on = Launch(self._cuda, Snapshots(out, np.zeros(1, dtype=np.int64)), part)
        device = on.upload(values)
        self._cuda.scatter(
            on.groups,
            values.shape[2],
            on.address(device),
            len(values),
            on.output(out, len(values)),
            on.target,
        )

    def endpoint(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        horizons: Sequence[int],
        out: npt.NDArray[Any] | None,
        parameters: Any = None,
    ) -> bool:
        """x_{n+T} of every group into ``out`` (n_horizons, size), or straight into ``parameters``.

        Fit, rollout and prediction of groups with m >= n - 1, without one word from the host:
        groups of deficient rank are projected on the device, from a second pass over their
        snapshots where the Gram matrix resolves too little of them; those whose rollout diverges
        or whose snapshots are not finite keep their last snapshot. A CUDA graph can record it.
        A motion that has come down below 1e-9 of the window has fewer digits than `predict` gives.
        ``parameters``: a `tensors.TensorTable`, for a single horizon. Cost: one read of the
        snapshots of groups that fit the shared memory of a block, two of the others.
        """
        on = Launch(self._cuda, snapshots, part)
        target, table = target_of(on, len(horizons), out, parameters)
        in_one_pass, others = divided(on, horizons)
        if others is not None:
            queue_stages(on.of(others), affine, horizons, 0, target, table)
        if in_one_pass is not None:
            queue_single_pass(on.of(in_one_pass), affine, horizons, 0, target, table)
        return True

    def fits_one_pass(self, snapshots: Snapshots, part: Partition, horizons: Sequence[int]) -> bool:
        """Whether `endpoint_in_one_pass` takes all groups, small ones too."""
        return self._fits_one_pass(Launch(self._cuda, snapshots, part), horizons)

    def _fits_one_pass(self, on: Launch, horizons: Sequence[int]) -> bool:
        widest = max((share[2] for share in on.shares()), default=0)
        return widest <= one_pass_columns(on, horizons)

    def endpoint_in_one_pass(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        horizons: Sequence[int],
        out: npt.NDArray[Any] | None,
        parameters: Any = None,
    ) -> Any:
        """`endpoint` by one kernel, for groups that fit the shared memory of a block.

        Returns the rank of every group, on the device. Raises ValueError where `fits_one_pass` is
        false. Cost: one read of the snapshots; those of
        deficient groups are read once more.
        """
        on = Launch(self._cuda, snapshots, part)
        if not self._fits_one_pass(on, horizons):
            raise ValueError("not all groups fit one pass, or it is not for this device or window")
        target, table = target_of(on, len(horizons), out, parameters)
        rank = on.integers(part.n_groups)
        queue_single_pass(on, affine, horizons, on.address(rank), target, table)
        return rank

    def endpoint_in_stages(
        self,
        snapshots: Snapshots,
        part: Partition,
        affine: bool,
        horizons: Sequence[int],
        out: npt.NDArray[Any] | None,
        parameters: Any = None,
    ) -> Any:
        """`endpoint` by one kernel per stage, for groups of any size and windows of any length.

        Returns the rank of every group, on the device. Cost: two reads of the snapshots, the second
        one from the cache where they fit.
        """
        on = Launch(self._cuda, snapshots, part)
        target, table = target_of(on, len(horizons), out, parameters)
        rank = on.integers(part.n_groups)
        queue_stages(on, affine, horizons, on.address(rank), target, table)
        return rank


def load() -> NativeCuda:
    """The backend; ImportError with the reason: not built, no driver, or no device."""
    try:
        module = import_module("koopcore._native._cuda")
    except ImportError as error:
        reason = build_record()["cuda"]["reason"] or f"the module does not load ({error})"
        raise ImportError(reason) from error
    problem = module.device_problem()
    if problem:
        raise ImportError(problem)
    return NativeCuda(module)
