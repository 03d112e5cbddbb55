"""The compiled modules, where CMake puts them, and the record of how they were built."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def build_record() -> dict[str, Any]:
    """What CMake built into this installation, with which compiler, and why not the rest.

    Returns ``{"build_type": ..., "cpu": {"built", "reason", "compiler", "instruction_sets"}}``.
    A source tree that was never built has no record; the same keys then say so.
    """
    record = resources.files(__name__).joinpath("build.json")
    if record.is_file():
        loaded: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return loaded
    reason = (
        "this source tree was not built (cmake --preset dev && cmake --build --preset dev, "
        "or pip install .)"
    )
    absent = {"built": False, "reason": reason, "compiler": "", "instruction_sets": []}
    return {"build_type": "", "cpu": absent}
