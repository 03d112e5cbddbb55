"""A learned operator on disk: operator.json says what it is, operator.safetensors its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from koopcore.files import write_whole
from koopcore.learning.checks import whole
from koopcore.learning.dictionaries.blocks import Blocks
from koopcore.learning.dictionaries.fixed import Monomials, RadialBasis
from koopcore.learning.dictionaries.layered import Layered
from koopcore.learning.dictionaries.one_layer import OneLayer
from koopcore.learning.dictionaries.protocol import Dictionary, check_dictionary
from koopcore.learning.dictionaries.state_inclusive import StateInclusive
from koopcore.learning.learned_operator import LearnedOperator
from koopcore.types import FloatArray

FORMAT = "koopcore learned operator"
VERSION = 1
KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (OneLayer, Layered, Monomials, RadialBasis, StateInclusive, Blocks)
}
DTYPES = {"F64": "<f8", "I64": "<i8"}

Tensors: TypeAlias = dict[str, npt.NDArray[Any]]

_NUMBERS = dict.fromkeys(("parameters", "operator", "readout", "shift", "scale"), "F64")
_OPTIONAL = dict.fromkeys(("input_matrix", "output_readout"), "F64")
_PART = {"parameters": "F64", "rows": "F64", "rank": "I64", "iteration": "I64"}


class Learned(Protocol):
    """A learner after ``fit``."""

    operator_: LearnedOperator


def save(learned: LearnedOperator | Learned, directory: str | Path) -> Path:
    """Write ``operator.json`` and ``operator.safetensors`` into a directory, made if need be.

    Of a learner, its ``operator_`` is saved, which is what `load` returns.
    No pickle: loading runs no code from the files. Each file appears whole or not at all, and a
    digest of both shows whether they belong together. A dictionary whose code is not koopcore's
    (`TorchDictionary`) is named, and must be passed to `load`. Raises ImportError without
    safetensors, OSError where the directory cannot be written.
    """
    operator = getattr(learned, "operator_", learned)
    if not isinstance(operator, LearnedOperator):
        raise TypeError(
            f"what is to be saved is a {type(learned).__name__}; a LearnedOperator, or a learner "
            "that has learned, is needed"
        )
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    present = {name: getattr(operator, name) for name in (*_NUMBERS, *_OPTIONAL)}
    numbers = _packed({name: array for name, array in present.items() if array is not None})
    dictionary = describe(operator.dictionary)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "dictionary": dictionary,
        "sha256": _digest(dictionary, numbers),
    }
    # The numbers first: a description is never beside numbers that are older than it is.
    write_whole(target / "operator.safetensors", lambda path: path.write_bytes(numbers))
    text = json.dumps(description, indent=2) + "\n"
    write_whole(target / "operator.json", lambda path: path.write_text(text, encoding="utf-8"))
    return target


def load(directory: str | Path, dictionary: Dictionary | None = None) -> LearnedOperator:
    """The operator of a directory written by `save`, bit for bit.

    Args:
        dictionary: the one that the operator was learned with, needed where its code is not
            koopcore's.

    Raises ValueError that names the file for one that is malformed in any way: no JSON or no
    safetensors, another format or version, keys that are missing or unknown, a dictionary that
    cannot be or is not the one passed, numbers of another dtype or shape, numbers that are not
    finite, files that do not belong together. FileNotFoundError names a file that is missing.
    """
    if dictionary is not None:
        check_dictionary("dictionary", dictionary)
    path, numbers_path = (Path(directory) / f"operator.{end}" for end in ("json", "safetensors"))
    text, data = _read(path), _read(numbers_path)
    with _naming(f"{path} is no {FORMAT}"):
        description = _description(text)
    tensors = _unpacked(numbers_path, data, _NUMBERS, _OPTIONAL)
    with _naming(f"{path} is no {FORMAT}"):
        saved = description["dictionary"]
        if dictionary is None:
            dictionary = rebuild(_bounded(saved, max(t.size for t in tensors.values())))
        if saved != json.loads(json.dumps(describe(dictionary))):
            raise ValueError(f"its dictionary is not {dictionary!r}")
    with _naming(f"{numbers_path} does not fit {path.name}"):
        learned = LearnedOperator(dictionary, **tensors)
    if description["sha256"] != _digest(saved, data):
        raise ValueError(
            f"{numbers_path} and {path.name} do not belong together: one of the two was changed or "
            "is of another operator; save the operator again"
        )
    return learned


def save_part(
    directory: str | Path, rank: int, iteration: int, parameters: FloatArray, rows: FloatArray
) -> Path:
    """Write one rank's θ_i and rows of K as ``rank-<rank>.safetensors``: what it holds alone."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"rank-{rank}.safetensors"
    part = _packed({"parameters": parameters, "rows": rows, "rank": rank, "iteration": iteration})
    write_whole(path, lambda partial: partial.write_bytes(part))
    return path


def load_parts(directory: str | Path, n_ranks: int) -> tuple[FloatArray, FloatArray]:
    """(θ, K) of the parts that ``n_ranks`` ranks saved, to go on from with ``initial``.

    Parts may be of different iterations where ranks were lost at different times; gradient steps
    go on from any of them. Raises FileNotFoundError where a rank's part is missing, ValueError that
    names the file where one is malformed or does not fit the others.
    """
    parts: list[Tensors] = []
    for rank in range(whole("n_ranks", n_ranks)):
        path = Path(directory) / f"rank-{rank}.safetensors"
        part = _unpacked(path, _read(path), _PART)
        if [tensor.ndim for tensor in part.values()] != [1, 2, 0, 0]:
            raise ValueError(f"{path} has numbers of other dimensions than a rank's part")
        if part["rank"] != rank:
            raise ValueError(f"{path} is the part of rank {part['rank']}; its name is wrong")
        parts.append(part)
        width = parts[0]["rows"].shape[1]
        if part["rows"].shape[1] != width:
            raise ValueError(
                f"{path} has rows of K of width {part['rows'].shape[1]}, rank 0 of {width}"
            )
    theta, k = (np.concatenate([part[name] for part in parts]) for name in ("parameters", "rows"))
    if k.shape[0] != k.shape[1]:
        raise ValueError(
            f"the parts of {n_ranks} ranks in {directory} have {k.shape[0]} of the {k.shape[1]} "
            "rows of K; n_ranks must be the number of ranks that learned"
        )
    return theta, k


