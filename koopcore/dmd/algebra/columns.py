"""Products of snapshots, which all of dynamic mode decomposition is made of.

For one system with snapshots x_1 … x_n of m features, and d delays, F has the columns
[x_k; …; x_{k+d-1}], and F' the same one step later. Everything is a function of

    a = FᴴF    h = FᴴF'    c = F'ᴴF'         (N, N), N pairs of columns: the snapshot side

and of two products of the data, F g and F' g. Where there are more pairs than features it is a
function of a = FFᴴ and h = F'Fᴴ (m d, m d): the feature side, where the same formulas hold, with
F' g = h g and F g = a g. What needs c there takes the triangle that [F; F'] is up to a rotation of
its columns: the snapshot side again, of 2 m d columns at most.
Source: docs/mathematics.md, section on dynamic mode decomposition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from koopcore import arrays
from koopcore.backends.protocol import Backend, Snapshots, unpack
from koopcore.dmd.algebra.eigen import eigh
from koopcore.dmd.series import Series, strided
from koopcore.partition.partition import Partition
from koopcore.types import FloatArray, IntArray

Numbers = npt.NDArray[Any]
Lift = Callable[[Numbers, int], Any]
Noise: TypeAlias = float | Literal["median"]


@dataclass
class Columns:
    """The products of F and F' of S systems, and how coefficients of columns become states."""

    a: Numbers  # (S, N, N)
    h: Numbers  # (S, N, N)
    c: Numbers | None  # (S, N, N); None on the feature side
    current: Lift  # g (S, N, r), k -> block k < d of F g: (S, m, r)
    following: Lift  # the same of F' g
    n_pairs: int
    n_rows: int  # m d

    def mixed(self, mixer: Numbers) -> Columns:
        """The products of F W and F' W."""
        adjoint = mixer.conj().swapaxes(1, 2)
        return Columns(
            adjoint @ self.a @ mixer,
            adjoint @ self.h @ mixer,
            None if self.c is None else adjoint @ self.c @ mixer,
            lambda g, k: self.current(mixer @ g, k),
            lambda g, k: self.following(mixer @ g, k),
            self.n_pairs,
            self.n_rows,
        )


def pairs(series: Series, delays: int) -> tuple[IntArray, IntArray]:
    """First rows of the columns of F and of F': no pair reaches across two trajectories."""
    short = min(series.lengths)
    if short < delays + 1:
        raise ValueError(
            f"a series has {short} snapshot{'s' * (short != 1)} (n_samples = {short}); delays="
            f"{delays} needs at least {delays + 1}, so that one step is seen"
        )
    current = np.concatenate(
        [
            start + np.arange(length - delays)
            for start, length in zip(series.starts, series.lengths, strict=True)
        ]
    )
    return current, current + 1


def columns_of(
    series: Series, delays: int, whole: bool, noise: Noise, forgetting: float, on: Backend
) -> Columns:
    """The products, on the side of which there are fewer.

    whole: whether c is needed. noise: variance of each feature's observation noise, whose share of
    the products is taken off, or "median". forgetting: weight of a pair beside the next one's.
    """
    current, following = pairs(series, delays)
    features = int(series.array.shape[2])
    weights: FloatArray = forgetting ** (0.5 * np.arange(len(current), dtype=np.float64)[::-1])
    if features * delays < len(current):
        return _feature_side(series, delays, current, whole, noise, weights)
    return _snapshot_side(series, delays, current, following, noise, weights, on)


def gram(series: Series, on: Backend) -> Numbers:
    """XᴴX (S, n, n): of real series by the backend, which reads the snapshots once."""
    array = series.array
    systems, n, m = (int(size) for size in array.shape)
    if series.is_complex:
        x = arrays.host(array).astype(np.complex128, copy=False)
        return x.conj() @ x.swapaxes(1, 2)
    # Row t of every system is m numbers after row t - 1: as one array of n rows they overlap.
    step = series.step
    part = Partition(
        (systems - 1) * step + m,
        np.arange(systems + 1),
        np.arange(systems) * step,
        np.full(systems, m),
        np.ones(systems, dtype=np.int64),
        "systems",
    )
    rows = strided(array, (n, part.size), (m, 1))
    packed = on.gram(Snapshots(rows, np.arange(n)), part)
    differences = unpack(np.asarray(packed), n)
    products: FloatArray = np.cumsum(differences, axis=1)  # x_k = x_1 + d_1 + … + d_{k-1}
    return np.cumsum(products, axis=2, out=products)


