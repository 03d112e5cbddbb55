"""The companion stages as they are queued on a device: arrays there in, arrays there out.

For backends/native_cuda/backend.py. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from koopcore.backends.native_cuda.launch import KINDS, Launch, horizon_blocks
from koopcore.backends.protocol import packed_size

NOWHERE = (0, 0, 0, KINDS["float32"])  # an output array that is not there


def queue_gram(on: Launch, out: Any, side_by_side: bool) -> None:
    """G of every group, 32 groups side by side or a packed row each."""
    space = on.space(on.module.gram_space(on.plan, on.n))
    on.module.gram(
        on.window, on.groups, on.plan, on.address(out), side_by_side, space, on.wide, on.target
    )


def empty_gram(on: Launch) -> Any:
    """Room for Gram matrices, 32 groups side by side."""
    return on.empty(-(-on.part.n_groups // on.module.batch), packed_size(on.n), on.module.batch)


def gram_side_by_side(on: Launch) -> Any:
    """G of every group, as `queue_solve` reads it."""
    out = empty_gram(on)
    queue_gram(on, out, side_by_side=True)
    return out


def companion_fields(on: Launch, groups: int, columns: int) -> tuple[Any, ...]:
    """Room for the fields of `Companion`, in their order."""
    return (on.empty(groups, columns), on.integers(groups), *(on.empty(groups) for _ in range(3)))


def queue_solve(
    on: Launch, gram: Any, groups: int, n: int, affine: bool, holdout: int, noise: float
) -> tuple[Any, ...]:
    """The fields of `Companion` from Gram matrices side by side."""
    fields = companion_fields(on, groups, n - 1 - int(affine))
    space = on.space(on.module.solve_space(groups, n, on.number))
    addresses = tuple(map(on.address, fields))
    on.module.solve(
        on.address(gram), groups, n, affine, holdout, noise, addresses, space, on.target
    )
    return fields


def queue_one_pass(
    on: Launch,
    affine: bool,
    holdout: int,
    horizons: Sequence[int],
    fields: tuple[Any, ...],
    gram: int,
    out: tuple[int, ...],
    table: tuple[Any, ...],
) -> None:
    """Fields that are None are not wanted; ``gram``: where Gram matrices of deficient groups go."""
    addresses = tuple(0 if field is None else on.address(field) for field in fields)
    how = (affine, holdout, on.noise)
    for share in on.shares():
        on.module.one_pass(
            on.window,
            on.groups,
            share,
            how,
            list(horizons),
            addresses,
            gram,
            out,
            table,
            on.target,
        )


def target_of(
    on: Launch, horizons: int, out: Any, parameters: Any
) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """Where predictions go: the output array and the table of tensors, one of them empty."""
    if parameters is None:
        return on.output(out, horizons), ()
    return NOWHERE, parameters.table(on)


def queue_rollout(
    on: Launch, coefficients: Any, affine: bool, horizons: Sequence[int]
) -> tuple[Any, Any]:
    """Weights (n_horizons, n_groups, n) and growth (n_horizons, n_groups)."""
    groups, columns = coefficients.shape
    weights = on.empty(len(horizons), groups, columns + 1 + int(affine))
    growth = on.empty(len(horizons), groups)
    given = on.address(coefficients)
    for some, out in horizon_blocks(on, horizons, weights, growth):
        space = on.space(on.module.rollout_space(groups, columns, affine, max(some), on.number))
        on.module.rollout(given, groups, columns, affine, some, *out, space, on.target)
    return weights, growth


def queue_deficient(
    on: Launch,
    gram: Any,
    rank: Any,
    affine: bool,
    horizons: Sequence[int],
    weights: Any,
    growth: Any,
) -> None:
    """Weights and growth of deficient groups, into those of all groups."""
    given, how, groups = (on.address(gram), on.address(rank)), (affine, on.noise), on.part.n_groups
    for some, out in horizon_blocks(on, horizons, weights, growth):
        space = on.space(on.module.deficient_space(groups, on.n, affine, some, on.number))
        on.module.roll_deficient(on.window, on.groups, *given, *how, some, *out, space, on.target)


def queue_combine(
    on: Launch, weights: Any, out: tuple[int, ...], table: tuple[Any, ...] = ()
) -> None:
    """Predictions of all groups into an output array or a table of tensors."""
    on.module.combine(
        on.window, on.groups, on.plan, on.address(weights), len(weights), out, table, on.target
    )


def queue_combine_deficient(
    on: Launch,
    rank: Any,
    affine: bool,
    weights: Any,
    out: tuple[int, ...],
    table: tuple[Any, ...],
) -> None:
    """`queue_combine` for the groups of deficient rank."""
    on.module.combine_deficient(
        on.window,
        on.groups,
        on.address(rank),
        on.n - 1 - int(affine),
        on.address(weights),
        len(weights),
        out,
        table,
        on.target,
    )
