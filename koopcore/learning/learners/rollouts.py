"""What F does not see: errors of predictions over many steps, and the spectral radius of K."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from koopcore.types import FloatArray, IntArray

_DEFECTIVE = 1e-10  # |wᴴv| of an eigenvalue whose derivative is rounding: it is about to split


class Windows(NamedTuple):
    """Where predictions are compared with what was seen.

    rows: (S,) of x_0 among all states. inputs: (H, S, m), u_0 … u_{H-1}. targets: (H, S, n), the
    states behind x_0. weights: (S, n), of the squares; their products with the states' variances
    sum to 1, so that predicting the mean has an error of about 1.
    """

    rows: IntArray
    inputs: FloatArray
    targets: FloatArray
    weights: FloatArray

    def value(
        self, features: FloatArray, operator: FloatArray, places: IntArray
    ) -> tuple[float, list[FloatArray]]:
        """The mean squared error of steps 1 … H, and what its gradient needs of the way there.

        features: ψ(x_0), (S, h). operator: [K B], (h, h + m). places: of the states in ψ.
        Infinite where a prediction is. Cost: 2 S H h² flops.
        """
        h = features.shape[1]
        tape = [features]
        error = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for u, target in zip(self.inputs, self.targets, strict=True):
                tape.append(tape[-1] @ operator[:, :h].T + u @ operator[:, h:].T)
                missed = tape[-1][:, places] - target
                error += float(np.vdot(missed, self.weights * missed))
        error /= self.targets.shape[0] * len(self.rows)
        return (error if np.isfinite(error) else float("inf")), tape

    def gradient(
        self, tape: list[FloatArray], operator: FloatArray, places: IntArray
    ) -> tuple[FloatArray, FloatArray]:
        """Gradients of `value` by ψ(x_0), (S, h), and by [K B]. Cost: 4 S H h² flops."""
        h = tape[0].shape[1]
        slope = np.zeros_like(operator)
        back = np.zeros_like(tape[0])
        factor = 2.0 / (self.targets.shape[0] * len(self.rows))
        for step in range(len(self.targets), 0, -1):
            missed = tape[step][:, places] - self.targets[step - 1]
            back[:, places] += factor * self.weights * missed
            slope[:, :h] += back.T @ tape[step - 1]
            slope[:, h:] += back.T @ self.inputs[step - 1]
            back = back @ operator[:, :h]
        return back, slope


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
