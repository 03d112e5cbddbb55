"""Results of a run as JSON, with machine and versions; and two runs beside each other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from koopcore.files import write_whole
from koopcore.lab.bench.machine import describe
from koopcore.lab.bench.study import Row, Size, Study

_NULL = {"x": math.nan, "pace": math.nan, "error": math.nan, "bound": math.inf}
"""What null stands for: JSON has neither NaN nor infinity."""

TOLERANCE = 1.25
"""A case slower by this factor is a regression. Best times repeat within 1.1 on a quiet machine."""


class Results:
    """The studies of one file; a study that is run again replaces its earlier rows."""

    def __init__(self, path: Path, size: Size) -> None:
        """Read the file if it is there. Raises ValueError for another kind of file or size."""
        self.path, self.size = path, size
        self.studies: dict[str, dict[str, Any]] = {}
        self._unfinished: dict[str, dict[str, Any]] = {}
        if path.exists():
            earlier = load(path)
            if earlier["size"] == size.value:
                self.studies = earlier["studies"]
                self._unfinished = earlier.get("unfinished", {})

    def unfinished(self, study: Study) -> list[Row]:
        """Rows of the races that an interrupted run of this software here has finished."""
        entry = self._unfinished.get(study.name)
        return rows_of(entry) if entry is not None and entry["on"] == _software() else []

    def keep(self, study: Study, rows: Sequence[Row]) -> None:
        """Write down the finished races of a study that goes on."""
        plain = [_plain(asdict(row)) for row in rows]
        self._unfinished[study.name] = {"on": _software(), "rows": plain}
        self.write()

    def add(self, study: Study, rows: Sequence[Row]) -> None:
        """Add or replace one study, and write the whole file."""
        summary = study.summary(rows)
        self._unfinished.pop(study.name, None)
        self.studies[study.name] = {
            "question": study.question,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": describe(),
            "rows": [_plain(asdict(row)) for row in rows],
            "powers": {name: power._asdict() for name, power in summary.powers.items()},
            "shares": [
                {**_plain(share._asdict()), "roof": _known(share.roof)} for share in summary.shares
            ],
            "claims": [{**_plain(claim._asdict()), "met": claim.met} for claim in summary.claims],
            "notes": summary.notes,
        }
        self.write()

    def write(self) -> None:
        contents = {**self.head(), "studies": self.studies}
        if self._unfinished:
            contents["unfinished"] = self._unfinished
        text = json.dumps(contents, indent=1, allow_nan=False)
        write_whole(self.path, lambda path: path.write_text(text + "\n", encoding="utf-8"))

    def head(self) -> dict[str, Any]:
        quick = " --quick" if self.size is Size.quick else ""
        return {"command": f"koopcore bench{quick}", "size": self.size.value}

    def rows(self, study: str) -> list[Row]:
        return rows_of(self.studies[study])


def _software() -> dict[str, Any]:
    """What two halves of one run must have in common."""
    return {name: value for name, value in describe().items() if name != "load_average"}


def load(path: Path) -> dict[str, Any]:
    """The contents of a file that ``koopcore bench`` wrote; ValueError for any other."""
    try:
        contents: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        Size(contents["size"])
        for study in contents["studies"].values():
            rows_of(study)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{path} holds no results of koopcore bench; give a JSON file that it wrote"
        ) from None
    return contents


def rows_of(study: Mapping[str, Any]) -> list[Row]:
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
        name: _known(value) if isinstance(value, float) else value for name, value in entry.items()
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Change(NamedTuple):
    """One case in both runs.

    ratio: its time now over its time then, both in units of the race's loop of multiply-adds, so
    that a slower clock is no regression; NaN where either has no time. reason: what is the matter;
    empty if nothing is.
    """

    study: str
    race: str
    case: str
    before: float | None
    now: float | None
    ratio: float
    reason: str


def compare(
    before: Mapping[str, Any], now: Mapping[str, Any], tolerance: float = TOLERANCE
) -> list[Change]:
    """Changes of all engine cases that both have, the worst first.

    before, now: contents of result files. Raises ValueError for runs of different sizes, other
    processors, or nothing in common.
    """
    if before["size"] != now["size"]:
        raise ValueError(
            f"the earlier run is {before['size']}, this one is {now['size']}; compare runs of one "
            "size (with or without --quick)"
        )
    changes = []
    for name in before["studies"].keys() & now["studies"].keys():
        then, this = before["studies"][name], now["studies"][name]
        processors = {study["machine"]["processor"] for study in (then, this)}
        if len(processors) > 1:
            raise ValueError(
                f"study {name} ran on {' and on '.join(sorted(processors))}; ratios of times need "
                "one machine"
            )
        earlier = {(row.race, row.case): row for row in rows_of(then) if row.engine}
        for row in rows_of(this):
            old = earlier.get((row.race, row.case))
            if old is None or not row.engine:
                continue
            ratio, reason = float("nan"), ""
            if row.seconds is not None and old.seconds is not None:
                ratio = (row.seconds / row.pace) / (old.seconds / old.pace)
                if ratio > tolerance:
                    reason = f"slower by {ratio:.2f}"
            elif old.seconds is not None:
                reason = f"missing: {row.missing}" if row.missing else f"wrong: {row.error:.2g}"
            changes.append(
                Change(name, row.race, row.case, old.seconds, row.seconds, ratio, reason)
            )
    if not changes:
        raise ValueError("the earlier run has no case in common with this one")
    return sorted(changes, key=lambda c: (not c.reason, -c.ratio if c.ratio == c.ratio else 0.0))
