"""Snapshots of groups of equal size as (n_rows, n_groups, m) arrays, and the way back."""

from __future__ import annotations

from koopcore.backends.numba.compiled import kernel


@kernel
def gather_range(memory, rows, step, pointer, start, length, stride, low, high, out):
    """Groups low .. high - 1 of ``out`` (n_rows, n_groups, m), as float64."""
    for i in range(len(rows)):
        for group in range(low, high):
            column = 0
            for segment in range(pointer[group], pointer[group + 1]):
                place = rows[i] + start[segment] * step
                for _ in range(length[segment]):
                    out[i, group, column] = memory[place]
                    place += stride[segment] * step
                    column += 1


@kernel
def scatter_range(values, pointer, start, length, stride, low, high, memory, rows, step, limit):
    """The way back: values (n_rows, n_groups, m), clipped to ±limit; nan stays nan."""
    for i in range(len(rows)):
        for group in range(low, high):
            column = 0
            for segment in range(pointer[group], pointer[group + 1]):
                place = rows[i] + start[segment] * step
                for _ in range(length[segment]):
                    value = values[i, group, column]
                    if value > limit:
                        value = limit
                    elif value < -limit:
                        value = -limit
                    memory[place] = value
                    place += stride[segment] * step
                    column += 1
