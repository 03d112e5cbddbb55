"""Which backends run here, and cases for their stages: groups, snapshots, views, comparisons."""

from typing import Any

import numpy as np
from trajectories import NAMES, basis_of

from koopcore.backends.protocol import Projection, Snapshots, unpack
from koopcore.backends.reference import Reference
from koopcore.partition.partition import Partition

U = 2.0**-53
RAGGED = [1, 2, 7, 16, 31, 65, 129, 300]
DTYPES = [np.float32, np.float64]
REFERENCE = Reference()


def _on_cpu() -> list[str]:
    if "native_cpu" not in NAMES:
        return NAMES
    from koopcore._native import _cpu

    return [f"native_cpu-{isa}" for isa in _cpu.supported_isas()] + NAMES[1:]


#: Parameters of the fixture `backend`: native_cpu counts once for each instruction set; the CUDA
#: kernels run on the host emulation, and CuPy's operations on NumPy.
ON_CPU = _on_cpu()
EVERY = [*ON_CPU, "native_cuda", "cupy_cuda"]

#: All but the one that the others are compared with, for parametrize(..., indirect=True).
OTHERS = [name for name in EVERY if name != "reference"]


# -- groups ---------------------------------------------------------------------------------------


def ragged(rng, sizes) -> Partition:
    """Groups of the given sizes: contiguous ones, strided ones and scattered ones in turn."""
    groups, at = [], 2
    for i, m in enumerate(sizes):
        scattered = np.sort(rng.choice(np.arange(at, at + 3 * m), m, replace=False))
        groups.append((np.arange(at, at + m), np.arange(at, at + 3 * m, 3), scattered)[i % 3])
        at += 3 * m
    return Partition.groups(at + 6, groups)


def pieced(sizes) -> Partition:
    """Groups of the given sizes: contiguous, strided, and in two segments, in turn."""
    groups, at = [], 2
    for i, m in enumerate(sizes):
        two = np.r_[at : at + m - 1, at + 3 * m - 2]
        groups.append((np.arange(at, at + m), np.arange(at, at + 3 * m, 3), two)[i % 3])
        at += 3 * m
    return Partition.groups(at + 6, groups)


def side_by_side(sizes) -> Partition:
    """Contiguous groups of the given sizes, without gaps."""
    ends = np.cumsum(sizes)
    groups = [slice(end - m, end) for m, end in zip(sizes, ends, strict=True)]
    return Partition.groups(int(ends[-1]), groups)


def covered(part: Partition) -> np.ndarray:
    """The parameters that are in a group."""
    return np.concatenate([part.indices(group) for group in range(part.n_groups)])


# -- snapshots ------------------------------------------------------------------------------------


def walks(rng, n, size, dtype, spare=2) -> Snapshots:
    """Random walks with an offset, in a ring with ``spare`` more slots, turned by some."""
    steps = rng.normal(size=(n + spare, size))
    array = (np.cumsum(steps, axis=0) + 3.0 * rng.normal(size=size)).astype(dtype)
    return Snapshots(array, (np.arange(n) + n - 1) % (n + spare))


def decays(n, size, seed, dtype) -> Snapshots:
    """Decaying, oscillating and noisy parameters, float32 numbers: cond(F) of some thousands."""
    rng = np.random.default_rng(seed)
    t = np.arange(n)[:, None]
    x = rng.normal(size=size) + 1e-2 * rng.normal(size=(n, size))
    for rate in (0.05, 0.2, 0.5):
        x = x + rng.normal(size=size) * np.exp(-rate * t)
    x = x + rng.normal(size=size) * np.cos(0.3 * t)
    return rotated(x.astype(np.float32).astype(dtype), 3)


def in_order(x) -> Snapshots:
    return Snapshots(x, np.arange(len(x)))


def rotated(x, by) -> Snapshots:
    """The same window in a ring buffer whose oldest row is ``by``."""
    order = (np.arange(len(x)) + by) % len(x)
    ring = np.empty_like(x)
    ring[order] = x
    return Snapshots(ring, order)


def packed_gram(x) -> np.ndarray:
    """BᵀB of one group's snapshots (n, m), from longdouble sums."""
    basis = basis_of(x)
    return (basis.T @ basis).astype(np.float64)[np.tril_indices(len(x))]


# -- where arrays lie -----------------------------------------------------------------------------


def _part_of(x, rows=slice(None), columns=slice(None), wide=(1, 1)):
    """A copy of ``x`` at the given rows and columns of a larger array of NaN."""
    out = np.full((wide[0] * len(x), wide[1] * x.shape[1] + 8), np.nan, x.dtype)
    at = out[rows, columns][: len(x), : x.shape[1]]
    at[...] = x
    return at


def _reversed_rows(x):
    return x[::-1].copy()[::-1]


def _unaligned(x):
    raw = np.empty(x.nbytes + 1, dtype=np.uint8)
    view = np.frombuffer(raw[1:].data, dtype=x.dtype).reshape(x.shape)
    view[...] = x
    return view


def _in_records(x):
    record = np.zeros(x.shape, np.dtype([("flag", np.int8), ("value", x.dtype)]))
    record["value"] = x
    return record["value"]


def read_only(x):
    copy = x.copy()
    copy.flags.writeable = False
    return copy


#: Copies of an array (rows, size) as tensors of a device may lie.
DEVICE_VIEWS = {
    "from column 1": lambda x: _part_of(x, columns=slice(1, None)),
    "from column 3": lambda x: _part_of(x, columns=slice(3, None)),
    "Fortran": np.asfortranarray,
    "every 2nd row": lambda x: _part_of(x, rows=slice(None, None, 2), wide=(2, 1)),
    "every 3rd column": lambda x: _part_of(x, columns=slice(None, None, 3), wide=(1, 3)),
}

#: And as NumPy arrays may besides.
HOST_VIEWS = {
    "rows backwards": _reversed_rows,
    "columns backwards": lambda x: _reversed_rows(x.T.copy()).T,
    "all backwards": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "unaligned": _unaligned,
    "in records": _in_records,
}

VIEWS = DEVICE_VIEWS | HOST_VIEWS

#: Every view that an array of every backend may be, for parametrize(..., indirect=["backend"]).
VIEWED = [
    (backend, view) for view in VIEWS for backend in (EVERY if view in DEVICE_VIEWS else ON_CPU)
]


# -- comparisons ----------------------------------------------------------------------------------


def gram_error(got, expected, n) -> float:
    """Largest error of an entry over the norms of its two vectors: what rounding is relative to."""
    norm = np.sqrt(np.diagonal(unpack(expected, n), axis1=1, axis2=2))
    rows, columns = np.tril_indices(n)
    scale = norm[:, rows] * norm[:, columns]
    return np.max(np.abs(got - expected) / np.where(scale > 0.0, scale, 1.0))


def close(actual: Any, expected: Any, tolerance: float, message: object = "") -> None:
    """Equal to ``tolerance`` of the largest finite entry, and not finite at the same places."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, message
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=str(message))
    scale = np.abs(expected[finite]).max(initial=0.0)
    np.testing.assert_allclose(
        actual[finite], expected[finite], rtol=0, atol=tolerance * scale, err_msg=str(message)
    )


def same_bits(results, others) -> None:
    """Of two lists of arrays."""
    for one, other in zip(results, others, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def invariants(fit: Projection) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """V Vᵀ, V K Vᵀ and V z: the same for every V with V Vᵀ = A⁺."""
    v = fit.whitener
    across = v.transpose(0, 2, 1)
    return v @ across, v @ fit.operator @ across, v @ fit.start[:, :, None]
