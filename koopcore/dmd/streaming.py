"""Streams: what `DMD.partial_fit` remembers of snapshots that it does not keep.

Few features: the moments of [F; F'], 2 m d rows, to which every block adds; nothing is lost. Many:
the same moments of coordinates on at most `BASIS` directions, which the first block gives, and to
which later ones add where they leave the span (Hemati, Williams, Rowley 2014; Brand 2006); the
weakest directions go. Memory depends on neither the number of snapshots nor that of blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.dmd.algebra.columns import moments_of
from koopcore.dmd.algebra.eigen import eigh
from koopcore.types import FloatArray

Numbers = npt.NDArray[Any]

EXACT = 256  # features times delays whose moments are kept whole
BASIS = 48  # directions that are kept of more
SAMPLE = 256  # snapshots of a block that new directions are looked for in
LOOKED_AT = 1024  # snapshots of a block that say whether there are any
JOINING = 16  # directions that a block may add


class Stream:
    """Moments of a growing series of S systems, older snapshots forgotten by a factor each."""

    def __init__(self, systems: int, m: int, delays: int, forgetting: float, rank: object) -> None:
        self.systems, self.m, self.delays, self.forgetting = systems, m, delays, forgetting
        self.most = max(BASIS, 2 * rank if isinstance(rank, int) else 0)
        self.exact = m * delays <= max(EXACT, self.most)
        if not self.exact and systems > 1:
            raise ValueError(
                f"a stream of {systems} systems of {m} features and {delays} delays: more than "
                f"{EXACT} features times delays are streamed one system at a time"
            )
        self.basis: FloatArray | Numbers | None = None  # (m, k)
        self.moments: Numbers | None = None  # (S, 2 k d, 2 k d)
        self.recent: Numbers | None = None  # (S, d, k) coordinates of the newest snapshots
        self.last: Numbers | None = None  # (S, m)
        self.count = 0  # snapshots seen
        self.weight = 0.0  # of all pairs together
        self.window: Numbers | None = None  # the snapshots themselves, where a window was asked for
        self.outside = 0.0  # share of a block's energy that the basis does not hold

    def add(self, x: Numbers) -> None:
        """Take in the next snapshots (S, n, m)."""
        y = self._coordinates(x)
        self.last = np.array(x[:, -1])
        joined = y if self.recent is None else np.concatenate([self.recent, y], axis=1)
        self.count += x.shape[1]
        pairs = joined.shape[1] - self.delays
        if pairs > 0:
            weights = self.forgetting ** (0.5 * np.arange(pairs)[::-1])
            new = moments_of(joined, np.arange(pairs), self.delays, weights)
            self.weight = self.weight * self.forgetting**pairs + float(weights @ weights)
            if self.moments is None:
                self.moments = new
            else:
                self.moments = self.moments * self.forgetting**pairs + new
        self.recent = np.array(joined[:, -self.delays :])

    def keep(self, x: Numbers, window: int) -> None:
        """Take in the next snapshots, and keep the last ``window`` of them."""
        joined = x if self.window is None else np.concatenate([self.window, x], axis=1)
        self.window = np.array(joined[:, -window:])
        self.count = self.window.shape[1]

    @property
    def n_pairs(self) -> int:
        """Steps that were seen."""
        return max(self.count - self.delays, 0)

    def lifted(self, coefficients: Numbers) -> Numbers:
        """States (S, m, r) of coordinates (S, k, r)."""
        return coefficients if self.basis is None else self.basis @ coefficients

    def _coordinates(self, x: Numbers) -> Numbers:
        wide = np.complex128 if x.dtype.kind == "c" else np.float64
        if self.exact:
            return x.astype(wide, copy=False)
        rows = x[0]
        first = self.basis is None
        if first:
            self.basis = directions(rows[:SAMPLE], self.most)
        assert self.basis is not None
        y = rows @ self.basis.conj().astype(x.dtype)
        outside = self._outside(rows, y)
        if not first and outside > 1.5 * self.outside + 1e-12:
            self._join(rows, y)
            y = rows @ self.basis.conj().astype(x.dtype)
            outside = self._outside(rows, y)
        self.outside = outside
        return y[None].astype(wide)

    @staticmethod
    def _outside(rows: Numbers, y: Numbers) -> float:
        """Of snapshots spread over the block: the norms of all would cost as much as y."""
        every = slice(None, None, max(len(rows) // LOOKED_AT, 1))
        energy = float(_norms(rows[every]).sum())
        return max(1.0 - float(_norms(y[every]).sum()) / energy, 0.0) if energy > 0.0 else 0.0

    def _join(self, rows: Numbers, y: Numbers) -> None:
        """Directions of what the basis does not hold; as many of the weakest go as are too many."""
        assert self.basis is not None
        rest = np.abs(rows).max(axis=1) if len(rows) <= SAMPLE else _norms(rows) - _norms(y)
        sample = np.sort(np.argsort(-rest)[:SAMPLE])
        error = rows[sample] - y[sample] @ self.basis.T.astype(rows.dtype)
        new = directions(error, JOINING)
        new = new - self.basis @ (self.basis.conj().T @ new)
        new = np.linalg.qr(new)[0]
        old = self.basis.shape[1]
        self._turn(np.eye(old, old + new.shape[1]))
        self.basis = np.concatenate([self.basis, new], axis=1)
        if self.basis.shape[1] > self.most and self.moments is not None:
            k = self.basis.shape[1]
            seen = y[sample] @ np.eye(old, k) + rows[sample] @ np.concatenate(
                [np.zeros((self.m, old)), new.conj()], axis=1
            )
            share = self.moments[0, :k, :k] + seen.T @ seen.conj()
            turn = eigh(share[None])[1][0, :, : self.most]
            self._turn(turn.conj())
            self.basis = self.basis @ turn

    def _turn(self, turn: Numbers) -> None:
        """Coordinates y become y T: (k,) to (l,)."""
        if self.recent is not None:
            self.recent = self.recent @ turn
        if self.moments is not None:
            k, blocks = turn.shape[0], 2 * self.delays
            each = self.moments.reshape(self.systems, blocks, k, blocks, k)
            each = np.einsum("sakbl,kp,lq->sapbq", each, turn, turn.conj(), optimize=True)
            size = blocks * turn.shape[1]
            self.moments = each.reshape(self.systems, size, size)


def directions(rows: Numbers, most: int) -> Numbers:
    """Orthonormal leading directions (m, k) of rows (n, m)."""
    wide = rows.astype(np.complex128 if rows.dtype.kind == "c" else np.float64)
    squares, v = np.linalg.eigh(wide @ wide.conj().T)
    squares, v = squares[::-1][:most], v[:, ::-1][:, :most]
    v = v[:, squares > 1e-14 * max(squares[0], 1e-300)]
    if not v.shape[1]:
        v = np.ones((len(rows), 1))
    q: Numbers = np.linalg.qr(wide.T @ v.conj())[0]
    return q


def _norms(rows: Numbers) -> FloatArray:
    squares = np.einsum("ij,ij->i", rows, rows.conj()).real
    return squares.astype(np.float64)
