"""A learned Koopman operator: dictionary, θ, K and read-out, predicting from an initial state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from koopcore import spectrum
from koopcore.learning.checks import finite_array, positive, real_array, whole
from koopcore.learning.dictionaries.protocol import Dictionary, state_features
from koopcore.learning.trajectories import pairs
from koopcore.types import FloatArray

Readout: TypeAlias = Literal["auto", "least-squares", "state-inclusive"]

_CUTOFF = 1e-9  # relative singular value below which features count as dependent


@dataclass(frozen=True)
class LearnedOperator:
    """ψ(x_{n+1}) ≈ K ψ(x_n) + B u_n and x ≈ C ψ(x), for states scaled as z = (x - shift) / scale.

    Without inputs u, ψ(x_n) ≈ Kⁿ ψ(x_0). Outputs, where some were learned, are y ≈ D ψ(x).
    """

    dictionary: Dictionary
    parameters: FloatArray  # θ (p,)
    operator: FloatArray  # K (h, h)
    readout: FloatArray  # C (n, h), from features to scaled states
    shift: FloatArray  # (n,)
    scale: FloatArray  # (n,)
    input_matrix: FloatArray | None = None  # B (h, m), of inputs in their own unit
    output_readout: FloatArray | None = None  # D (q, h), to outputs in their own unit

    def __post_init__(self) -> None:
        n, h = self.dictionary.n_states, self.dictionary.n_features
        shapes: dict[str, tuple[int, ...]] = {
            "parameters": (self.dictionary.n_parameters,),
            "operator": (h, h),
            "readout": (n, h),
            "shift": (n,),
            "scale": (n,),
        }
        for name, rows in (("input_matrix", h), ("output_readout", None)):
            optional = getattr(self, name)
            if optional is not None:
                if np.ndim(optional) != 2 or not np.size(optional):
                    raise ValueError(f"{name} has shape {np.shape(optional)}; a matrix is needed")
                count = optional.shape[1] if rows else optional.shape[0]
                shapes[name] = (h, count) if rows else (count, h)
        for name, shape in shapes.items():
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != np.float64:
                raise TypeError(f"{name} is no array of float64; convert it")
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, its dictionary needs {shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite, so there is nothing to predict with")
        if not (self.scale > 0.0).all():
            raise ValueError("scale has numbers that are not > 0; states cannot have such units")

    def __repr__(self) -> str:
        more = "" if self.input_matrix is None else f", {self.input_matrix.shape[1]} inputs"
        if self.output_readout is not None:
            more += f", {len(self.output_readout)} outputs"
        h, n = len(self.operator), len(self.shift)
        return f"<LearnedOperator: {h} features of {n} states{more}; {self.dictionary!r}>"

    def features(self, states: npt.ArrayLike) -> FloatArray:
        """ψ of states (M, n) in their own unit: (M, h)."""
        x = np.atleast_2d(real_array("states", states)).astype(np.float64, copy=False)
        if x.ndim != 2 or x.shape[1] != len(self.shift):
            raise ValueError(f"states has shape {x.shape}; (…, {len(self.shift)}) is needed")
        return self.dictionary.features(self.parameters, (x - self.shift) / self.scale)

    def states(self, features: FloatArray) -> FloatArray:
        """States (…, n) read out of features (…, h)."""
        # A prediction that grew without bound overflows here.
        with np.errstate(over="ignore", invalid="ignore"):
            return (features @ self.readout.T) * self.scale + self.shift

    @property
    def n_inputs(self) -> int:
        """m, the width of an input; 0 for a system without."""
        return 0 if self.input_matrix is None else self.input_matrix.shape[1]

    def ahead(self, features: FloatArray, inputs: FloatArray) -> FloatArray:
        """K ψ + B u of features (N, h) and inputs (N, m): (N, h)."""
        if inputs.shape[1] != self.n_inputs:
            raise ValueError(
                f"u has {inputs.shape[1]} numbers a step; this operator was learned with "
                f"{self.n_inputs}"
            )
        result: FloatArray = features @ self.operator.T
        return result if self.input_matrix is None else result + inputs @ self.input_matrix.T

    def predict_features(
        self, x0: npt.ArrayLike, n_steps: int, u: npt.ArrayLike | None = None
    ) -> FloatArray:
        """ψ 1 … T steps after x_0: (T, h), or (batch, T, h) for several x_0 (batch, n).

        Args:
            u: u_0 … u_{T-1}, (T, m), or one such for every x_0, (batch, T, m); where the
                operator was learned with inputs, and only there.
        """
        whole("n_steps", n_steps)
        start = finite_array("x0", x0)
        with np.errstate(over="ignore", invalid="ignore"):
            current = self.features(start)
        if not np.isfinite(current).all():
            raise ValueError(
                "x0 is so far from the data that were learned from that its features are not finite"
            )
        inputs = self._inputs(u, len(current), n_steps)
        result = np.empty((len(current), n_steps, current.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):  # |λ| > 1 over many steps is the answer
            for step in range(n_steps):
                current = self.ahead(current, inputs[:, step])
                result[:, step] = current
        return result[0] if start.ndim == 1 else result

    def _inputs(self, u: npt.ArrayLike | None, batch: int, n_steps: int) -> FloatArray:
        """Inputs of every x_0 and step, (batch, T, m)."""
        if u is None:
            if self.n_inputs:
                raise ValueError(
                    f"u is missing; this operator was learned with inputs: pass ({n_steps}, "
                    f"{self.n_inputs})"
                )
            return np.zeros((batch, n_steps, 0))
        given = finite_array("u", u)
        wanted = (n_steps, self.n_inputs)
        if given.shape not in (wanted, (batch, *wanted)) or not self.n_inputs:
            raise ValueError(
                f"u has shape {given.shape}; {wanted} or {(batch, *wanted)} is needed"
                if self.n_inputs
                else "u was given, but this operator was learned without inputs"
            )
        return np.broadcast_to(given, (batch, *wanted))

    def predict(
        self, x0: npt.ArrayLike, n_steps: int, u: npt.ArrayLike | None = None
    ) -> FloatArray:
        """States 1 … n_steps after x_0, from x_0 alone: (n_steps, n), or (batch, n_steps, n).

        Args:
            x0: (n,) or (batch, n), finite.
            n_steps: >= 1.
            u: inputs (n_steps, m) from that of x_0 on, or (batch, n_steps, m); needed where the
                operator was learned with inputs.

        Cost: 2 h² flops per step. ψ is linear only as far as F is small: the error grows with the
        horizon, and |λ| > 1 grows without bound. Raises ValueError for a wrong width or a state
        that is not finite.
        """
        return self.states(self.predict_features(x0, n_steps, u))

    def predict_outputs(
        self, x0: npt.ArrayLike, n_steps: int, u: npt.ArrayLike | None = None
    ) -> FloatArray:
        """Outputs y 1 … n_steps after x_0: (n_steps, q), or (batch, n_steps, q); as `predict`.

        Raises ValueError for an operator that was learned without outputs.
        """
        if self.output_readout is None:
            raise ValueError("this operator was learned without outputs; pass outputs= to fit")
        features = self.predict_features(x0, n_steps, u)
        with np.errstate(over="ignore", invalid="ignore"):
            return features @ self.output_readout.T

    def eigenvalues(self) -> npt.NDArray[np.complex128]:
        """Eigenvalues of K, largest magnitude first."""
        values = np.linalg.eigvals(self.operator).astype(np.complex128)
        return values[np.argsort(-np.abs(values), kind="stable")]

    def modes(self) -> npt.NDArray[np.complex128]:
        """Koopman modes (n, h) in the states' unit, in the order of `eigenvalues`."""
        values, vectors = np.linalg.eig(self.operator)
        order = np.argsort(-np.abs(values), kind="stable")
        return self.scale[:, None] * (self.readout @ vectors[:, order]).astype(np.complex128)

    def eigenfunctions(self, states: npt.ArrayLike) -> npt.NDArray[np.complex128]:
        """φ_i(x) of states (M, n): (M, h), in the order of `eigenvalues`.

        φ(x_{n+1}) ≈ λ φ(x_n) without inputs, and x - shift = Σ modes_i φ_i(x) as far as C reads
        the state. φ = V⁻¹ ψ with the eigenvectors V of K, each of length 1: not where K has none,
        or nearly none (V is ill conditioned then; the values say so by their size).
        """
        eigenvalues, vectors = np.linalg.eig(self.operator)
        order = np.argsort(-np.abs(eigenvalues), kind="stable")
        features = self.features(states).astype(np.complex128)
        values = np.linalg.solve(vectors[:, order], features.T).T
        return np.ascontiguousarray(values, dtype=np.complex128)

    def rates(self, dt: float = 1.0) -> npt.NDArray[np.complex128]:
        """Eigenvalues of the generator, log λ / dt: growth per unit of time + i angular frequency.

        The principal logarithm: frequencies beyond π/dt are seen as lower ones. -∞ where λ is 0.
        """
        positive("dt", dt)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.eigenvalues()) / dt, dtype=np.complex128)

    def generator(self, dt: float = 1.0) -> FloatArray:
        """L = log K / dt, (h, h): ψ' = L ψ in continuous time, as far as dψ/dt is in the span.

        The principal logarithm. Raises ValueError where K has an eigenvalue that is 0 or negative:
        no real generator makes it in one step; sample more often. Needs SciPy.
        """
        from scipy.linalg import logm

        positive("dt", dt)
        values = self.eigenvalues()
        bad = values[(np.abs(values.imag) <= 1e-14 * np.abs(values)) & (values.real <= 0.0)]
        if len(bad):
            raise ValueError(
                f"K has the eigenvalue {bad[0].real:.3g}, whose logarithm is not real; features "
                "that die out within a step have no rate: sample more often, or use fewer features"
            )
        return np.ascontiguousarray(np.real(logm(self.operator)) / dt)

    def growth_rates(self, dt: float = 1.0) -> FloatArray:
        """log|λ|/dt of every eigenvalue."""
        return spectrum.growth_rates(self.eigenvalues(), dt)

    def frequencies(self, dt: float = 1.0) -> FloatArray:
        """arg λ/(2π dt) of every eigenvalue, in cycles per unit of dt."""
        return spectrum.frequencies(self.eigenvalues(), dt)


