"""A fitted estimator on disk: dmd.json says what it is, dmd.safetensors has its numbers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore import arrays
from koopcore.dmd.algebra.dynamics import Dynamics
from koopcore.dmd.estimator import DMD, Decomposing
from koopcore.dmd.optimized import OptimizedDMD
from koopcore.dmd.series import Kind
from koopcore.files import write_whole

FORMAT, VERSION = "koopcore dmd", 1
KINDS: dict[str, type[Decomposing]] = {"DMD": DMD, "OptimizedDMD": OptimizedDMD}
FITTED = ("eigenvalues", "modes", "amplitudes", "last")
MORE = ("rank", "status", "singular_values", "residuals", "n_iter", "error", "eigenvalues_std")


def save(estimator: DMD | OptimizedDMD, directory: str | Path) -> Path:
    """Write ``dmd.json`` and ``dmd.safetensors`` into a directory, made if need be.

    No pickle: loading runs no code from the files. What is kept is the decomposition, the settings
    and names of features; a stream's moments, an index and xarray's coordinates are not. So what
    was fitted to pandas or xarray comes back as NumPy arrays, and what is predicted of a DataFrame
    as a DataFrame (torch and CuPy: as theirs, on the same device). Raises NotFittedError before
    ``fit``, TypeError for settings that JSON does not know (a random generator), ImportError
    without safetensors, OSError.
    """
    if type(estimator).__name__ not in KINDS:
        raise TypeError(f"save takes a DMD or OptimizedDMD, not a {type(estimator).__name__}")
    fitted = estimator._fitted()
    numbers = {name: arrays.host(getattr(fitted, name)) for name in FITTED}
    for name in MORE:
        value = getattr(estimator, f"_{name}", None)
        if value is not None:
            numbers[name] = np.asarray(value)
    kind = estimator._kind
    library = "numpy" if kind.library in ("pandas", "xarray") else kind.library
    settings = {name: plain(name, value) for name, value in estimator.get_params().items()}
    description = {
        "format": FORMAT,
        "version": VERSION,
        "estimator": type(estimator).__name__,
        "settings": settings,
        "lengths": list(fitted.lengths),
        "real": fitted.real,
        "features": estimator.n_features_in_,
        "feature names": [*getattr(estimator, "feature_names_in_", [])],
        "streamed": getattr(estimator, "_stream", None) is not None,
        "kind": [library, kind.dtype, kind.device, kind.systems, kind.trajectories],
    }
    data = packed(numbers)
    description["sha256"] = digest(description, data)
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    write_whole(target / "dmd.safetensors", lambda path: path.write_bytes(data))
    text = json.dumps(description, indent=2) + "\n"
    write_whole(target / "dmd.json", lambda path: path.write_text(text, encoding="utf-8"))
    return target


def load(directory: str | Path) -> Any:
    """The `DMD` or `OptimizedDMD` of a directory written by `save`, with the same numbers.

    Raises FileNotFoundError that names a missing file, ValueError that names one that is
    malformed, of another version, or does not belong to the other.
    """
    source = Path(directory)
    path, numbers_path = source / "dmd.json", source / "dmd.safetensors"
    for each in (path, numbers_path):
        if not each.is_file():
            raise FileNotFoundError(f"{each} is missing; save(estimator, directory) writes it")
    data = numbers_path.read_bytes()
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        if (description["format"], description["version"]) != (FORMAT, VERSION):
            raise ValueError("another format or version")
        if description.pop("sha256") != digest(description, data):
            raise ValueError(f"it and {numbers_path.name} do not belong together, or were changed")
        estimator = KINDS[description["estimator"]](**description["settings"])
        numbers = unpacked(data)
        library, dtype, device, systems, trajectories = description["kind"]
        estimator._kind = Kind(library, dtype, device, systems, trajectories)
        modes, last = numbers.pop("modes"), numbers.pop("last")
        if device != "cpu":
            modes, last = (estimator._kind.place(one) for one in (modes, last))
        fitted = Dynamics(
            numbers.pop("eigenvalues"),
            modes,
            numbers.pop("amplitudes"),
            description["real"],
            tuple(description["lengths"]),
            last,
        )
        estimator._conclude(fitted, numbers.pop("rank"), numbers.pop("status"))
        estimator.n_features_in_ = description["features"]
        if description["feature names"]:
            estimator.feature_names_in_ = np.array(description["feature names"], dtype=object)
        for name, value in numbers.items():
            setattr(estimator, f"_{name}", value)
        estimator._streamed = description["streamed"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no {FORMAT}: {error}") from error
    return estimator


def plain(name: str, value: Any) -> Any:
    """A setting as JSON knows it."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is {value!r}, which JSON does not know; set it to a number to save")


def digest(description: dict[str, Any], data: bytes) -> str:
    """Of both files."""
    text = json.dumps(description, sort_keys=True).encode()
    return hashlib.sha256(text + data).hexdigest()


def packed(numbers: dict[str, npt.NDArray[Any]]) -> bytes:
    """safetensors, which know no complex numbers: an axis of two, and a name with ``*``."""
    from safetensors.numpy import save as to_bytes

    plain_numbers = {}
    for name, value in numbers.items():
        value = np.ascontiguousarray(value)
        if value.dtype.kind == "c":
            part = np.float32 if value.dtype == np.complex64 else np.float64
            plain_numbers[f"{name}*"] = value.view(part).reshape(*value.shape, 2)
        else:
            plain_numbers[name] = value
    result: bytes = to_bytes(plain_numbers)
    return result


def unpacked(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of `packed`."""
    from safetensors.numpy import load as from_bytes

    result = {}
    for name, value in from_bytes(data).items():
        if name.endswith("*"):
            whole = np.complex64 if value.dtype == np.float32 else np.complex128
            result[name[:-1]] = np.ascontiguousarray(value).view(whole)[..., 0]
        else:
            result[name] = value
    return result
