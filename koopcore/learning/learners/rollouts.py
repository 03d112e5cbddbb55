"""What F does not see: errors of predictions over many steps, and the spectral radius of K."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from koopcore.types import FloatArray, IntArray

_DEFECTIVE = 1e-10  # |wᴴv| of an eigenvalue whose derivative is rounding: it is about to split


class Windows(NamedTuple):
    """Where predictions are compared with what was seen.

    rows: (S,) of x_0 among all states. inputs: (S, H, m), u_0 … u_{H-1}. targets: (S, H, n), the
    states behind x_0. weights: (S, n), of the squares; their products with the states' variances
    sum to 1, so that predicting the mean has an error of about 1.

    Predictions are x_t = C Kᵗ ψ_0 + Σ_s C K^{t-1-s} B u_s. What is carried over the steps is C Kᵗ,
    n rows, and not the features of all windows; the rest is a few large products.
    """

    rows: IntArray | slice
    inputs: FloatArray
    targets: FloatArray
    weights: FloatArray

    def value(
        self, features: FloatArray, operator: FloatArray, places: IntArray
    ) -> tuple[float, Tape]:
        """The mean squared error of steps 1 … H, and what its gradient needs of the way there.

        features: ψ(x_0), (S, h). operator: [K B], (h, h + m). places: of the states in ψ.
        Infinite where a prediction is. Cost: 2 S H n h + 2 H n h² flops; with inputs 2 S H² n m.
        """
        count, horizon, n = self.targets.shape
        h = features.shape[1]
        readouts = np.zeros((horizon + 1, n, h))
        readouts[0, np.arange(n), places] = 1.0
        with np.errstate(over="ignore", invalid="ignore"):
            for t in range(horizon):
                np.matmul(readouts[t], operator[:, :h], out=readouts[t + 1])
            missed = features @ readouts[1:].reshape(-1, h).T
            if self.inputs.shape[2]:
                missed += self.inputs.reshape(count, -1) @ _responses(readouts, operator[:, h:])
            missed = missed.reshape(self.targets.shape)
            missed -= self.targets
            weighted = self.weights[:, None] * missed
            error = float(np.vdot(missed, weighted)) / (horizon * count)
        tape = Tape(features, readouts, weighted.reshape(count, -1))
        return (error if np.isfinite(error) else float("inf")), tape

    def gradient(self, tape: Tape, operator: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Gradients of `value` by ψ(x_0), (S, h), and by [K B]. Cost: twice that of `value`."""
        count, horizon, n = self.targets.shape
        features, readouts, weighted = tape
        h = features.shape[1]
        seed = weighted * (2.0 / (horizon * count))
        ahead = readouts[1:].reshape(-1, h)
        slope = np.zeros_like(operator)
        back = np.zeros_like(readouts)  # ∂/∂(C Kᵗ)
        back[1:] = (seed.T @ features).reshape(horizon, n, h)
        if self.inputs.shape[2]:
            every = (self.inputs.reshape(count, -1).T @ seed).reshape(horizon, -1, horizon, n)
            by_response = np.stack(  # of C Kᵏ B, (n, m): wherever the output is k steps later
                [np.diagonal(every, k, axis1=0, axis2=2).sum(axis=-1).T for k in range(horizon)]
            )
            back[:-1] += by_response @ operator[:, h:].T
            slope[:, h:] = np.tensordot(readouts[:-1], by_response, ((0, 1), (0, 1)))
        for t in range(horizon, 1, -1):
            back[t - 1] += back[t] @ operator[:, :h].T
        slope[:, :h] = readouts[:-1].reshape(-1, h).T @ back[1:].reshape(-1, h)
        return seed @ ahead, slope


class Tape(NamedTuple):
    """ψ(x_0) (S, h), C Kᵗ for t = 0 … H (H + 1, n, h), and the weighted errors (S, H n)."""

    features: FloatArray
    readouts: FloatArray
    weighted: FloatArray


def _responses(readouts: FloatArray, input_matrix: FloatArray) -> FloatArray:
    """C K^{t-1-s} B, from the input of step s to the state of step t: (H m, H n)."""
    horizon, n, m = len(readouts) - 1, readouts.shape[1], input_matrix.shape[1]
    response = readouts[:-1] @ input_matrix  # (H, n, m)
    lag = np.arange(horizon) - np.arange(horizon)[:, None]
    every = np.where((lag >= 0)[..., None, None], response[np.maximum(lag, 0)], 0.0)  # (s, t, n, m)
    return every.transpose(0, 3, 1, 2).reshape(horizon * m, horizon * n)


def excess(operator: FloatArray, radius: float) -> tuple[float, FloatArray]:
    """Σ max(0, |λ| - radius)² over the eigenvalues of K, and its gradient by K.

    ∂|λ|/∂K = Re(λ̄/|λ| · w̄ vᵀ / wᴴv) with right and left eigenvectors v, w. Eigenvalues that are
    about to meet have no derivative and are left out of it. Cost: O(h³).
    """
    values, left, right = _eigenvectors(operator)
    sizes = np.abs(values)
    over = np.maximum(sizes - radius, 0.0)
    slope = np.zeros_like(operator)
    for i in np.flatnonzero(over):
        product = np.vdot(left[:, i], right[:, i])
        if abs(product) > _DEFECTIVE:
            turned = np.conj(values[i]) / (sizes[i] * product)
            slope += 2.0 * over[i] * np.real(turned * np.outer(left[:, i].conj(), right[:, i]))
    return float(over @ over), slope


def bounded(operator: FloatArray, gram: FloatArray, radius: float) -> FloatArray:
    """K with eigenvalues beyond ``radius`` moved onto it along their rays.

    By the real Schur form, in features that the Gram matrix (h, h) makes orthonormal: orthogonal
    steps there move K by as much as the data feel it. Cost: O(h³).
    """
    from scipy.linalg import schur

    root, inverse = _roots(gram)
    form, vectors = schur(inverse @ operator @ root)
    k = 0
    while k < len(form):
        size = 2 if k + 1 < len(form) and form[k + 1, k] != 0.0 else 1
        block = form[k : k + size, k : k + size]
        modulus = float(np.abs(np.linalg.eigvals(block)).max())
        if modulus > radius:
            block *= radius / modulus
        k += size
    return root @ (vectors @ form @ vectors.T) @ inverse


def spectral_radius(operator: FloatArray) -> float:
    """The largest |λ| of K."""
    return float(np.abs(np.linalg.eigvals(operator)).max())


def _roots(gram: FloatArray) -> tuple[FloatArray, FloatArray]:
    """G^½ and G^-½, directions below the rounding of G kept at it."""
    values, vectors = np.linalg.eigh(gram)
    roots = np.sqrt(np.maximum(values, len(gram) * 2.0**-52 * values[-1]))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def _eigenvectors(operator: FloatArray) -> tuple[Any, Any, Any]:
    from scipy.linalg import eig

    return tuple(eig(operator, left=True, right=True))
