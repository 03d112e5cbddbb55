"""The only file that tells NumPy, torch and CuPy apart: a host view in, the same kind out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

ACCEPTED = "a NumPy array, a torch tensor or a CuPy array of float32 or float64"


class ArrayView(NamedTuple):
    """Someone's array, looked at without a copy."""

    device: str  # "cpu" or "cuda"
    array: npt.NDArray[Any]  # shares the caller's memory (on the CPU)
    restore: Callable[[npt.NDArray[Any]], Any]  # a result, as the kind of array that came in


def view(value: Any, name: str) -> ArrayView:
    """``value`` as an `ArrayView`; a TypeError that says what is accepted for anything else."""
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        if value.dtype.char not in "fd":
            _check_dtype(value.dtype.name, name)
        if not value.dtype.isnative:
            raise TypeError(f"{name} is stored in the other byte order ({value.dtype}); convert it")
        plain = value if type(value) is np.ndarray else np.asarray(value)  # a matrix indexes oddly
        return ArrayView("cpu", plain, _as_it_is)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        _check_dtype(str(value.dtype).removeprefix("torch."), name)
        if value.layout != torch.strided:
            raise TypeError(f"{name} is a {value.layout} tensor; a dense one is needed")
        if value.device.type == "cpu":
            return ArrayView("cpu", value.detach().numpy(), torch.from_numpy)
        return ArrayView(value.device.type, value, _as_it_is)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        _check_dtype(value.dtype.name, name)
        return ArrayView("cuda", value, _as_it_is)
    raise TypeError(f"{name} is a {type(value).__name__}; {ACCEPTED} is needed")


def _as_it_is(result: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return result


def _check_dtype(dtype: str, name: str) -> None:
    if dtype not in ("float32", "float64"):
        raise TypeError(
            f"{name} has dtype {dtype}; float32 and float64 are accepted (convert it first: "
            "predictions come back in the dtype of the snapshots)"
        )
