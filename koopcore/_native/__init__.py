"""The compiled modules, where CMake puts them, and the record of how they were built."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def build_record() -> dict[str, Any]:
    """What CMake built into this installation, with which compilers, and why not the rest.

    Returns ``{"build_type": ..., "cpu": {"built", "reason", "compiler", "instruction_sets"},
    "cuda": {"built", "reason", "compiler", "architectures"}}``. A source tree that was never
    built, or was built before a module existed, has no record of it; the same keys then say so.
    """
    reason = (
        "this source tree was not built (cmake --preset dev && cmake --build --preset dev, "
        "or pip install .)"
    )
    absent = {"built": False, "reason": reason, "compiler": ""}
    record: dict[str, Any] = {
        "build_type": "",
        "cpu": {**absent, "instruction_sets": []},
        "cuda": {**absent, "architectures": []},
    }
    file = resources.files(__name__).joinpath("build.json")
    if file.is_file():
        record.update(json.loads(file.read_text(encoding="utf-8")))
    return record
