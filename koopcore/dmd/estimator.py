"""`DMD`, in scikit-learn's conventions and PyDMD's words; what `OptimizedDMD` shares with it."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import _check_feature_names, _check_n_features, check_is_fitted

from koopcore import arrays, checks, spectrum
from koopcore.backends import backend_for
from koopcore.backends.threads import thread_count
from koopcore.dmd.algebra import dynamics
from koopcore.dmd.algebra.columns import Columns, columns_of, columns_of_moments, without_noise
from koopcore.dmd.algebra.decomposition import (
    DIVERGED,
    EMPTY,
    GOOD,
    Decomposition,
    decompose,
    rank_rule,
)
from koopcore.dmd.algebra.dynamics import Dynamics
from koopcore.dmd.algebra.eigen import ComplexArray
from koopcore.dmd.checks import (
    Rank,
    check_choice,
    check_flag,
    check_number,
    check_rank,
    check_whole,
)
from koopcore.dmd.series import Kind, Series, read
from koopcore.dmd.streaming import Stream
from koopcore.types import FloatArray, IntArray

CHUNK, CACHED = 2**26, 2**20
"""Numbers of small matrices that are held at once, on a device and on the CPU: there 8 MB."""

Part = TypeVar("Part")
Amplitudes: TypeAlias = Literal["optimal", "first"]

GROWTH = 1e3
"""A forecast that grows past this, beside the data, is warned of."""


class UnstableForecastWarning(UserWarning):
    """A forecast grows far beyond the data."""


class LowerRankWarning(UserWarning):
    """Systems have fewer modes than ``rank`` asked for."""


class Decomposing(TransformerMixin, BaseEstimator):
    """What `DMD` and `OptimizedDMD` share: data in, attributes, forecasts.

    Without an axis of systems every attribute and result loses its first axis.
    """

    rank: Rank
    dt: float
    _dynamics: Dynamics
    _rank: IntArray
    _status: IntArray
    _kind: Kind

    @abstractmethod
    def _decompose(self, series: Series) -> None:
        """Set what is fitted, after the last error: also of snapshots that are not finite."""

    def fit(self, X: Any, y: object = None) -> Any:
        """Decompose one series, a batch of systems, or trajectories of one system.

        Args:
            X: (time, features); (systems, time, features), every system on its own, all at
                once; a list of trajectories (time, features) of one system, of any lengths.
                NumPy, torch, CuPy, pandas or xarray; real or complex. Rows are time (PyDMD has
                columns: pass the transpose).

        Raises TypeError or ValueError before any work for what cannot be decomposed, NaN with its
        place. A system that fails numerically has a ``status_``, and disturbs no other.
        """
        self._check()
        series = read(X, finite=False)
        series.warn_if_uneven()
        _check_feature_names(self, X if series.kind.library == "pandas" else None, reset=True)
        return self._fit(series)

    def fit_windows(self, series: Series, window: int, step: int) -> Any:
        """See `koopcore.dmd.sliding`."""
        self._check()
        return self._fit(series.windows(window, step))

    def _fit(self, series: Series) -> Any:
        self._decompose(series)
        self._warn_of_rank(series.kind.systems)
        self.n_features_in_ = int(series.array.shape[2])
        self._kind = series.kind
        self._stream: Stream | None = None
        self._streamed = False
        return self

    @abstractmethod
    def _check(self) -> None:
        """Raise for settings that cannot work."""

    # -- what was fitted ------------------------------------------------------------------------

    def _fitted(self) -> Dynamics:
        check_is_fitted(self)
        return self._dynamics

    def _conclude(self, fitted: Dynamics, rank: IntArray, status: IntArray) -> None:
        """Keep what every decomposition has; no forecast of it has diverged yet."""
        self._dynamics, self._rank, self._status = fitted, rank, status
        self._diverged = np.zeros(len(fitted.last), dtype=np.bool_)

    def _warn_of_rank(self, systems: bool) -> None:
        """One warning for all systems that have fewer modes than were asked for; not for none."""
        asked = check_rank(self.rank)
        if not isinstance(asked, int):
            return
        constant = int(getattr(self, "model", "linear") == "affine")
        rank = self._rank - constant
        fewer = np.flatnonzero((rank < asked) & (rank > 0))
        if not fewer.size:
            return
        least = int(fewer[np.argmin(rank[fewer])])
        which = f" in {fewer.size} of {len(rank)} systems, fewest in system {least}"
        warnings.warn(
            f"rank={asked} was asked for, and {rank[least]} of the data's directions "
            f"{'is' if rank[least] == 1 else 'are'} more than rounding"
            f"{which if systems else ''}: rank_ says how many modes there are. There are at most "
            "as many directions as features times delays: more delays show more",
            LowerRankWarning,
            stacklevel=4,
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_dynamics")

    def _attribute(self, name: str) -> Any:
        if not self.__sklearn_is_fitted__():
            fewer = " with enough rows" if getattr(self, "_stream", None) is not None else ""
            raise AttributeError(f"what is fitted exists once fit(X) was called{fewer}")
        self._fitted()
        return getattr(self, f"_{name.rstrip('_')}")

    @property
    def eigenvalues_(self) -> Any:
        """λ per snapshot (systems, r) complex, falling |λ|, NaN past a system's rank."""
        self._attribute("kind")
        return self._kind.give_small(self._fitted().eigenvalues)

    @property
    def modes_(self) -> Any:
        """φ (systems, features, r) complex, of unit length; zero past a system's rank."""
        self._attribute("kind")
        modes = self._fitted().modes
        if isinstance(modes, np.ndarray):
            return self._kind.give_small(modes)
        return modes if self._kind.systems else modes[0]

    @property
    def amplitudes_(self) -> Any:
        """b (systems, r) complex, of the first snapshot (t = 0); (trajectories, r) of a list.

        After `partial_fit`, which keeps no snapshots, of the newest.
        """
        self._attribute("kind")
        values = self._fitted().amplitudes
        return values if self._kind.trajectories else self._kind.give_small(values)

    @property
    def growth_rates_(self) -> Any:
        """log|λ|/dt (systems, r), in 1/unit of dt."""
        self._attribute("kind")
        return self._kind.give_small(spectrum.growth_rates(self._fitted().eigenvalues, self.dt))

    @property
    def frequencies_(self) -> Any:
        """arg λ/(2π dt) (systems, r), in cycles per unit of dt."""
        self._attribute("kind")
        return self._kind.give_small(spectrum.frequencies(self._fitted().eigenvalues, self.dt))

    @property
    def rank_(self) -> Any:
        """Modes that every system has: (systems,) int, or one int."""
        self._attribute("rank")
        return self._rank if self._kind.systems else int(self._rank[0])

    @property
    def status_(self) -> Any:
        """A key of `STATUS` for every system: (systems,) int, or one int."""
        self._attribute("status")
        lost = self._diverged if len(self._diverged) == len(self._status) else self._diverged.any()
        status = np.where(lost, DIVERGED, self._status)
        return status if self._kind.systems else int(status[0])

    # -- what follows from it -------------------------------------------------------------------

    def predict(self, X: Any, horizon: int | None = None) -> Any:
        """The state some snapshots later: after the fitted series, or after every row of X.

        Args:
            X: a horizon T >= 1, or several: x_{n+T} after the fitted series, (features,), or
                (len(X), features); with systems, or trajectories, one more axis in front. Or
                states (time, features), (systems, time, features): for every row the state
                ``horizon`` (1) snapshots later, as scikit-learn has it, in the shape of X. A
                row's state is what its modes say of it and of the ``delays`` - 1 rows before
                it, as far as there are any.

        Warns `UnstableForecastWarning` where the forecast grows far beyond the data; past 1e30
        times the last state is kept, and ``status_`` says so: never infinity.

        Cost: m r per state. Not for horizons far beyond the data: growth rates that are wrong by
        δ make it wrong by a factor of exp(δ T).
        """
        if horizon is None and is_horizon(X):
            horizons, single = checks.check_horizons(X)
            states = self._ahead(horizons)
            return self._give_ahead(states[:, 0] if single else states, horizons)
        if np.ndim(X) == 0:
            raise TypeError(
                f"predict({X!r}): a whole number of snapshots >= 1, several of them, or states "
                "(time, features) are needed"
            )
        here = self._states_of(X)
        steps = 1 if horizon is None else check_whole("horizon", horizon, 1)
        current = self._fitted()
        b = self._coordinates(here)  # (S, n, r)
        with np.errstate(all="ignore"):
            factors = (b * current.powers_of[:, None] ** steps).swapaxes(1, 2)
        return here.kind.give(
            dynamics.combined(current.modes, np.nan_to_num(factors), current.real)
        )

    def forecast(self, X: Any = None, horizon: int = 1) -> Any:
        """All states after the last row of X: (horizon, features), (systems, horizon, features).

        Args:
            X: (time, features) with at least ``delays`` rows (`OptimizedDMD`: as many as say
                what each mode does, one mostly), or one such series per system; None continues
                what was fitted (for several trajectories: (trajectories, horizon, features)).

        An index of pandas, or the times of xarray, go on where they are evenly spaced.

        Warnings, cost and limits as of `predict`.
        """
        steps = np.arange(1, check_whole("horizon", horizon, 1) + 1)
        if X is None:
            return self._give_ahead(self._ahead(steps.tolist()), steps.tolist())
        here = self._states_of(X)
        n, needed = int(here.array.shape[1]), self._rows_needed()
        if n < needed:
            raise ValueError(f"X has {n} rows; the last {needed} (delays) are needed to go on")
        fitted = self._fitted()
        b = self._coordinates(here.last(min(n, self._delays())))[:, -1]
        ahead = Dynamics(fitted.eigenvalues, fitted.modes, b, fitted.real, (1,), here.array[:, -1])
        states, growth = ahead.ahead(steps)
        self._warn(growth[:, -1], horizon)
        return here.kind.give(states, steps.tolist())

    def reconstruct(self) -> Any:
        """Σ_j φ_j b_j λ_jᵗ at the fitted snapshots, in their shape and kind; a list for a list."""
        fitted = self._fitted()
        if self._streamed:
            raise ValueError("a stream is not kept, so it cannot be reconstructed; see forecast()")
        if not self._kind.trajectories:
            return self._kind.give(fitted.states(np.arange(fitted.lengths[0])))
        return [
            self._kind.give(
                Dynamics(
                    fitted.eigenvalues, fitted.modes, b[None], fitted.real, (n,), fitted.last
                ).states(np.arange(n))
            )
            for b, n in zip(fitted.amplitudes, fitted.lengths, strict=True)
        ]

    def score(self, X: Any, y: object = None) -> float:
        """R² of one-step prediction along X, over all systems: 1 is exact, 0 the mean state."""
        here = self._states_of(X)
        n = int(here.array.shape[1])
        if n < 2:
            raise ValueError(f"X has {n} row (n_samples = {n}); a score needs 2: one step")
        ahead = arrays.host(self._one_step(here))
        true = arrays.host(here.array)[:, 1:]
        error = float((np.abs(ahead[:, :-1] - true) ** 2).sum())
        spread = float((np.abs(true - true.mean(axis=1, keepdims=True)) ** 2).sum())
        return 1.0 - error / spread if spread else float(error == 0.0)

    def transform(self, X: Any) -> Any:
        """Coordinates of every row on `components_`: (time, rank), (systems, time, rank)."""
        here = self._states_of(X)
        basis = self._basis()
        coordinates = arrays.host(here.array) @ basis.conj()
        return here.kind.give_small(coordinates)

    @property
    def components_(self) -> Any:
        """Orthonormal basis (systems, rank, features) of the modes; real for real data."""
        self._attribute("kind")
        return self._kind.give_small(self._basis().swapaxes(1, 2))

    def get_feature_names_out(self, input_features: object = None) -> npt.NDArray[Any]:
        """dmd0, dmd1, …: what scikit-learn calls the columns of `transform`."""
        count = self._basis().shape[2]
        return np.array([f"{type(self).__name__.lower()}{k}" for k in range(count)], dtype=object)

    def growth(self, horizon: int | Sequence[int]) -> Any:
        """Growth of the forecast, ‖b λ^{n-1+T}‖/‖b λ^{n-1}‖: (systems,), or (systems, horizons)."""
        horizons, single = checks.check_horizons(horizon)
        values = self._fitted().growth(horizons)
        values = values[:, 0] if single else values
        return values if self._kind.systems or self._kind.trajectories else values[0]

    # -- inside ---------------------------------------------------------------------------------

    def _delays(self) -> int:
        """Rows that a state is seen in: itself and those before it."""
        return 1

    def _rows_needed(self) -> int:
        """Rows without which a series cannot be gone on with."""
        return self._delays()

    def _states_of(self, X: Any) -> Series:
        """X, checked against what was fitted."""
        fitted = self._fitted()
        here = read(X)
        _check_feature_names(self, X if here.kind.library == "pandas" else None, reset=False)
        _check_n_features(self, arrays.host(here.array[0]), reset=False)
        systems = len(fitted.eigenvalues)
        if int(here.array.shape[0]) not in (1, systems) and systems > 1:
            raise ValueError(
                f"X has {int(here.array.shape[0])} systems, {systems} were fitted: give one series "
                "for each, or one series (time, features) for all"
            )
        if here.is_complex and fitted.real:
            raise ValueError("X is complex, and real series were fitted")
        if systems > 1 and not here.kind.systems:  # one series for all, each of which has its own
            return here._replace(kind=here.kind.of_systems())
        return here

    def _coordinates(self, here: Series) -> ComplexArray:
        """b (S, n, r) of every row on the modes, from the rows that delays reach back to."""
        fitted = self._fitted()
        return dynamics.of_rows(here.array, fitted.modes, fitted.eigenvalues, self._delays())

    def _one_step(self, here: Series) -> Any:
        fitted = self._fitted()
        factors = (self._coordinates(here) * fitted.powers_of[:, None]).swapaxes(1, 2)
        return dynamics.combined(fitted.modes, factors, fitted.real)

    def _ahead(self, horizons: list[int]) -> Any:
        """States (S, T, m) after the fitted series, and a warning where they grow."""
        fitted = self._fitted()
        if self._kind.trajectories:
            each = [
                Dynamics(
                    fitted.eigenvalues,
                    fitted.modes,
                    fitted.amplitudes[k : k + 1],
                    fitted.real,
                    fitted.lengths[k : k + 1],
                    fitted.last[k : k + 1],
                ).ahead(np.asarray(horizons))
                for k in range(len(fitted.lengths))
            ]
            growth = np.concatenate([one[1] for one in each])
            states: Any = np.concatenate([arrays.host(one[0]) for one in each])
        else:
            states, growth = fitted.ahead(np.asarray(horizons))
        latest = int(np.argmax(horizons))
        self._warn(growth[:, latest], horizons[latest])
        self._diverged[:] = ~(growth[:, latest] <= dynamics.LIMIT)
        return states

    def _give_ahead(self, states: Any, steps: list[int]) -> Any:
        if self._kind.trajectories:
            return self._kind.of_systems().give(states)
        return self._kind.give(states, steps)

    def _warn(self, growth: FloatArray, horizon: int) -> None:
        """One warning for all systems whose forecast grows far beyond the data."""
        bad = np.flatnonzero(~(growth <= GROWTH))
        if not bad.size:
            return
        worst = int(bad[np.argmax(growth[bad])])
        which = f"; {bad.size} of {len(growth)} systems do, most system {worst}"
        kept = " The last state was kept." if not growth[worst] <= dynamics.LIMIT else ""
        warnings.warn(
            f"the forecast grows {growth[worst]:.3g} times over {horizon} snapshots"
            f"{which if len(growth) > 1 else ''}: an eigenvalue lies outside the unit circle, "
            f"often by noise.{kept} Use a lower rank, OptimizedDMD with a bound on growth, or a "
            "shorter horizon",
            UnstableForecastWarning,
            stacklevel=4,
        )

    def _basis(self) -> npt.NDArray[Any]:
        """Orthonormal (S, m, r), real for real data: of the span of the modes."""
        fitted = self._fitted()
        modes = arrays.host(fitted.modes)
        width = modes.shape[2]
        span = np.concatenate([modes.real, modes.imag], axis=2) if fitted.real else modes
        left = np.linalg.svd(span, full_matrices=False)[0][:, :, :width]
        # A sign of its own for every vector: the largest entry is positive.
        top = np.take_along_axis(left, np.abs(left).argmax(axis=1)[:, None], 1)
        turn = np.conj(top) / np.maximum(np.abs(top), np.finfo(float).tiny)
        count = min(width, left.shape[2])
        used = np.arange(count) < self._rank[:, None]
        return left[:, :, :count] * turn[:, :, :count] * used[:, None]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.target_tags.required = False
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def residual(now: Any, then: Any, eigenvalues: ComplexArray) -> tuple[Any, Any]:
    """‖F'g - λ F g‖² and ‖F g‖² (S, r) of a block of rows."""
    if isinstance(now, np.ndarray):
        error = then - now * np.nan_to_num(eigenvalues)[:, None]
    else:
        factor = arrays.memory(now).upload(np.nan_to_num(eigenvalues)[:, None])
        error = then - now * factor
    both = [(one.real**2 + one.imag**2).sum(1) for one in (error, now)]
    return arrays.host(both[0]), arrays.host(both[1])


