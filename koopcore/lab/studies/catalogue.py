"""All studies, in the order in which they run."""

from __future__ import annotations

from fnmatch import fnmatch
from importlib import import_module

from koopcore.lab.bench.study import Study

MODULES = (
    "endpoint",
    "peers",
    "roofline",
    "parameters",
    "groups",
    "group_size",
    "window",
    "horizon",
    "partitions",
    "several_horizons",
    "threads",
    "backpropagation",
    "capture",
    "memory",
)


def studies(only: str = "*") -> list[Study]:
    """The studies whose name matches a pattern; ValueError with all names if none does."""
    every = [import_module(f"koopcore.lab.studies.{module}").STUDY for module in MODULES]
    chosen = [study for study in every if fnmatch(study.name, only)]
    if not chosen:
        names = ", ".join(study.name for study in every)
        raise ValueError(f"only is {only!r} and matches no study; studies are {names}")
    return chosen