def describe(dictionary: Any) -> dict[str, Any]:
    """A dictionary as JSON: its kind and its fields, dictionaries in it likewise."""
    name = type(dictionary).__name__
    if KINDS.get(name) is not type(dictionary):
        return {"kind": "foreign", "type": type(dictionary).__qualname__}
    description: dict[str, Any] = {"kind": name}
    for field in fields(dictionary):
        value = getattr(dictionary, field.name)
        if field.name == "inner":
            value = describe(value)
        elif field.name == "dictionaries":
            value = [describe(item) for item in value]
        description[field.name] = value
    return description


def rebuild(description: Any) -> Dictionary:
    """The dictionary of `describe`; ValueError or TypeError where it is none, or foreign."""
    if not isinstance(description, dict) or not isinstance(description.get("kind"), str):
        raise ValueError('a dictionary is described by an object with a text "kind"')
    settings = dict(description)
    kind = settings.pop("kind")
    if kind == "foreign":
        raise ValueError(
            f"its dictionary is a {settings.get('type')}, whose code is not saved; pass it as "
            "load(directory, dictionary=...)"
        )
    if kind not in KINDS:
        raise ValueError(f"dictionary kind {kind!r} is unknown; {', '.join(KINDS)} are")
    _check_keys(kind, settings, [field.name for field in fields(KINDS[kind])])
    if "inner" in settings:
        settings["inner"] = rebuild(settings["inner"])
    if "dictionaries" in settings:
        settings["dictionaries"] = [rebuild(item) for item in settings["dictionaries"]]
    dictionary: Dictionary = KINDS[kind](**settings)
    return dictionary


def _description(text: bytes) -> dict[str, Any]:
    """What operator.json says; ValueError unless it is what `save` writes, but for its contents."""
    description = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f'it has no "format": "{FORMAT}"')
    version = description.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(f"it has version {version!r}; this koopcore reads {VERSION}")
    _check_keys("it", description, ["format", "version", "dictionary", "sha256"])
    return description


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are there once each."""
    if len(dict(items)) < len(items):
        raise ValueError("a key is there twice")
    return dict(items)


def _digest(dictionary: dict[str, Any], numbers: bytes) -> str:
    """SHA-256 of what the files say, whatever the layout of the JSON."""
    text = json.dumps(dictionary, sort_keys=True).encode()
    return hashlib.sha256(text + numbers).hexdigest()


def _bounded(description: Any, most: int) -> Any:
    """``description``, unless one of its numbers exceeds the count of the numbers in the file.

    Sizes, degrees and indices cannot, and a dictionary of huge sizes would take all memory.
    """
    if isinstance(description, dict):
        for value in description.values():
            _bounded(value, most)
    elif isinstance(description, list):
        for value in description:
            _bounded(value, most)
    elif isinstance(description, int) and abs(description) > most:
        raise ValueError(f"{description} is more than the numbers that belong to it, {most}")
    return description


def _check_keys(name: str, present: Mapping[str, Any], wanted: list[str]) -> None:
    """Raise ValueError unless exactly the ``wanted`` keys are there."""
    missing = [key for key in wanted if key not in present]
    unknown = [key for key in present if key not in wanted]
    if missing or unknown:
        faults = [f"lacks {', '.join(missing)}"] if missing else []
        faults += [f"has an unknown {', '.join(map(repr, unknown))}"] if unknown else []
        raise ValueError(f"{name} {' and '.join(faults)}")


def _packed(tensors: Mapping[str, Any]) -> bytes:
    """The tensors as a safetensors file."""
    arrays = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
    data: bytes = _safetensors().numpy.save(arrays)
    return data


def _unpacked(
    path: Path, data: bytes, dtypes: Mapping[str, str], optional: Mapping[str, str] | None = None
) -> Tensors:
    """The tensors of a safetensors file; ValueError unless they have these names and dtypes."""
    try:
        tensors = dict(_safetensors().deserialize(data))
    except _safetensors().SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    dtypes = {**dtypes, **{k: v for k, v in (optional or {}).items() if k in tensors}}
    _check_keys(str(path), tensors, list(dtypes))
    arrays: Tensors = {}
    for name, dtype in dtypes.items():
        tensor = tensors[name]
        if tensor["dtype"] != dtype:
            raise ValueError(f"{path}: {name} is of {tensor['dtype']}; {dtype} is needed")
        arrays[name] = np.frombuffer(tensor["data"], DTYPES[dtype]).reshape(tensor["shape"])
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{path}: {name} is not finite")
    return arrays


@contextmanager
def _naming(file: str) -> Iterator[None]:
    """Make of what goes wrong inside a ValueError that begins with ``file``."""
    try:
        yield
    except RecursionError:
        raise ValueError(f"{file}: it is nested too deeply") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error


def _read(path: Path) -> bytes:
    """A file's bytes; errors say which file and why."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing; was it saved there?") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise ValueError(f"{path} is no file ({error.strerror}); pass save's directory") from error


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "saving and loading needs safetensors: pip install safetensors"
        ) from error
    return safetensors
