"""Two runs beside each other: which of the engine's cases became slower, wrong, or went missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from koopcore.lab.bench.results import rows_of

TOLERANCE = 1.25
"""A case slower by this factor is a regression. Best times repeat within 1.1 on a quiet machine."""


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