def _snapshot_side(
    series: Series,
    delays: int,
    current: IntArray,
    following: IntArray,
    noise: Noise,
    weights: FloatArray,
    on: Backend,
) -> Columns:
    products = gram(series, on)
    if noise:
        rows = np.arange(products.shape[1])
        variance = variances(noise, products, int(series.array.shape[2]))
        products[:, rows, rows] -= variance[:, None] * series.array.shape[2]
    a, h, c = (
        _delayed(products, left, right, delays)
        for left, right in ((current, current), (current, following), (following, following))
    )
    if weights[0] != 1.0:
        scale = weights[:, None] * weights
        a, h, c = a * scale, h * scale, c * scale
    column = weights[:, None]
    return Columns(
        a,
        h,
        c,
        lambda g, k: lift(series.array, current + k, g * column),
        lambda g, k: lift(series.array, following + k, g * column),
        len(current),
        int(series.array.shape[2]) * delays,
    )


def _delayed(products: Numbers, left: IntArray, right: IntArray, delays: int) -> Numbers:
    """Σ_{k<d} XᴴX[left + k, right + k]: the products of columns of d snapshots each."""
    n = len(left)
    if left[-1] - left[0] == n - 1:  # one trajectory: shifted blocks, no index
        i, j = int(left[0]), int(right[0])
        if delays == 1:
            return products[:, i : i + n, j : j + n]
        return sum(
            (products[:, i + k : i + k + n, j + k : j + k + n] for k in range(1, delays)),
            products[:, i : i + n, j : j + n].copy(),
        )
    return sum(
        (products[:, left[:, None] + k, right + k] for k in range(1, delays)),
        products[:, left[:, None], right],
    )


def _feature_side(
    series: Series,
    delays: int,
    current: IntArray,
    whole: bool,
    noise: Noise,
    weights: FloatArray,
) -> Columns:
    x = arrays.host(series.array)
    x = x.astype(np.complex128 if series.is_complex else np.float64, copy=False)
    m = x.shape[2]
    rows = m * delays
    moments = moments_of(x, current, delays, weights)
    if noise:
        moments = without_noise(moments, noise, m, rows, float(weights @ weights))
    columns = columns_of_moments(moments, m, rows, len(current), whole)
    if not isinstance(series.array, np.ndarray):  # modes lie where the snapshots do
        place, now, then = arrays.memory(series.array).upload, columns.current, columns.following
        columns.current = lambda g, k: place(np.ascontiguousarray(now(g, k)))
        columns.following = lambda g, k: place(np.ascontiguousarray(then(g, k)))
    return columns


def without_noise(moments: Numbers, noise: Noise, m: int, rows: int, weight: float) -> Numbers:
    """Moments less the noise's share: of every feature on itself, ``weight`` pairs in all."""
    off = variances(noise, moments[:, :m, :m], round(weight)) * weight
    moments = moments.copy()
    place = np.arange(2 * rows)
    moments[:, place, place] -= off[:, None]
    same = np.arange(rows - m)  # x_{k+1} … x_{k+d-1} stand in F and, a block earlier, in F'
    for left, right in ((same + m, same + rows), (same + rows, same + m)):
        moments[:, left, right] -= off[:, None]
    return moments


def moments_of(x: Numbers, current: IntArray, delays: int, weights: FloatArray) -> Numbers:
    """Z Zᴴ of Z = [F; F'], (S, 2 m d, 2 m d), for (S, n, m) series."""
    count, m = len(current), x.shape[2]
    steps = delays + 1
    if current[-1] - current[0] == count - 1 and delays == 1 and weights[0] == 1.0:
        i = int(current[0])
        blocks = [x[:, i : i + count], x[:, i + 1 : i + 1 + count]]
        stacked = np.concatenate(blocks, axis=2) if x.shape[0] > 1 and m < 64 else None
        if stacked is None:
            f, g = blocks
            a, h, c = (_product(p, q) for p, q in ((f, f), (g, f), (g, g)))
            return np.block([[a, h.conj().swapaxes(1, 2)], [h, c]])
        return _product(stacked, stacked)
    windows = x[:, current[:, None] + np.arange(steps)]  # (S, N, d + 1, m)
    f = windows[:, :, :delays].reshape(len(x), count, -1)
    g = windows[:, :, 1:].reshape(len(x), count, -1)
    stacked = np.concatenate([f, g], axis=2) * weights[:, None]
    return _product(stacked, stacked)


