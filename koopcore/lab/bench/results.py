"""Results of a run as JSON: rows, exponents, claims of every study, with machine and versions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from koopcore.files import write_whole
from koopcore.lab.bench.machine import describe
from koopcore.lab.bench.study import Row, Size, Study

_NULL = {"x": math.nan, "pace": math.nan, "error": math.nan, "bound": math.inf}
"""What null stands for: JSON has neither NaN nor infinity."""


class Results:
    """The studies of one file; a study that is run again replaces its earlier rows."""

    def __init__(self, path: Path, size: Size) -> None:
        """Read the file if it is there. Raises ValueError for another kind of file or size."""
        self.path, self.size = path, size
        self.studies: dict[str, dict[str, Any]] = {}
        if path.exists():
            earlier = load(path)
            if earlier["size"] == size.value:
                self.studies = earlier["studies"]

    def keep(self, study: Study, rows: Sequence[Row]) -> None:
        """Add or replace one study, and write the whole file."""
        summary = study.summary(rows)
        self.studies[study.name] = {
            "question": study.question,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": describe(),
            "rows": [_plain(asdict(row)) for row in rows],
            "powers": {name: power._asdict() for name, power in summary.powers.items()},
            "claims": [{**_plain(claim._asdict()), "met": claim.met} for claim in summary.claims],
            "notes": summary.notes,
        }
        self.write()

    def write(self) -> None:
        text = json.dumps({**self.head(), "studies": self.studies}, indent=1, allow_nan=False)
        write_whole(self.path, lambda path: path.write_text(text + "\n", encoding="utf-8"))

    def head(self) -> dict[str, Any]:
        quick = " --quick" if self.size is Size.quick else ""
        return {"command": f"koopcore bench{quick}", "size": self.size.value}

    def rows(self, study: str) -> list[Row]:
        return rows_of(self.studies[study])


def load(path: Path) -> dict[str, Any]:
    """The file's contents; ValueError, saying what to give, if ``koopcore bench`` wrote it not."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        Size(found["size"])
        for study in found["studies"].values():
            rows_of(study)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{path} holds no results of koopcore bench; give a JSON file that it wrote"
        ) from None
    contents: dict[str, Any] = found
    return contents


def rows_of(study: dict[str, Any]) -> list[Row]:
    """The rows of a study as it stands in the file."""
    names = {field.name for field in fields(Row)}
    rows = []
    for entry in study["rows"]:
        known = {name: value for name, value in entry.items() if name in names}
        for name, value in _NULL.items():
            if known.get(name) is None:
                known[name] = value
        rows.append(Row(**known))
    return rows


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity as null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in entry.items()
    }
