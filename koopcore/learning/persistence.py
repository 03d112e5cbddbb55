"""A learned operator on disk: operator.json says what it is, operator.safetensors its numbers."""

from __future__ import annotations

import json
import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from koopcore.learning.dictionaries.blocks import Blocks
from koopcore.learning.dictionaries.fixed import Monomials, RadialBasis
from koopcore.learning.dictionaries.layered import Layered
from koopcore.learning.dictionaries.one_layer import OneLayer
from koopcore.learning.dictionaries.protocol import Dictionary
from koopcore.learning.dictionaries.state_inclusive import StateInclusive
from koopcore.learning.learned_operator import LearnedOperator
from koopcore.types import FloatArray

FORMAT = "koopcore learned operator"
VERSION = 1
KINDS = {c.__name__: c for c in (OneLayer, Layered, Monomials, RadialBasis, StateInclusive, Blocks)}
_TENSORS = ("parameters", "operator", "readout", "shift", "scale")


def save(learned: LearnedOperator, directory: str | Path) -> Path:
    """Write ``operator.json`` and ``operator.safetensors`` into a directory, made if need be.

    No pickle: loading runs no code from the files. Each file appears whole or not at all. A
    dictionary of own code (`TorchDictionary`) is named, and must be given again to `load`.
    Raises ImportError without safetensors, OSError where the directory cannot be written.
    """
    safetensors = _safetensors()
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(getattr(learned, name)) for name in _TENSORS}
    described = {
        "format": FORMAT,
        "version": VERSION,
        "dictionary": describe(learned.dictionary),
    }
    text = json.dumps(described, indent=2) + "\n"
    # The numbers first: a description is only ever found beside numbers that are complete.
    _replace(target / "operator.safetensors", safetensors.save(tensors))
    _replace(target / "operator.json", text.encode())
    return target


def load(directory: str | Path, dictionary: Dictionary | None = None) -> LearnedOperator:
    """The operator of a directory written by `save`, bit for bit.

    dictionary: needed for a dictionary of own code, and then used as given. Raises ValueError for
    files of another format or version, or whose numbers do not fit their description.
    """
    source = Path(directory)
    described = json.loads((source / "operator.json").read_text(encoding="utf-8"))
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise ValueError(f"{source / 'operator.json'} is no {FORMAT}")
    if described.get("version") != VERSION:
        raise ValueError(
            f"{source} has version {described.get('version')}; this koopcore reads {VERSION}"
        )
    tensors = _safetensors().load((source / "operator.safetensors").read_bytes())
    missing = [name for name in _TENSORS if name not in tensors]
    if missing:
        raise ValueError(f"{source / 'operator.safetensors'} lacks {', '.join(missing)}")
    found = rebuild(described["dictionary"]) if dictionary is None else dictionary
    n, h, p = found.n_states, found.n_features, found.n_parameters
    for name, shape in zip(_TENSORS, ((p,), (h, h), (n, h), (n,), (n,)), strict=True):
        if tensors[name].shape != shape:
            raise ValueError(
                f"{source}: {name} has shape {tensors[name].shape}, its dictionary needs {shape}"
            )
    return LearnedOperator(found, **{name: tensors[name] for name in _TENSORS})


def save_part(
    directory: str | Path, rank: int, iteration: int, parameters: FloatArray, rows: FloatArray
) -> Path:
    """Write one rank's θ_i and rows of K as ``rank-<rank>.safetensors``: what it holds alone."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {
        "parameters": np.ascontiguousarray(parameters),
        "rows": np.ascontiguousarray(rows),
        "iteration": np.array(iteration),
    }
    path = target / f"rank-{rank}.safetensors"
    _replace(path, _safetensors().save(tensors))
    return path


def load_parts(directory: str | Path, n_ranks: int) -> tuple[FloatArray, FloatArray]:
    """(θ, K) of the parts that ``n_ranks`` ranks saved, to go on from with ``initial``.

    Parts may be of different iterations where ranks were lost at different times; gradient steps
    go on from any of them. Raises FileNotFoundError where a rank's part is missing.
    """
    parts = [
        _safetensors().load((Path(directory) / f"rank-{rank}.safetensors").read_bytes())
        for rank in range(n_ranks)
    ]
    return (
        np.concatenate([part["parameters"] for part in parts]),
        np.concatenate([part["rows"] for part in parts]),
    )


def describe(dictionary: Any) -> dict[str, Any]:
    """A dictionary as JSON: its kind and its fields, dictionaries in it likewise."""
    if type(dictionary).__name__ not in KINDS or not is_dataclass(dictionary):
        return {"kind": "own", "type": type(dictionary).__qualname__}
    described: dict[str, Any] = {"kind": type(dictionary).__name__}
    for field in fields(dictionary):
        value = getattr(dictionary, field.name)
        if field.name == "inner":
            value = describe(value)
        elif field.name == "dictionaries":
            value = [describe(item) for item in value]
        described[field.name] = value
    return described


def rebuild(described: dict[str, Any]) -> Dictionary:
    """The dictionary of `describe`; ValueError where it is of own code or an unknown kind."""
    given = dict(described)
    kind = given.pop("kind", None)
    if kind == "own":
        raise ValueError(
            f"the operator's dictionary is a {given.get('type')}, whose code is not saved; "
            "pass it as load(directory, dictionary=...)"
        )
    if kind not in KINDS:
        raise ValueError(f"dictionary kind {kind!r} is unknown; {', '.join(KINDS)} are")
    if "inner" in given:
        given["inner"] = rebuild(given["inner"])
    if "dictionaries" in given:
        given["dictionaries"] = tuple(rebuild(item) for item in given["dictionaries"])
    found: Dictionary = KINDS[kind](**given)
    return found


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "saving and loading needs safetensors: pip install safetensors"
        ) from error
    return safetensors.numpy


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
