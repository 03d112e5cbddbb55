"""What the ranks of Algorithm 2 tell each other: ψ by all-gather, errors by all-to-all; counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from koopcore.types import FloatArray


class RanksLost(RuntimeError):
    """A collective failed: some rank is gone, its connection closed, or it kept silent."""


@contextmanager
def ranks_together() -> Iterator[None]:
    """Turn a failure of torch.distributed inside into `RanksLost`, with its first line."""
    try:
        yield
    except RuntimeError as error:  # torch's DistError and gloo's own errors are of this kind
        reason = str(error).partition("\n")[0]
        raise RanksLost(f"lost the other ranks: {reason}") from error


@dataclass
class Traffic:
    """What one rank moved: bytes sent and received by collective, and how many iterations."""

    gathered: int = 0  # received by all-gathers of ψ
    exchanged: int = 0  # received by exchanges of K_viᵀ e^v
    sent: int = 0
    iterations: int = 0
    seconds: float = 0.0


@dataclass
class Collectives:
    """The two messages of an iteration. Numbers that decide anything travel in them, as sums."""

    widths: list[int]  # features per rank
    rank: int
    device: torch.device
    traffic: Traffic = field(default_factory=Traffic)

    def gather(
        self, features: FloatArray, squares: tuple[float, float]
    ) -> tuple[FloatArray, tuple[float, float]]:
        """Everybody's ψ (M, h), and the sums of the two numbers that each rank adds to it.

        Ranks with fewer features than the widest pad their message: 8 M max h_i bytes each.
        """
        points, count = len(features), len(self.widths)
        packet = torch.zeros(points * max(self.widths) + 2, dtype=torch.float64)
        packet[: features.size] = torch.from_numpy(np.ascontiguousarray(features)).reshape(-1)
        packet[-2:] = torch.tensor(squares, dtype=torch.float64)
        packet = packet.to(self.device)
        everyone = torch.empty(count * packet.numel(), dtype=torch.float64, device=self.device)
        with ranks_together():
            dist.all_gather(list(everyone.view(count, -1).unbind(0)), packet)
        rows = everyone.cpu().view(count, -1).numpy()
        others = (count - 1) * packet.numel() * 8
        self.traffic.gathered += others
        self.traffic.sent += others
        parts = [
            row[: points * w].reshape(points, w) for row, w in zip(rows, self.widths, strict=True)
        ]
        k, w = rows[:, -2:].sum(axis=0)
        return np.concatenate(parts, axis=1), (float(k), float(w))

    def exchange(
        self, contributions: FloatArray, squares: tuple[float, float]
    ) -> tuple[FloatArray, tuple[float, float]]:
        """Σ_v K_viᵀ e^v (N, h_i) of ``contributions`` e^v K_v (N, h), and the sums of two numbers.

        The columns of rank v go to rank v alone: 8 N h_i bytes from every other rank.
        """
        points = len(contributions)
        cuts = np.cumsum(self.widths)[:-1]
        pieces = [np.append(part, squares) for part in np.split(contributions, cuts, axis=1)]
        outgoing = torch.from_numpy(np.concatenate(pieces)).to(self.device)
        sizes = [piece.size for piece in pieces]
        own, count = sizes[self.rank], len(sizes)
        incoming = torch.empty(own * count, dtype=torch.float64, device=self.device)
        with ranks_together():
            dist.all_to_all_single(incoming, outgoing, [own] * count, sizes)
        self.traffic.exchanged += (count - 1) * own * 8
        self.traffic.sent += (sum(sizes) - own) * 8
        self.traffic.iterations += 1
        total = incoming.cpu().numpy().reshape(count, own).sum(axis=0)
        return total[:-2].reshape(points, -1), (float(total[-2]), float(total[-1]))

    def total(self, squares: tuple[float, float]) -> tuple[float, float]:
        """Sums over the ranks of two numbers alone, at the end."""
        both = torch.tensor(squares, dtype=torch.float64, device=self.device)
        with ranks_together():
            dist.all_reduce(both)
        k, w = both.cpu().tolist()
        return k, w


def gathered(piece: Any) -> list[Any]:
    """Everybody's picklable ``piece``, in the order of the ranks; for once at the end."""
    pieces: list[Any] = [None] * dist.get_world_size()
    with ranks_together():
        dist.all_gather_object(pieces, piece)
    return pieces