def in_parts(work: Callable[[Series], Part], series: Series, each: int) -> list[Part]:
    """``work`` on some systems after the other, on the CPU in several threads.

    each: numbers that a system needs. Parts fit into the cache, where there are many systems.
    """
    count = int(series.array.shape[0])
    on_cpu = isinstance(series.array, np.ndarray)
    size = max((CACHED if on_cpu else CHUNK) // each, 1)
    threads = thread_count() if on_cpu else 1
    size = min(size, -(-count // threads)) if count * each > CACHED // 8 else count
    parts = [series.part(low, min(low + size, count)) for low in range(0, count, size)]
    if threads == 1 or len(parts) == 1:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(threads, thread_name_prefix="koopcore-dmd") as pool:
        return list(pool.map(work, parts))


def is_horizon(value: Any) -> bool:
    """Whether ``value`` is a horizon, or several, and not states."""
    if isinstance(value, range):
        return True
    if hasattr(value, "ndim") and value.ndim >= 2:
        return False
    if np.ndim(value) > 1:
        return False
    kinds = {type(one) for one in (value if np.ndim(value) else [value])}
    return all(issubclass(kind, (int, np.integer, bool, np.bool_)) for kind in kinds)


class DMD(Decomposing):
    """Dynamic mode decomposition x_t = Σ_j φ_j b_j λ_jᵗ of one series, or of thousands at once.

    With the snapshots (or ``delays`` of them, stacked) F = [x_1 … x_{n-1}], F' = [x_2 … x_n] the
    operator is F' F⁺ on the leading singular vectors of F; eigenvalues λ, modes φ, amplitudes b.

    Args:
        rank: an int >= 1; a fraction, 0 < rank < 1, of the energy; "svht", the optimal hard
            threshold (Gavish & Donoho 2014); None, all that is no rounding. Each system has its
            own, ``rank_``; one below an int is warned of, `LowerRankWarning`.
        delays: snapshots stacked into one state, 1 for none (Arbabi & Mezić 2017). Standing
            waves, momentum and few sensors need them: a third of the series is a robust choice.
            Not with fewer than twice as many snapshots.
        model: "linear"; or "affine", with a constant: eigenvalues of the differences, and λ =
            1.
        modes: "projected" (U w), "exact" (Tu et al. 2014), or "refit", least squares over all
            times.
        amplitudes: "optimal", over all times (Jovanović et al. 2014), or "first", at the first
            one (the first ``delays``).
        forward_backward: corrects observation noise (Dawson et al. 2016); not for decaying
            modes.
        tls: total least squares (Hemati et al. 2017), the same end; not with the full rank.
        noise: variance of the observation noise of every feature, whose share of the products
            is taken off (Dawson et al. 2016, ncDMD); "median" estimates it from the median
            singular value; 0 for none. Not where noise is not white.
        ridge: Tikhonov term, relative to the mean squared singular value kept; pulls |λ|
            inwards.
        forgetting: weight of a step beside that of the next one, 0 < forgetting <= 1.
        dt: time between snapshots: rates and frequencies are in its unit.
        window: snapshots that `partial_fit` looks back at; None: all, with ``forgetting``.
        backend: a name of `koopcore.available_backends()`; None takes the first that runs.

    Attributes: `eigenvalues_`, `modes_`, `amplitudes_`, `growth_rates_`, `frequencies_`, `rank_`,
    `status_` (`koopcore.dmd.STATUS`), `singular_values_`, `residuals_`, `components_`,
    ``n_features_in_``, ``feature_names_in_``.

    Cost: one read of the data and min(n, m delays)² multiplications a snapshot, then small
    matrices: some 5 µs a system of 16 snapshots, and one more read for the modes. What lies below
    √(4nε) of the largest singular value is rounding: a Gram matrix does not see it.
    Not for noise beyond a tenth of the signal, where `OptimizedDMD` is better.

    Source: Schmid 2010; Tu, Rowley, Luchtenburg, Brunton, Kutz 2014; docs/dmd.md.
    """

    def __init__(
        self,
        rank: Rank = "svht",
        *,
        delays: int = 1,
        model: Literal["linear", "affine"] = "linear",
        modes: Literal["projected", "exact", "refit"] = "exact",
        amplitudes: Amplitudes = "optimal",
        forward_backward: bool = False,
        tls: bool = False,
        noise: float | Literal["median"] = 0.0,
        ridge: float = 0.0,
        forgetting: float = 1.0,
        dt: float = 1.0,
        window: int | None = None,
        backend: str | None = None,
    ) -> None:
        self.rank = rank
        self.delays = delays
        self.model = model
        self.modes = modes
        self.amplitudes = amplitudes
        self.forward_backward = forward_backward
        self.tls = tls
        self.noise = noise
        self.ridge = ridge
        self.forgetting = forgetting
        self.dt = dt
        self.window = window
        self.backend = backend

    def _check(self) -> None:
        check_rank(self.rank)
        check_whole("delays", self.delays, 1)
        check_choice("model", self.model, ("linear", "affine"))
        check_choice("modes", self.modes, ("projected", "exact", "refit"))
        check_choice("amplitudes", self.amplitudes, ("optimal", "first"))
        check_flag("forward_backward", self.forward_backward)
        check_flag("tls", self.tls)
        if not (isinstance(self.noise, str) and self.noise == "median"):
            check_number("noise", self.noise, 0.0, np.inf, "a variance >= 0 or 'median'")
        check_number("ridge", self.ridge, 0.0, np.inf, "a finite number >= 0")
        check_number("forgetting", self.forgetting, 1e-12, 1.0, "a weight, 0 < forgetting <= 1,")
        check_number("dt", self.dt, np.finfo(float).tiny, np.inf, "a positive time")
        if self.window is not None:
            check_whole("window", self.window, 2)

    def _delays(self) -> int:
        return int(self.delays) + (self.model == "affine")

    def _decompose(self, series: Series) -> None:
        n, m = (int(size) for size in series.array.shape[1:])
        if self.model == "affine" and len(series.lengths) > 1:
            raise ValueError("model='affine' takes one trajectory a system; a list was given")
        if self.modes == "refit" and len(series.lengths) > 1:
            raise ValueError("modes='refit' takes one trajectory a system; a list was given")
        at_once = self._at_once(series)
        if at_once is not None:
            self._set(series, [at_once[0]], at_once[1])
            return
        series.check_finite()
        each = 6 * min(n, 2 * m * int(self.delays)) ** 2 + n * m
        self._set(series, in_parts(self._part, series, each))

    def _at_once(self, series: Series) -> tuple[tuple[Decomposition, Any, Any, Any], Any] | None:
        """All systems by one call of the backend, and those that it leaves as `_part` has it.

        With the newest snapshots. None: the backend does not do these.
        """
        plain = self.model == "linear" and self.modes != "refit" and self.forgetting == 1.0
        corrected = self.tls or self.forward_backward or self.noise
        x = series.array
        if not plain or corrected or series.is_complex or len(series.lengths) > 1:
            return None
        on = backend_for(series.device, self.backend)
        n, m = (int(size) for size in x.shape[1:])
        if not isinstance(x, np.ndarray) or n <= int(self.delays):
            return None
        rule, value = rank_rule(check_rank(self.rank), m * int(self.delays), n - int(self.delays))
        exact, optimal = self.modes == "exact", self.amplitudes == "optimal"
        fit = on.modal_fit(x, int(self.delays), rule, value, float(self.ridge), exact, optimal)
        if fit is None:
            return None
        status = np.where(fit.rank > 0, GOOD, EMPTY)
        done = Decomposition(
            fit.eigenvalues, np.empty((0, 0, 0), complex), fit.singular_values, fit.rank, status
        )
        part = done, fit.modes, fit.amplitudes, fit.residuals
        if fit.left.size:
            part = self._with_left(series, part, fit.left)
        return part, fit.newest

    def _with_left(
        self, series: Series, part: tuple[Decomposition, Any, Any, Any], left: IntArray
    ) -> tuple[Decomposition, Any, Any, Any]:
        """``part`` with the systems ``left`` decomposed one after the other stage."""
        series.check_finite()
        n, m = (int(size) for size in series.array.shape[1:])
        some = self._part(series._replace(array=series.array[left], step=n * m))
        done, other = part[0], some[0]
        whole = Decomposition(
            replaced(done.eigenvalues, other.eigenvalues, left, np.nan),
            done.coefficients,
            replaced(done.singular_values, other.singular_values, left, 0.0),
            done.rank,
            done.status,
        )
        whole.rank[left], whole.status[left] = other.rank, other.status
        modes, amplitudes, residuals = (
            replaced(mine, theirs, left, missing)
            for mine, theirs, missing in zip(part[1:], some[1:], (0.0, 0.0, np.nan), strict=True)
        )
        return whole, modes, amplitudes, residuals

    def _part(self, series: Series) -> tuple[Decomposition, Any, Any, Any]:
        """Some systems: decomposition, modes, amplitudes, residuals."""
        series, scale = series.in_range()
        moving = series.differences() if self.model == "affine" else series
        whole = self.tls or self.forward_backward
        on = backend_for(series.device, self.backend)
        columns = columns_of(
            moving, int(self.delays), whole, self.noise, float(self.forgetting), on
        )
        rank = check_rank(self.rank)
        done = decompose(columns, rank, float(self.ridge), self.tls, self.forward_backward)
        modes, amplitudes, residuals = self._modes(series, columns, done)
        done.singular_values = done.singular_values * scale[:, None]
        return done, modes, amplitudes * scale[:, None], residuals

    def _modes(
        self, series: Series, columns: Columns, done: Decomposition
    ) -> tuple[Any, Any, FloatArray]:
        g = done.coefficients
        now, then = columns.current(g, 0), columns.following(g, 0)
        squares = [residual(now, then, done.eigenvalues)]
        for k in range(1, int(self.delays)):
            pair = columns.current(g, k), columns.following(g, k)
            squares.append(residual(*pair, done.eigenvalues))
        with np.errstate(invalid="ignore"):
            residuals = np.sqrt(sum(one[0] for one in squares) / sum(one[1] for one in squares))
        if self.model == "affine":
            done.with_constant(int(series.array.shape[1]))
            residuals = np.concatenate([np.zeros((len(residuals), 1)), residuals], axis=1)
        if self.modes == "refit" or self.model == "affine":
            modes, amplitudes, apart = dynamics.refitted(series.array, done.eigenvalues)
            done.note_independence(apart)
            return modes, amplitudes, residuals
        modes, _ = dynamics.unit(then if self.modes == "exact" else now)
        each = []
        for at, n in zip(series.starts, series.lengths, strict=True):
            seen = n if self.amplitudes == "optimal" else int(self.delays)
            x = series.array[:, at : at + seen]
            amplitudes, apart = dynamics.amplitudes(x, modes, done.eigenvalues)
            done.note_independence(apart)
            each.append(amplitudes)
        return modes, np.concatenate(each), residuals

    def partial_fit(self, X: Any, y: object = None) -> DMD:
        """Take in the next snapshots of a stream, of which only moments are kept.

        Args:
            X: (n, features), or (systems, n, features); blocks of any length, in time order.
                Begins a new stream after `fit`. The decomposition is made when first asked for.
                With ``window`` the last that many snapshots count, and are kept; else all, by
                ``forgetting``. Amplitudes are those of the newest snapshot, from which
                forecasts go on.

        Memory: (2 m d)² numbers up to 256 features times delays. Beyond, coordinates on some 50
        directions are kept, those of the most energy: motion below them is lost, and a feature
        that starts to move late may be. Cost: m · 50 multiplications a snapshot then.
        Raises ValueError for a list, for model="affine" and for modes="refit", which need the past.
        """
        self._check()
        series = read(X)
        series.warn_if_uneven()
        if self.model == "affine" or self.modes == "refit":
            raise ValueError(
                "model='affine' and modes='refit' look at all snapshots; a stream keeps none"
            )
        if len(series.lengths) > 1:
            raise ValueError("partial_fit takes the next snapshots of one stream; a list was given")
        systems, _, m = (int(size) for size in series.array.shape)
        stream = getattr(self, "_stream", None)
        if stream is None:
            _check_feature_names(self, X if series.kind.library == "pandas" else None, reset=True)
            self.n_features_in_, self._kind = m, series.kind
            rank = check_rank(self.rank)
            stream = Stream(systems, m, int(self.delays), float(self.forgetting), rank)
        elif (systems, m) == (stream.systems, stream.m):
            self._kind = series.kind  # whose times forecasts go on from
        else:
            raise ValueError(
                f"X has {m} features, but {type(self).__name__} is expecting {stream.m} features "
                f"as input: the stream is of {stream.systems} system(s) of {stream.m} features"
            )
        if self.window is None:
            stream.add(arrays.host(series.array))
        else:
            stream.keep(arrays.host(series.array), int(self.window))
        self._stream, self._streamed = stream, True
        for name in (
            "_dynamics",
            "_rank",
            "_status",
            "_diverged",
            "_singular_values",
            "_residuals",
        ):
            self.__dict__.pop(name, None)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        stream = getattr(self, "_stream", None)
        return hasattr(self, "_dynamics") or (stream is not None and stream.n_pairs > 0)

    def _fitted(self) -> Dynamics:
        check_is_fitted(self)
        if not hasattr(self, "_dynamics"):
            self._decompose_stream()
        return self._dynamics

    def _decompose_stream(self) -> None:
        """The decomposition of what was streamed so far."""
        stream = self._stream
        assert stream is not None
        if stream.window is not None:
            kept = read(stream.window)
            self._decompose(kept._replace(kind=self._kind))
            newest_b = self._coordinates(kept.last(min(self._delays(), kept.lengths[0])))[:, -1]
            self._dynamics.amplitudes, self._dynamics.lengths = newest_b, (1,)
            return
        assert stream.moments is not None
        assert stream.recent is not None
        k = stream.recent.shape[2]
        rows = k * int(self.delays)
        whole = self.tls or self.forward_backward
        moments = stream.moments
        if self.noise:
            moments = without_noise(moments, self.noise, k, rows, stream.weight)
        columns = columns_of_moments(moments, k, rows, stream.n_pairs, whole)
        rank = check_rank(self.rank)
        done = decompose(columns, rank, float(self.ridge), self.tls, self.forward_backward)
        g = done.coefficients
        squares = [
            residual(columns.current(g, j), columns.following(g, j), done.eigenvalues)
            for j in range(int(self.delays))
        ]
        with np.errstate(invalid="ignore"):
            residuals = np.sqrt(sum(one[0] for one in squares) / sum(one[1] for one in squares))
        following = self.modes == "exact"
        small, _ = dynamics.unit((columns.following if following else columns.current)(g, 0))
        b = dynamics.of_rows(stream.recent, small, done.eigenvalues, int(self.delays))[:, -1]
        fitted = Dynamics(
            done.eigenvalues,
            stream.lifted(small),
            b,
            moments.dtype.kind == "f",
            (1,),
            stream.last,
        )
        self._conclude(fitted, done.rank, done.status)
        self._singular_values, self._residuals = done.singular_values, residuals
        self._warn_of_rank(self._kind.systems)

    def _set(
        self, series: Series, parts: list[tuple[Decomposition, Any, Any, Any]], last: Any = None
    ) -> None:
        """Join the parts of a fit. last: the newest snapshots, where they were copied already."""
        fitted = Dynamics(
            padded([part[0].eigenvalues for part in parts], np.nan),
            padded([part[1] for part in parts], 0.0),
            padded([part[2] for part in parts], 0.0),
            not series.is_complex,
            series.lengths,
            newest(series) if last is None else last,
        )
        rank = np.concatenate([part[0].rank for part in parts])
        self._conclude(fitted, rank, np.concatenate([part[0].status for part in parts]))
        self._singular_values = padded([part[0].singular_values for part in parts], 0.0)
        self._residuals = padded([part[3] for part in parts], np.nan)

    @property
    def singular_values_(self) -> Any:
        """Singular values of F (systems, k), falling, those of rounding zero."""
        return self._kind.give_small(self._attribute("singular_values_"))

    @property
    def residuals_(self) -> Any:
        """‖F'g - λ F g‖/‖F g‖ of every mode F g (systems, r): how far it is from one of the data.

        Of order one where the mode is spurious (Colbrook & Townsend 2024, in the Gram form).
        """
        return self._kind.give_small(self._attribute("residuals_"))


def newest(series: Series) -> Any:
    """The last snapshot of every system, or of every trajectory."""
    if len(series.lengths) == 1:
        last = series.array[:, -1]
        return last.copy() if isinstance(last, np.ndarray) else last.clone()
    ends = np.cumsum(series.lengths) - 1
    return series.array[0][ends.tolist()]


def replaced(values: Any, by: Any, at: IntArray, missing: float) -> Any:
    """``values`` with the systems ``at`` from ``by``; the shorter last axis is made longer."""
    width = max(values.shape[-1], by.shape[-1])
    result = np.full((*values.shape[:-1], width), missing, values.dtype)
    result[..., : values.shape[-1]] = values
    result[at] = missing
    result[at, ..., : by.shape[-1]] = by
    return result


def padded(parts: list[Any], value: float) -> Any:
    """Arrays of systems, which are equal but for their last axis, one after the other."""
    if len(parts) == 1:
        return parts[0]
    width = max(int(part.shape[-1]) for part in parts)
    first = parts[0]
    if not isinstance(first, np.ndarray):
        parts = [arrays.host(part) for part in parts]
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:-1], width)
    joined = np.full(shape, value, dtype=parts[0].dtype)
    at = 0
    for part in parts:
        joined[at : at + len(part), ..., : part.shape[-1]] = part
        at += len(part)
    if isinstance(first, np.ndarray):
        return joined
    return arrays.memory(first).upload(joined)