def columns_of_moments(moments: Numbers, m: int, rows: int, count: int, whole: bool) -> Columns:
    """The feature side: a = FFᴴ and h = F'Fᴴ, or, where c is needed, a small snapshot side."""
    if not whole:
        a, h = moments[:, :rows, :rows], moments[:, rows:, :rows]
        return Columns(
            a,
            h,
            None,
            lambda g, k: block(a, k, m) @ g,
            lambda g, k: block(h, k, m) @ g,
            count,
            rows,
        )
    sizes, vectors = np.linalg.eigh(moments)
    factor = vectors * np.sqrt(np.maximum(sizes, 0.0))[:, None]
    f, g = factor[:, :rows], factor[:, rows:]
    return Columns(
        f.conj().swapaxes(1, 2) @ f,
        f.conj().swapaxes(1, 2) @ g,
        g.conj().swapaxes(1, 2) @ g,
        lambda coefficients, k: block(f, k, m) @ coefficients,
        lambda coefficients, k: block(g, k, m) @ coefficients,
        count,
        rows,
    )


def block(rows: Numbers, k: int, m: int) -> Numbers:
    """Rows of the snapshots k later."""
    return rows[:, k * m : (k + 1) * m]


def variances(noise: Noise, gram: Numbers, others: int) -> FloatArray:
    """The variance (S,) of noise: as given, or from the median singular value of S data matrices.

    gram: products of their k rows, of ``others`` columns, or the other way round. σ s_med / √(N μ)
    with the median μ of the Marchenko-Pastur law, as √μ = λ/ω of the optimal thresholds for known
    and unknown σ (Gavish & Donoho 2014). Not where more than half the singular values are signal.
    """
    if noise != "median":
        return np.full(len(gram), noise)
    size, long = sorted((gram.shape[1], others))
    squares = np.maximum(eigh(gram)[0][:, :size], 0.0)
    beta = size / long
    known = 2.0 * (beta + 1.0) + 8.0 * beta / (beta + 1.0 + np.sqrt(beta**2 + 14.0 * beta + 1.0))
    return np.median(squares, axis=1) / (long * known) * omega(beta) ** 2


def omega(beta: float) -> float:
    """The optimal hard threshold over the median singular value (Gavish & Donoho 2014, eq. 5)."""
    return 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43


def _product(p: Numbers, q: Numbers) -> Numbers:
    """Σ_t p_t q_tᴴ: (S, p, q) of (S, n, p) and (S, n, q)."""
    return p.swapaxes(1, 2) @ q.conj()


def lift(array: Any, rows: IntArray, g: Numbers) -> Any:
    """Σ_k x_{rows[k]} g_k: (S, m, r), complex where ``g`` is; of the library of ``array``."""
    first, count = int(rows[0]), len(rows)
    if int(rows[-1]) - first == count - 1:
        x = array[:, first : first + count]
    else:
        x = array[:, rows.tolist()]
    return contract(x, g)


def contract(x: Any, g: Numbers) -> Any:
    """xᵀ g, of (S, n, m) and (S, n, r): a real x is not made complex."""
    if isinstance(x, np.ndarray):
        flipped = x.swapaxes(1, 2)
        if x.dtype.kind == "c" or g.dtype.kind != "c":
            return flipped @ g
        parts = np.ascontiguousarray(g).view(np.float64)  # (S, n, 2 r), re and im in turn
        wide = flipped.astype(np.float64, copy=False) @ parts
        return np.ascontiguousarray(wide).view(np.complex128)
    on = arrays.memory(x).upload(np.ascontiguousarray(g, dtype=np.complex128))
    if hasattr(x, "mT"):  # torch
        return x.mT.to(on.dtype) @ on
    return x.swapaxes(1, 2).astype(on.dtype) @ on
