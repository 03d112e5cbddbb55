"""The companion stages as they are queued on a device: arrays there in, arrays there out.

For backends/native_cuda/backend.py. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from koopcore.backends.native_cuda.launch import KINDS, Launch, horizon_blocks
from koopcore.backends.protocol import packed_size

NOWHERE = (0, 0, 0, KINDS["float32"])  # an output array that is not there


def queue_gram(on: Launch, out: int, side_by_side: bool) -> None:
    """G of every group at ``out``, 32 groups side by side or a packed row each."""
    space = on.space(on.module.gram_space(on.plan, on.n))
    on.module.gram(on.window, on.groups, on.plan, out, side_by_side, space, on.wide, on.target)


def gram_numbers(on: Launch) -> int:
    """Numbers of Gram matrices, 32 groups side by side."""
    batch = int(on.module.batch)
    return -(-on.part.n_groups // batch) * packed_size(on.n) * batch


def companion_fields(on: Launch, groups: int, columns: int) -> tuple[Any, ...]:
    """Room for the fields of `Companion`, in their order."""
    return (on.empty(groups, columns), on.integers(groups), *(on.empty(groups) for _ in range(3)))


def queue_solve(
    on: Launch, gram: int, groups: int, n: int, affine: bool, holdout: int, noise: float
) -> tuple[Any, ...]:
    """The fields of `Companion` from Gram matrices side by side at ``gram``."""
    fields = companion_fields(on, groups, n - 1 - int(affine))
    space = on.space(on.module.solve_space(groups, n, on.number))
    addresses = tuple(map(on.address, fields))
    on.module.solve(gram, groups, n, affine, holdout, noise, addresses, space, on.target)
    return fields


class Room(NamedTuple):
    """Where everything lies that an endpoint needs between its launches: one piece of memory.

    Bytes from its beginning. Work space is of one launch after another, and so shared.
    """

    size: int  # numbers of float64
    gram: int
    coefficients: int
    fields: tuple[int, int, int]  # residual, condition, hindcast
    weights: int
    growth: int
    rank: int
    space: int
    blocks: list[tuple[list[int], int, int]]  # horizons of a launch, their weights and growth

    @classmethod
    def of(cls, on: Launch, affine: bool, horizons: Sequence[int]) -> Room:
        """The same for every window of a partition; made once and then looked up."""
        known = on.uploaded.rooms
        key = (on.n, affine, *horizons)
        room: Room | None = known.get(key)
        if room is None:
            if len(known) > 64:  # horizons of a search, each once
                known.clear()
            room = known[key] = cls._made(on, affine, horizons)
        return room

    @classmethod
    def _made(cls, on: Launch, affine: bool, horizons: Sequence[int]) -> Room:
        module, groups, n = on.module, on.part.n_groups, on.n
        columns, most = n - 1 - int(affine), int(module.most_horizons)
        places, at = [], 0
        sizes = [gram_numbers(on), groups * columns, groups, groups, groups]
        sizes += [len(horizons) * groups * n, len(horizons) * groups, groups]
        for size in sizes:
            places.append(8 * at)
            at += -(-size // 32) * 32  # every part begins at a multiple of 256 bytes
        gram, coefficients, residual, condition, hindcast, weights, growth, rank = places
        blocks = []
        space = max(module.gram_space(on.plan, n), module.solve_space(groups, n, on.number))
        for low in range(0, len(horizons), most):
            some = list(horizons[low : low + most])
            blocks.append((some, weights + 8 * low * groups * n, growth + 8 * low * groups))
            rolling = module.rollout_space(groups, columns, affine, max(some), on.number)
            projecting = module.deficient_space(groups, n, affine, some, on.number)
            space = max(space, rolling, projecting)
        fields = (residual, condition, hindcast)
        return cls(at + space, gram, coefficients, fields, weights, growth, rank, 8 * at, blocks)


def queue_stages(
    on: Launch,
    affine: bool,
    horizons: Sequence[int],
    rank: int,
    out: tuple[int, ...],
    table: tuple[Any, ...],
) -> None:
    """Gram matrices, fits, rollouts and predictions: five launches, up to seven with large groups.

    rank: where ranks go; 0 for nowhere.
    """
    module, groups, target, part = on.module, on.groups, on.target, on.part
    room = Room.of(on, affine, horizons)
    at = on.space(room.size)
    ranks = rank or at + room.rank
    gram, coefficients, space = at + room.gram, at + room.coefficients, at + room.space
    residual, condition, hindcast = room.fields
    module.gram(on.window, groups, on.plan, gram, True, space, on.wide, target)
    fields = (coefficients, ranks, at + residual, at + condition, at + hindcast)
    module.solve(gram, part.n_groups, on.n, affine, 0, on.noise, fields, space, target)
    columns = on.n - 1 - int(affine)
    for some, weights, growth in room.blocks:
        to = at + weights, at + growth
        module.rollout(coefficients, part.n_groups, columns, affine, some, *to, space, target)
        module.roll_deficient(
            on.window, groups, gram, ranks, affine, on.noise, some, *to, space, target
        )
    module.combine(on.window, groups, on.plan, at + room.weights, len(horizons), out, table, target)


def queue_single_pass(
    on: Launch,
    affine: bool,
    horizons: Sequence[int],
    rank: int,
    out: tuple[int, ...],
    table: tuple[Any, ...],
) -> None:
    """One launch for groups of similar size, and two for what is deficient among all."""
    module, groups, target = on.module, on.groups, on.target
    room = Room.of(on, affine, horizons)
    at = on.space(room.size)
    ranks = rank or at + room.rank
    gram, weights = at + room.gram, at + room.weights
    queue_one_pass(on, affine, 0, horizons, (0, ranks, 0, 0, 0), gram, out, table)
    for some, first, growth in room.blocks:
        to = at + first, at + growth, at + room.space
        module.roll_deficient(on.window, groups, gram, ranks, affine, on.noise, some, *to, target)
    columns = on.n - 1 - int(affine)
    module.combine_deficient(
        on.window, groups, ranks, columns, weights, len(horizons), out, table, target
    )


def queue_one_pass(
    on: Launch,
    affine: bool,
    holdout: int,
    horizons: Sequence[int],
    fields: tuple[int, ...],
    gram: int,
    out: tuple[int, ...],
    table: tuple[Any, ...],
) -> None:
    """Fields at 0 are not wanted; ``gram``: where Gram matrices of deficient groups go."""
    how, asked = (affine, holdout, on.noise), list(horizons)
    for share in on.shares():
        on.module.one_pass(
            on.window, on.groups, share, how, asked, fields, gram, out, table, on.target
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


def queue_combine(
    on: Launch, weights: Any, out: tuple[int, ...], table: tuple[Any, ...] = ()
) -> None:
    """Predictions of all groups into an output array or a table of tensors."""
    on.module.combine(
        on.window, on.groups, on.plan, on.address(weights), len(weights), out, table, on.target
    )
