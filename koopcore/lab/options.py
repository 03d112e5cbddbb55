"""The names that options of the laboratory accept; importing them does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

OptimizerName = Literal["adagrad", "adadelta", "adam"]
"""The optimizers of Dogra & Redman 2020."""

PartitionName = Literal["network", "layers", "nodes", "weights"]
"""Which parameters of the oscillator network share an operator."""

ModelName = Literal["auto", "affine", "linear", "trend"]
"""As in `koopcore.fit`."""

Precision = Literal["float32", "float64"]
"""Floating-point type of training and snapshots."""

Schedule = Literal["short", "paper"]
"""Of table 1: a window of a few strided snapshots, or the paper's 10,000, one each step."""


def check_names(option: str, given: Sequence[str], names: Any) -> None:
    """Raise ValueError unless some are given and every one is of the `Literal` ``names``."""
    accepted = ", ".join(get_args(names))
    if not given:
        raise ValueError(f"no {option} is given; accepted are {accepted}")
    for name in given:
        if name not in get_args(names):
            raise ValueError(f"{option} is {name!r}; accepted are {accepted}")
