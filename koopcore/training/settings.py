"""The options of an attachment: types, meaning, defaults and checks, here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, TypedDict, get_args

from koopcore.partition.layout import Layout
from koopcore.partition.partition import Partition

Grouping: TypeAlias = Literal["network", "layers", "nodes", "weights"]
PartitionLike: TypeAlias = Grouping | Partition | Callable[[Layout], Partition]
Operator: TypeAlias = Literal["affine", "linear", "trend", "auto"]
Kind: TypeAlias = Literal["koopman", "mean", "line", "regression"]
Steps: TypeAlias = Literal["last", "mean"]
Regimes: TypeAlias = Literal["auto", "smooth", "between", "noise"]
Storage: TypeAlias = Literal["auto", "float32", "bfloat16"]
Observables: TypeAlias = Literal["weights", "weights+update"]
Moments: TypeAlias = Literal["keep", "reset", "rescale"]
Buffers: TypeAlias = Literal["predict", "reestimate", "keep"]
Patterns: TypeAlias = str | Sequence[str] | None


#: Optimizer steps per snapshot of a ``schedule`` without ``stride``.
SCHEDULED = 6
#: Under noise nothing is fitted: the window's mean and its regression line reach over nine
#: snapshots so many steps apart.
NOISE_STRIDE = 40
#: Strides from which on a snapshot is the mean over all of it, unless ``record`` says otherwise.
LONG = 8


class Options(TypedDict, total=False):
    """Keyword arguments of :func:`koopcore.attach`: names and types of :class:`Settings`."""

    regime: Regimes
    window: int
    stride: int | None
    partition: PartitionLike
    operator: Operator
    rank: int | None
    ridge: float
    backend: str | None
    max_horizon: float
    ladder: float | None
    warmup: int | Literal["auto"]
    schedule: tuple[int, int, int] | None
    candidates: Kind | Sequence[Kind]
    slack: float
    margin: float
    record: int | Steps | None
    storage: Storage
    observables: Observables
    moments: Moments
    buffers: Buffers
    averages: float | Sequence[float]
    include: Patterns
    exclude: Patterns


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to record, how to fit, how far to look, and what becomes of the rest.

    None of them has to be given: stride, record and whether to jump at all follow the trajectory.

    Recording:
        regime: "auto" finds out, again and again, whether the trajectory is smooth, between, or
            noise, in which the weights are never touched (:class:`RegimeJudge` says how). Any of
            the three names is taken as given.
        window: snapshots per fit, at least 3.
        stride: optimizer steps per snapshot; None: short where windows predict their end, longer
            where they do not.
        record: a snapshot is the "last" parameters of its stride, the mean of the last so many
            steps (a number), or the "mean" over all of it. Even numbers remove the flip from step
            to step that high rates cause. Each costs one read. None: the mean of two, of all from a
            stride of 8 on.
        storage: of snapshots: "auto" (float64 for float64 models, else float32), "float32", or
            "bfloat16" (differences to the newest; half the memory).
        observables: "weights", or "weights+update": the optimizer's normalized update beside them.
        include, exclude: fnmatch patterns on parameter names, one or several.
        schedule: ``(t1, t2, T)`` in optimizer steps: record from t1 to t2, jump T steps once, as in
            the paper; replaces window, warmup and adaptation. Without ``loss`` unconditional.
        warmup: steps before the first window, or "auto": until hindcast error and eigenvalues say
            that the trajectory can be predicted.

    Fitting:
        partition: "network", "layers", "nodes", "weights", a :class:`Partition` over the layout
            aligned to 32, or a function ``Layout -> Partition``.
        operator: "affine", "linear", "trend" or "auto", what :func:`koopcore.fit` calls its model.
        rank, ridge, backend: as there.

    Searching:
        candidates: one or several of "koopman", "mean" (of the window), "line" (straight through
            its ends), "regression" (least-squares line, from where it is now on; for noisy
            windows). Those named after "koopman" are tried only where it does not beat the present
            loss.
        max_horizon: farthest jump, in windows.
        ladder: factor between the horizons tried, from 1/4 window up; beyond 16 windows only while
            the end is the best. None: 2 for optimizers with Adam's moments (their trajectories bend
            earlier), else 4.
        slack: among candidates with a loss of at most ``L* + slack (L - L*)``, ``L*`` the lowest
            and ``L`` the present one, the longest horizon wins; 0 takes the lowest.
        margin: share of the loss by which a winner must lie below it; for noisy losses.

    After a jump:
        moments: of the optimizer: "keep", "reset", or "rescale" (:func:`carry_over` says why keep).
        buffers: "predict" those that training changes, "reestimate" batch-norm statistics by one
            more run of ``loss``, or "keep".
        averages: decays per step of the exponential averages kept beside the weights for
            :meth:`Attached.averaged`, one or several, restarted at each jump; () keeps none.
    """

    regime: Regimes = "auto"
    window: int = 9
    stride: int | None = None
    partition: PartitionLike = "network"
    operator: Operator = "affine"
    rank: int | None = None
    ridge: float = 0.0
    backend: str | None = None
    max_horizon: float = 256
    ladder: float | None = None
    warmup: int | Literal["auto"] = 0
    schedule: tuple[int, int, int] | None = None
    candidates: Kind | Sequence[Kind] = ("koopman", "line")
    slack: float = 0.5
    margin: float = 0.0
    record: int | Steps | None = None
    storage: Storage = "auto"
    observables: Observables = "weights"
    moments: Moments = "keep"
    buffers: Buffers = "predict"
    averages: float | Sequence[float] = (0.98, 0.99, 0.995, 0.999)
    include: Patterns = None
    exclude: Patterns = None

    @classmethod
    def of(cls, options: Options) -> Settings:
        """Return checked settings; TypeError for a name that is no option: which there are."""
        names = [field.name for field in fields(cls)]
        for name in options:
            if name not in names:
                near = get_close_matches(name, names, n=1)
                meant = f" (did you mean {near[0]!r}?)" if near else ""
                raise TypeError(
                    f"attach has no option {name!r}{meant}; there are loss, residuals, masters, "
                    f"generators, {', '.join(names)}"
                )
        return cls(**options)

    def __post_init__(self) -> None:
        one_of("regime", self.regime, get_args(Regimes))
        self._set("window", whole("window", self.window, 3))
        if self.stride is not None:
            self._set("stride", whole("stride", self.stride, 1, ", or None"))
        if self.warmup != "auto":
            self._set("warmup", whole("warmup", self.warmup, 0, ' or "auto"'))
        self._set("record", self._checked_record())
        self._set("candidates", several("candidates", self.candidates, get_args(Kind)))
        if self.schedule is not None:
            self._set("schedule", self._checked_schedule(self.schedule))
        if not 0 < number("max_horizon", self.max_horizon) < math.inf:
            raise ValueError(f"max_horizon is {self.max_horizon!r} windows; give a number > 0")
        if self.ladder is not None and not 1 < number("ladder", self.ladder) <= 16:
            raise ValueError(
                f"ladder is {self.ladder!r}; give a factor between horizons in (1, 16], or None"
            )
        share("slack", self.slack, "a share of the gain in [0, 1)")
        share("margin", self.margin, "a share of the loss in [0, 1)")
        for name in ("include", "exclude"):
            patterns(name, getattr(self, name))
        self._set("averages", self._checked_averages())
        one_of("operator", self.operator, get_args(Operator))
        one_of("storage", self.storage, get_args(Storage))
        one_of("observables", self.observables, get_args(Observables))
        one_of("moments", self.moments, get_args(Moments))
        one_of("buffers", self.buffers, get_args(Buffers))
        if not isinstance(self.partition, Partition) and not callable(self.partition):
            one_of(
                "partition",
                self.partition,
                get_args(Grouping),
                ", a Partition, or a function of the layout such as "
                "lambda l: Partition.quasi_nodes(l, 64)",
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the one way to tidy what a frozen class was given

    def _checked_averages(self) -> tuple[float, ...]:
        given: Any = self.averages
        several = isinstance(given, Sequence) and not isinstance(given, str)
        decays = tuple(given) if several else (given,)
        for decay in decays:
            share("averages", decay, "decays in [0, 1), ascending, or () for none")
        if list(decays) != sorted(set(decays)):
            raise ValueError(f"averages is {given!r}; give each decay once, ascending")
        return tuple(float(decay) for decay in decays)

    @property
    def decays(self) -> tuple[float, ...]:
        """Of the averages, ascending."""
        return self._checked_averages()

    def _checked_record(self) -> int | Steps | None:
        if self.record is None:
            return None
        if isinstance(self.record, str):
            one_of("record", self.record, get_args(Steps), ", or a number of steps averaged")
            return self.record
        steps = whole("record", self.record, 1, ' (steps averaged), "last" or "mean"')
        if self.stride is not None and steps > self.stride:
            raise ValueError(
                f"record is {steps} steps, more than the {self.stride} of stride; a snapshot "
                'averages steps of its own stride: give at most that, or "mean" for all of them'
            )
        return steps

    def _checked_schedule(self, schedule: Any) -> tuple[int, int, int]:
        if isinstance(schedule, str) or not hasattr(schedule, "__len__") or len(schedule) != 3:
            raise ValueError(f"schedule is {schedule!r}; give (t1, t2, T) in optimizer steps")
        t1 = whole("t1 of schedule", schedule[0], 1)
        stride = self.stride or SCHEDULED
        t2 = whole("t2 of schedule", schedule[1], t1 + 3 * stride, " (t1 + three strides)")
        return t1, t2, whole("T of schedule", schedule[2], 1)

    def averaged_steps(self, stride: int, usual: Steps | None = None) -> tuple[int, ...]:
        """Steps of each stride that a snapshot averages, counted back from its last.

        ``"mean"`` takes eight or more, evenly spaced: neighbours are so alike that more would cost
        and not help. The spacing is odd, since high rates flip the weights from step to step.
        Without ``record`` ``usual`` counts, and under noise, at a stride of 40, one has to do.
        """
        record = self.record
        if record is None:
            record = usual
        if record is None:
            record = 2 if stride < LONG else "mean" if stride < NOISE_STRIDE else "last"
        if isinstance(record, str):
            spacing = max(1, stride // 8)
            spacing -= spacing % 2 == 0
            return (0,) if record == "last" else tuple(range(0, stride, spacing))
        return tuple(range(min(record, stride)))

    def identity(self) -> dict[str, Any]:
        """Return the options that a saved state depends on."""
        names = "regime window stride schedule record storage observables averages buffers".split()
        return {name: getattr(self, name) for name in names}


def whole(name: str, value: Any, least: int, also: str = "") -> int:
    """Return ``value`` as an int; ValueError unless it is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is {value!r}; give a whole number >= {least}{also}")
    return int(value)


def number(name: str, value: Any) -> float:
    """Return ``value`` as a float; ValueError unless it is a real number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}; give a number")
    return float(value)


def share(name: str, value: Any, accepted: str) -> None:
    """Raise ValueError unless ``value`` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise ValueError(f"{name} is {value!r}; give {accepted}")


def patterns(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is a pattern, several, or None."""
    several = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(several, Sequence) or not all(isinstance(one, str) for one in several):
        raise TypeError(
            f'{name} is {value!r}; give a pattern of parameter names such as "encoder.*", or a '
            "list of them"
        )


def one_of(name: str, value: Any, accepted: Sequence[str], also: str = "") -> None:
    """Raise ValueError unless ``value`` is one of the accepted words."""
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(f"{name} is {value!r}; accepted are {', '.join(accepted)}{also}")


def several(name: str, value: Any, accepted: Sequence[str]) -> tuple[str, ...]:
    """Return one word or several as a tuple; ValueError unless all are accepted, each once."""
    words = (value,) if isinstance(value, str) else value
    if not isinstance(words, Sequence):  # a set has no order, and the order is part of the answer
        raise ValueError(
            f"{name} is {value!r}; give one of {', '.join(accepted)}, or a list of them in the "
            "order in which they are tried"
        )
    for word in words:
        if not isinstance(word, str) or word not in accepted:
            numbers = " (how far they reach: max_horizon=, ladder=)" * (not isinstance(word, str))
            raise ValueError(
                f"{name} is {value!r}, and {word!r} is no kind of them; give one or several of the "
                f"names {', '.join(accepted)}{numbers}"
            )
    if not words:
        raise ValueError(f"{name} is empty; choose from {', '.join(accepted)}")
    if len(set(words)) < len(words):
        raise ValueError(f"{name} is {value!r}; name each only once")
    return tuple(words)
