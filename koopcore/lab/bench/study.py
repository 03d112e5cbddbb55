"""What a study is: a question, cases that are timed and checked, what follows from the times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from koopcore.lab.bench.powers import Power

if TYPE_CHECKING:
    from matplotlib.axes import Axes

P = ParamSpec("P")
T = TypeVar("T")


class Size(str, Enum):
    """How much of a study to run: everything, a minute for all studies, or each case once, tiny."""

    full = "full"
    quick = "quick"
    once = "once"


class Case(NamedTuple):
    """One thing to time. The cases of one race take turns, so that a slow spell meets them all."""

    race: str
    name: str
    x: float = float("nan")  # what the study varies
    options: Any = None  # what `Study.build` needs to know besides


@dataclass(frozen=True)
class Job:
    """A case ready to run.

    call   : what is timed; its result goes to ``error``.
    error  : how wrong the result is, as a share of the true movement where it is a prediction.
    bound  : the largest error with which a time is reported at all.
    scale  : times are multiplied by it, where only a part of the work is done.
    figures: what the study needs to know besides the time: bytes, flops; a call may add to them.
    before : runs untimed before every call, to put memory or other threads in a certain state.
    most   : the most calls that are timed; a slow case needs no hundred repetitions.
    engine : whether koopcore does the work; not for peers, probes and what else it stands beside.
    """

    call: Callable[[], Any]
    error: Callable[[Any], float]
    bound: float
    scale: float = 1.0
    figures: dict[str, float] = field(default_factory=dict)
    before: Callable[[], object] | None = None
    most: int = 200
    engine: bool = True


INSTALL = 'pip install "koopcore[bench]"'


class Unavailable(Exception):
    """A case cannot run here; the message says why, and what would make it run."""


@dataclass
class Row:
    """What became of one case: a time, or the reason why there is none.

    seconds: the best time, multiplied by the job's scale; None where the result is wrong or the
        case cannot run here. median: the same of the median time. rounds: calls timed.
    pace   : best time of a fixed loop of multiply-adds during the race: the clock of the machine.
    error  : of the result; bound: the most that is accepted. missing: why the case did not run.
    engine : see `Job`.
    """

    race: str
    case: str
    x: float = float("nan")
    seconds: float | None = None
    median: float | None = None
    rounds: int = 0
    pace: float = float("nan")
    error: float = float("nan")
    bound: float = float("nan")
    missing: str = ""
    engine: bool = True
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def wrong(self) -> bool:
        """The case ran, and its result is not good enough for its time to be believed."""
        return not self.missing and not self.error <= self.bound


class Claim(NamedTuple):
    """A figure with a target that arithmetic allows: ``value`` at most (or at least) ``limit``."""

    text: str
    value: float
    limit: float
    at_most: bool

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit


class Share(NamedTuple):
    """What a job makes of the machine: its work per second, as shares of both roofs.

    flops: floating-point operations, of what multiply-adds in registers reach. bytes: read and
    written, of what reading (or writing) alone reaches. Neither can be above one for long, and the
    larger is the share of the roof: what is missing to one could be gained at most.
    """

    text: str
    flops: float
    bytes: float

    @property
    def roof(self) -> float:
        return max(self.flops, self.bytes)


@dataclass(frozen=True)
class Summary:
    """What a study concludes: exponents, shares of the roof, claims, notes for the reader."""

    powers: dict[str, Power] = field(default_factory=dict)
    shares: list[Share] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Study:
    """One question, and how it is answered.

    name, question, x_label: for tables and plots. cases(size): what will be run, without doing
    any work. build(case): its data and call; raises `Unavailable`. summary(rows): from the rows
    of one run. draw(axes, rows): the plot. share: of the usual time that a case is given, where
    there are hundreds of cases. by_name: it takes so long that it runs only when its name is given.
    """

    name: str
    question: str
    x_label: str
    cases: Callable[[Size], Sequence[Case]]
    build: Callable[[Case], Job]
    summary: Callable[[Sequence[Row]], Summary]
    draw: Callable[[Axes, Sequence[Row]], None]
    share: float = 1.0
    by_name: bool = False


def seconds_of(rows: Sequence[Row], race: str, case: str) -> float:
    """The best time of a case, NaN where there is none: no claim is met by a ratio with it."""
    for row in rows:
        if (row.race, row.case) == (race, case) and row.seconds is not None:
            return row.seconds
    return float("nan")


def races_of(rows: Sequence[Row]) -> list[str]:
    """The races in the order in which they ran."""
    return list(dict.fromkeys(row.race for row in rows))


def series(rows: Sequence[Row], race: str) -> tuple[list[float], list[float]]:
    """x and best seconds of the cases of a race that have both."""
    points = [
        (row.x, row.seconds)
        for row in rows
        if row.race == race and row.seconds is not None and row.x == row.x
    ]
    return [x for x, _ in points], [seconds for _, seconds in points]


def spread(values: Sequence[float | None], count: int) -> float:
    """Largest over smallest of ``count`` values; NaN if any is missing or not a number."""
    known = [value for value in values if value is not None and value == value]
    return max(known) / min(known) if len(known) == count else float("nan")


_caches: list[Any] = []


def shared(function: Callable[P, T]) -> Callable[P, T]:
    """Make once what the cases of a race share: the last result stays until `forget`.

    Or until other arguments come.
    """
    cached = lru_cache(maxsize=1)(function)
    _caches.append(cached)
    return cached  # type: ignore[return-value]


def forget() -> None:
    """Release what every `shared` function holds: snapshots may be gigabytes."""
    for cached in _caches:
        cached.cache_clear()