@dataclass(frozen=True)
class PredictionErrors:
    """Relative errors ‖predicted - true‖ / ‖true‖ (Frobenius, over all steps), not in percent."""

    one_step_features: float
    one_step_states: float
    multi_step_features: float
    multi_step_states: float


def prediction_errors(learned: LearnedOperator, trajectory: npt.ArrayLike) -> PredictionErrors:
    """Errors of one-step and of multi-step prediction along a trajectory (T + 1, n), x_0 first.

    One step: from every true x_n to x_{n+1}. Multi-step: all T steps from x_0 alone. Of features
    ψ, which is what F measures, and of the states read out of them.
    """
    true = pairs(trajectory, len(learned.shift)).states
    features = learned.features(true)
    one = features[:-1] @ learned.operator.T
    many = learned.predict_features(true[0], len(true) - 1)
    return PredictionErrors(
        relative(one, features[1:]),
        relative(learned.states(one), true[1:]),
        relative(many, features[1:]),
        relative(learned.states(many), true[1:]),
    )


def relative(predicted: FloatArray, true: FloatArray) -> float:
    """‖predicted - true‖ / ‖true‖; infinite where the prediction is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        error = float(np.linalg.norm(predicted - true) / np.linalg.norm(true))
    return error if np.isfinite(error) else float("inf")


def check_readout(readout: str, dictionary: Dictionary) -> Readout:
    """The read-out, "auto" resolved; ValueError if the dictionary cannot have it."""
    if readout not in ("auto", "least-squares", "state-inclusive"):
        raise ValueError(
            f"readout is {readout!r}; 'auto', 'least-squares' or 'state-inclusive' is needed"
        )
    places = state_features(dictionary)
    inclusive = places is not None and len(places) == dictionary.n_states
    if readout == "state-inclusive" and not inclusive:
        raise ValueError(
            "readout='state-inclusive' needs all of the state among the features; wrap the "
            f"dictionary (of every block) as StateInclusive(...), not {dictionary!r}"
        )
    if readout == "least-squares" or not inclusive:
        return "least-squares"
    return "state-inclusive"


def fit_readout(
    dictionary: Dictionary, features: FloatArray, states: FloatArray, readout: Readout
) -> FloatArray:
    """C (n, h): ones at the states' own features, or least squares of states on features.

    Where only the first states are features, least squares reads the others.

    Least squares leaves out directions of the features below 1e-9 of the strongest: nearly
    collinear features would be read with huge weights of both signs, which a prediction's small
    errors do not survive.
    """
    result = np.zeros((dictionary.n_states, dictionary.n_features))
    places = state_features(dictionary) or []
    if readout == "least-squares":
        result = np.ascontiguousarray(np.linalg.lstsq(features, states, rcond=_CUTOFF)[0].T)
        places = [] if len(places) == dictionary.n_states else places
    result[: len(places)] = 0.0
    result[np.arange(len(places)), places] = 1.0
    return result
