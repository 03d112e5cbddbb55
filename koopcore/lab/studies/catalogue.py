"""All studies, in the order in which they run."""

from __future__ import annotations

from fnmatch import fnmatch

from koopcore.lab.bench.study import Study
from koopcore.lab.studies import (
    backpropagation,
    capture,
    goals,
    memory,
    roofline,
    scaling,
    several_horizons,
    shapes,
    threads,
)
from koopcore.lab.studies.peers import study as peers

STUDIES = (
    roofline.ENDPOINT,
    peers.STUDY,
    roofline.STAGE_BY_STAGE,
    *scaling.STUDIES,
    several_horizons.STUDY,
    threads.STUDY,
    backpropagation.STUDY,
    capture.STUDY,
    memory.STUDY,
    shapes.STUDY,
    goals.STUDY,
)


def studies(only: str = "*") -> list[Study]:
    """The studies whose name matches a pattern; ValueError with all names if none does.

    ``*`` leaves out those that run by name only.
    """
    matching = [study for study in STUDIES if fnmatch(study.name, only)]
    if only == "*":
        matching = [study for study in matching if not study.by_name]
    if not matching:
        names = ", ".join(study.name for study in STUDIES)
        raise ValueError(f"only is {only!r} and matches no study; studies are {names}")
    return matching
