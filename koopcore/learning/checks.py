"""What learning accepts: numbers and arrays, or an error that names what was given."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.types import FloatArray


def whole(name: str, number: object, least: int = 1) -> int:
    """``number`` as an int >= ``least``; TypeError or ValueError otherwise."""
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
        raise TypeError(f"{name} is {number!r}; a whole number >= {least} is needed")
    if number < least:
        raise ValueError(f"{name} is {number}; a whole number >= {least} is needed")
    return int(number)


def not_negative(name: str, number: object) -> float:
    """``number`` as a finite float >= 0; TypeError or ValueError otherwise."""
    value = _real(name, number, "a finite number >= 0")
    if not 0.0 <= value < np.inf:
        raise ValueError(f"{name} is {number}; a finite number >= 0 is needed")
    return value


def positive(name: str, number: object) -> float:
    """``number`` as a finite float > 0; TypeError or ValueError otherwise."""
    value = _real(name, number, "a finite number > 0")
    if not 0.0 < value < np.inf:
        raise ValueError(f"{name} is {number}; a finite number > 0 is needed")
    return value


def positive_seconds(name: str, number: object) -> float:
    """``number`` as a time > 0, of which infinity is one; TypeError or ValueError otherwise."""
    value = _real(name, number, "seconds > 0")
    if not value > 0.0:
        raise ValueError(f"{name} is {number}; seconds > 0 are needed")
    return value


def nothing_more(learner: object, more: Mapping[str, object]) -> None:
    """TypeError for arguments of ``fit`` that a learner does not have, with who has them."""
    if not more:
        return
    others = {"u": "inputs", "outputs": "outputs", "sample_weight": "weights"}
    what = [others[name] for name in more if name in others]
    hint = (
        f": {' and '.join(what)} are taken by VariableProjectionLearner.fit(X, u=…, outputs=…, "
        "sample_weight=…)"
        if what
        else ""
    )
    raise TypeError(f"{type(learner).__name__}.fit takes no {', '.join(more)}{hint}")


def truth(name: str, value: object) -> bool:
    """``value`` if it is True or False; TypeError otherwise."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}; True or False is needed")
    return bool(value)


def real_array(name: str, value: object) -> npt.NDArray[Any]:
    """``value`` as a NumPy array of real numbers; shared memory where it is one already.

    Of a torch tensor on the CPU it is the values: outside autograd, with a pending negation done.
    Raises TypeError for numbers that are not real (complex, bool, text), masked arrays and tensors
    on another device, ValueError for nested sequences that are no rectangle.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = _of_tensor(name, value, torch)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; fill or leave out what is masked")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be made an array of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} is of {array.dtype}; real numbers are needed")
    return array


def finite_array(name: str, value: object) -> FloatArray:
    """A float64 copy of real numbers, by rows; ValueError where one is not finite."""
    with np.errstate(over="ignore"):  # of wider floats
        array = np.array(real_array(name, value), dtype=np.float64, order="C")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place = ", ".join(map(str, bad[0]))
        raise ValueError(f"{name} is not finite: {array[tuple(bad[0])]} at [{place}]")
    return array


def _of_tensor(name: str, tensor: Any, torch: Any) -> Any:
    if tensor.device.type != "cpu":
        raise TypeError(f"{name} is on {tensor.device}; learning runs on the CPU: pass .cpu()")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} is a {tensor.layout} tensor; a dense one is needed")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype in (torch.bfloat16, torch.float16):  # NumPy knows no bfloat16
        tensor = tensor.to(torch.float64)
    return tensor.numpy()


def _real(name: str, number: object, wanted: str) -> float:
    real = isinstance(number, (int, float, np.integer, np.floating))
    if isinstance(number, bool) or not real:
        raise TypeError(f"{name} is {number!r}; {wanted} is needed")
    try:
        return float(number)  # type: ignore[arg-type]
    except OverflowError:
        raise ValueError(f"{name} is too large; {wanted} is needed") from None
