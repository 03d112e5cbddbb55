"""`OptimizedDMD`: exponentials fitted to all snapshots at once, for noise."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from koopcore import arrays
from koopcore.backends import backend_for
from koopcore.backends.protocol import Backend, ExponentFit
from koopcore.dmd.algebra import dynamics
from koopcore.dmd.algebra.columns import gram
from koopcore.dmd.algebra.decomposition import (
    DEFECTIVE,
    EMPTY,
    EXHAUSTED,
    GOOD,
    STALLED,
    ranks,
    singular,
)
from koopcore.dmd.algebra.dynamics import Dynamics
from koopcore.dmd.algebra.eigen import ComplexArray, eig, leading
from koopcore.dmd.algebra.variable_projection import HEADROOM, fit_exponents, partners
from koopcore.dmd.checks import Rank, check_number, check_rank, check_whole
from koopcore.dmd.estimator import Decomposing, in_parts, newest, padded, replaced
from koopcore.dmd.series import Series
from koopcore.types import FloatArray, IntArray

SLOWEST, FASTEST = -60.0, 60.0
"""Re α T of a start: what decays or grows more over the series is not in it."""


class OptimizedDMD(Decomposing):
    """x_t = Σ_j φ_j b_j λ_jᵗ with the λ, φ, b that fit all snapshots best: for noise.

    min over λ and φ of Σ_t ‖x_t - Σ_j φ_j b_j λ_jᵗ‖², by variable projection on the eigenvalues,
    started from the eigenvalues of a delay DMD. Where noise is white and Gaussian this is the
    maximum likelihood estimate; plain DMD's |λ| are biased inwards.

    Args:
        rank: number of exponentials, as in `DMD`; also more than the spatial rank (standing
            waves). Fewer, where the start sees no more, are warned of: `LowerRankWarning`.
        delays: snapshots that the start stacks, and that say where `predict` and `forecast` of
            new rows set out from; "auto" for a third of the series.
        max_growth: bound on the growth rates, in 1/unit of dt; 0 forbids growing modes; None:
            none.
        dt: time between snapshots.
        n_iterations: of Levenberg-Marquardt at most; three to five are usual.
        n_trials: bagging (BOP-DMD, Sashidhar & Kutz 2022): fits to random ``share`` of the
            snapshots; eigenvalues are their means, and ``eigenvalues_std_`` their standard
            deviations. 0: none.
        share: of the snapshots that a trial sees, 0 < share <= 1.
        random_state: seed of the trials.
        backend: a name of `koopcore.available_backends()`; None takes the first that runs.

    Attributes: those of `DMD` but for singular values and residuals; ``n_iter_`` and ``error_``,
    the relative error of the reconstruction, per system.

    Cost: one read for the Gram matrix, n² r a system for the start, 50 µs r n a system for the
    polish, one read for the modes. Not for one snapshot more than modes, nor for systems whose
    motion is no sum of exponentials; for more modes than about 30 use `DMD`.

    Source: Askham & Kutz 2018; docs/dmd.md has the recipe.
    """

    def __init__(
        self,
        rank: Rank = "svht",
        *,
        delays: int | Literal["auto"] = "auto",
        max_growth: float | None = None,
        dt: float = 1.0,
        n_iterations: int = 50,
        n_trials: int = 0,
        share: float = 0.6,
        random_state: int | np.random.Generator | None = 0,
        backend: str | None = None,
    ) -> None:
        self.rank = rank
        self.delays = delays
        self.max_growth = max_growth
        self.dt = dt
        self.n_iterations = n_iterations
        self.n_trials = n_trials
        self.share = share
        self.random_state = random_state
        self.backend = backend

    def _check(self) -> None:
        check_rank(self.rank)
        if self.delays != "auto":
            check_whole("delays", self.delays, 1)
        if self.max_growth is not None:
            check_number("max_growth", self.max_growth, -np.inf, np.inf, "a finite rate or None")
        check_number("dt", self.dt, np.finfo(float).tiny, np.inf, "a positive time")
        check_whole("n_iterations", self.n_iterations, 1)
        check_whole("n_trials", self.n_trials, 0)
        check_number("share", self.share, np.finfo(float).tiny, 1.0, "a share, 0 < share <= 1,")

    def _delays(self) -> int:
        return self._delays_of(self._dynamics.lengths[0])

    def _rows_needed(self) -> int:
        modes = arrays.host(self._dynamics.modes)
        gram = dynamics.products(modes, modes)
        for count in range(1, self._delays()):
            powers, _ = dynamics.vandermonde(self._dynamics.eigenvalues, count)
            apart = dynamics.independence(gram * (powers.conj() @ powers.swapaxes(1, 2)))
            if (apart > dynamics.PARALLEL).all():
                return count
        return self._delays()

    def _delays_of(self, n: int) -> int:
        return max(n // 3, 1) if self.delays == "auto" else int(self.delays)

    def _decompose(self, series: Series) -> None:
        if len(series.lengths) > 1:
            raise ValueError("OptimizedDMD takes one trajectory a system; a list was given")
        on = backend_for(series.device, self.backend)  # says now what does not run here
        n, m = (int(size) for size in series.array.shape[1:])
        rank = check_rank(self.rank)
        least = (rank if isinstance(rank, int) else 1) + 1
        if n < least:
            raise ValueError(
                f"a series has {n} snapshot{'s' * (n != 1)} (n_samples = {n}); {least - 1} "
                f"exponential{'s' * (least > 2)} need at least {least}"
            )
        delays = self._delays_of(n)
        if n < delays + 1:
            raise ValueError(f"delays is {delays}; {n} snapshots have room for {n - 1} at most")
        series.check_finite()
        parts = in_parts(lambda part: self._part(part, rank, delays, on), series, 4 * n * n + n * m)
        fitted = Dynamics(
            padded([part[0] for part in parts], np.nan),
            padded([part[1] for part in parts], 0.0),
            padded([part[2] for part in parts], 0.0),
            not series.is_complex,
            series.lengths,
            newest(series),
        )
        rank_of = np.concatenate([part[3] for part in parts])
        fits = [part[4] for part in parts]
        status = np.concatenate([part[5] for part in parts])
        self._conclude(fitted, rank_of, np.where(rank_of > 0, status, EMPTY))
        self._n_iter = np.concatenate([fit.iterations for fit in fits])
        self._error = np.concatenate([fit.error for fit in fits])
        self._eigenvalues_std = padded([part[6] for part in parts], np.nan)

    def _part(
        self, series: Series, rank: Rank, delays: int, on: Backend
    ) -> tuple[ComplexArray, Any, ComplexArray, IntArray, ExponentFit, IntArray, FloatArray]:
        series, scale = series.in_range()
        n = int(series.array.shape[1])
        most = rank if isinstance(rank, int) else None
        c = self._coordinates_of(series, most, on)
        start = first_exponents(c, rank, delays, int(series.array.shape[2]), on)
        number = (~np.isnan(start)).sum(axis=1)
        times = np.linspace(0.0, 1.0, n)
        ceiling = np.inf if self.max_growth is None else self.max_growth * self.dt * (n - 1)
        pairs = None if series.is_complex else partners(start)
        fit = fit_exponents(c, start, times, ceiling, pairs, int(self.n_iterations), on)
        total = (np.abs(c) ** 2).sum(axis=(1, 2))
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.where(total > 0.0, np.sqrt(fit.error / total), 0.0)
        fit = fit._replace(error=relative)
        status = np.array([GOOD, STALLED, EXHAUSTED])[fit.stop]
        limit = np.maximum(start.real, 0.0) + HEADROOM  # not by max_growth: by too fast a growth
        with np.errstate(invalid="ignore"):
            held = ((fit.alpha.real > limit - 1e-6) & (limit < ceiling)).any(axis=1)
        status[held & (status == GOOD)] = EXHAUSTED
        self._mend_defective(c, start, fit, status, ceiling)
        alpha, deviation = fit.alpha, np.full(fit.alpha.shape, np.nan)
        if self.n_trials:
            alpha, deviation = self._bagged(c, fit.alpha, times, ceiling, pairs, on)
        eigenvalues = np.exp(alpha / (n - 1))
        order = np.argsort(-np.abs(np.nan_to_num(eigenvalues, nan=0.0)), axis=1, kind="stable")
        eigenvalues = np.take_along_axis(eigenvalues, order, 1)
        deviation = np.take_along_axis(deviation / (n - 1), order, 1) * np.abs(eigenvalues)
        modes, amplitudes, _ = dynamics.refitted(series.array, eigenvalues)
        amplitudes = amplitudes * scale[:, None]
        return eigenvalues, modes, amplitudes, number, fit, status, deviation

    @staticmethod
    def _mend_defective(
        c: npt.NDArray[Any],
        start: ComplexArray,
        fit: ExponentFit,
        status: IntArray,
        ceiling: float,
    ) -> None:
        """Set ``fit`` and ``status`` where exponentials are nearly dependent.

        The polish goes by normal equations, which see nothing of what parts them: the better of
        its exponents and of those it started from, by errors that are not products.
        """
        n = c.shape[1]
        powers, _ = dynamics.vandermonde(np.exp(fit.alpha / (n - 1)), n)
        powers = np.where(np.isnan(fit.alpha)[:, :, None], 0.0, powers)
        apart = dynamics.independence(powers @ powers.conj().swapaxes(1, 2))
        close = np.flatnonzero(apart < dynamics.STEEP)
        if not close.size:
            return
        some = c[close]
        size = np.maximum(np.linalg.norm(some, axis=(1, 2)), np.finfo(float).tiny)
        bounded = np.minimum(start[close].real, ceiling) + 1j * start[close].imag
        exponents = [fit.alpha[close], bounded]
        errors = []
        for alpha in exponents:
            eigenvalues = np.exp(alpha / (n - 1))
            modes, b, _ = dynamics.refitted(some, eigenvalues)
            real = some.dtype.kind != "c"
            states = Dynamics(eigenvalues, modes, b, real, (n,), some[:, -1]).states(np.arange(n))
            errors.append(np.linalg.norm(states - some, axis=(1, 2)) / size)
        better = errors[1] < errors[0]
        fit.alpha[close] = np.where(better[:, None], exponents[1], exponents[0])
        fit.error[close] = np.where(better, errors[1], errors[0])
        status[close] = DEFECTIVE

    def _coordinates_of(self, series: Series, most: int | None, on: Backend) -> npt.NDArray[Any]:
        """C (S, n, k): snapshots on their leading singular vectors, all where ``most`` is None."""
        n, m = (int(size) for size in series.array.shape[1:])
        k = min(n, m, most or n)
        if m <= n:
            x = arrays.host(series.array)
            x = x.astype(np.complex128 if series.is_complex else np.float64, copy=False)
            return x @ leading(x.conj().swapaxes(1, 2) @ x, k, on)[1] if k < m else x
        squares, v = leading(gram(series, on), k, on)
        return v.conj() * np.sqrt(np.maximum(squares, 0.0))[:, None]

    def _bagged(
        self,
        c: npt.NDArray[Any],
        alpha: ComplexArray,
        times: FloatArray,
        ceiling: float,
        pairs: IntArray | None,
        on: Backend,
    ) -> tuple[ComplexArray, FloatArray]:
        """Mean and standard deviation of the exponents over trials on random snapshots."""
        rng = np.random.default_rng(self.random_state)
        size = min(max(round(self.share * len(times)), alpha.shape[1] + 1), len(times))
        trials = []
        for _ in range(int(self.n_trials)):
            seen = np.sort(rng.choice(len(times), size, replace=False))
            fit = fit_exponents(
                c[:, seen], alpha, times[seen], ceiling, pairs, int(self.n_iterations), on
            )
            trials.append(np.where((fit.stop == 0)[:, None], fit.alpha, alpha))
        stacked = np.stack(trials)
        mean: ComplexArray = stacked.mean(axis=0)
        deviation = np.sqrt((np.abs(stacked - mean) ** 2).mean(axis=0))
        return mean, deviation

    @property
    def n_iter_(self) -> Any:
        """Iterations that every system took: (systems,) int, or one int."""
        values = self._attribute("n_iter_")
        return values if self._kind.systems else int(values[0])

    @property
    def error_(self) -> Any:
        """‖X - reconstruction‖/‖X‖ on the leading singular vectors: (systems,), or one float."""
        values = self._attribute("error_")
        return values if self._kind.systems else float(values[0])

    @property
    def eigenvalues_std_(self) -> Any:
        """Standard deviation of the eigenvalues over the trials (systems, r); NaN without any."""
        return self._kind.give_small(self._attribute("eigenvalues_std_"))


def first_exponents(
    c: npt.NDArray[Any], rank: Rank, delays: int, features: int, on: Backend
) -> ComplexArray:
    """α (S, r) in 1/length of the series, from a delay DMD of c; NaN past the rank."""
    native = on.delay_start(c, rank, delays) if isinstance(rank, int) else None
    if native is None:
        return exponents_of(delay_eigenvalues(c, rank, delays, features), c.shape[1])
    values, settled = native
    number = (~np.isnan(values)).sum(axis=1).max(initial=1)
    values = values[:, : max(int(number), 1)]
    left = np.flatnonzero(~settled)
    if left.size:
        values[left] = np.nan
        values = replaced(values, delay_eigenvalues(c[left], rank, delays, features), left, np.nan)
    return exponents_of(values, c.shape[1])


def exponents_of(values: ComplexArray, n: int) -> ComplexArray:
    """log λ (n - 1), growth rates within bounds."""
    with np.errstate(divide="ignore", invalid="ignore"):  # of 0, and of NaN past the rank
        growth = np.log(np.abs(values)) * (n - 1)
    alpha: ComplexArray = np.clip(growth, SLOWEST, FASTEST) + 1j * np.angle(values) * (n - 1)
    return alpha


def delay_eigenvalues(c: npt.NDArray[Any], rank: Rank, delays: int, features: int) -> ComplexArray:
    """λ (S, r) of one step of the stacked coordinates c (S, n, k); NaN past the rank."""
    n = c.shape[1]
    products = c.conj() @ c.swapaxes(1, 2)
    sums = np.zeros((len(c), n + 1, n + 1), dtype=products.dtype)  # along the diagonals
    for i in range(n):
        np.add(sums[:, i, :-1], products[:, i], out=sums[:, i + 1, 1:])
    hankel = sums[:, delays:, delays:] - sums[:, :-delays, :-delays]
    a, h = hankel[:, :-1, :-1], hankel[:, :-1, 1:]
    if isinstance(rank, int):
        squares, v = leading(np.ascontiguousarray(a), min(rank, a.shape[1]))
        floor = 4.0 * n * np.finfo(float).eps * np.maximum(squares[:, :1], 0.0)
        squares = np.where(squares > floor, squares, 0.0)
        sigma = np.sqrt(squares)
        p = v * np.divide(1.0, sigma, out=np.zeros_like(sigma), where=sigma > 0.0)[:, None]
        number = (sigma > 0.0).sum(axis=1)
    else:
        p, sigma = singular(np.ascontiguousarray(a))
        number = ranks(rank, sigma, features * delays, a.shape[1])
    p = p[:, :, : max(int(number.max(initial=0)), 1)]
    p = p * (np.arange(p.shape[2]) < number[:, None])[:, None]
    return eig(p.conj().swapaxes(1, 2) @ (h @ p), number)[0]
