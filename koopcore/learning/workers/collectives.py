"""What the ranks of Algorithm 2 tell each other: ψ by all-gather, errors by all-to-all; counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from koopcore.learning.workers.messages import MessageDtype
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
    """The two messages of an iteration. Numbers that decide anything travel in them, as sums.

    widths: features per rank. messages: the dtype that arrays travel in; sums are always float64.
    """

    widths: list[int]
    rank: int
    device: torch.device
    messages: MessageDtype = "float64"
    traffic: Traffic = field(default_factory=Traffic)

    def gather(
        self, features: FloatArray, squares: tuple[float, float]
    ) -> tuple[FloatArray, tuple[float, float]]:
        """Everybody's ψ (M, h), and the sums of the two numbers that each rank adds to it.

        Every rank receives M (h - h_i) numbers and two sums from each other: nothing is padded.
        Equal widths travel by all-gather, others by all-to-all.
        """
        points, count = len(features), len(self.widths)
        packet = self._packet(features, squares)
        sizes = [points * width * self._itemsize + 2 * 8 for width in self.widths]
        everyone = torch.empty(sum(sizes), dtype=torch.uint8, device=self.device)
        with ranks_together():
            if len(set(sizes)) == 1:
                dist.all_gather(list(everyone.view(count, -1).unbind(0)), packet)
            else:
                dist.all_to_all_single(
                    everyone, packet.repeat(count), sizes, [packet.numel()] * count
                )
        self.traffic.gathered += sum(sizes) - packet.numel()
        self.traffic.sent += (count - 1) * packet.numel()
        parts, sums = self._unpacked(everyone, sizes, points)
        # What the others see of this rank is rounded where messages are; it sees the same.
        return np.concatenate(parts, axis=1), sums

    def exchange(
        self, contributions: FloatArray, squares: tuple[float, float]
    ) -> tuple[FloatArray, tuple[float, float]]:
        """Σ_v K_viᵀ e^v (N, h_i) of ``contributions`` e^v K_v (N, h), and the sums of two numbers.

        The columns of rank v go to rank v alone: N h_i numbers from every other rank.
        """
        points, count = len(contributions), len(self.widths)
        cuts = np.cumsum(self.widths)[:-1]
        pieces = [self._packet(part, squares) for part in np.split(contributions, cuts, axis=1)]
        sizes = [piece.numel() for piece in pieces]
        own = sizes[self.rank]
        incoming = torch.empty(own * count, dtype=torch.uint8, device=self.device)
        with ranks_together():
            dist.all_to_all_single(incoming, torch.cat(pieces), [own] * count, sizes)
        self.traffic.exchanged += (count - 1) * own
        self.traffic.sent += sum(sizes) - own
        self.traffic.iterations += 1
        parts, sums = self._unpacked(incoming, [own] * count, points)
        return np.sum(parts, axis=0), sums

    def total(self, squares: tuple[float, float]) -> tuple[float, float]:
        """Sums over the ranks of two numbers alone, at the end."""
        both = torch.tensor(squares, dtype=torch.float64, device=self.device)
        with ranks_together():
            dist.all_reduce(both)
        k, w = both.cpu().tolist()
        return k, w

    @property
    def _itemsize(self) -> int:
        return np.dtype(self.messages).itemsize

    def _packet(self, array: FloatArray, squares: tuple[float, float]) -> torch.Tensor:
        """An array in the messages' dtype and two sums in float64, as bytes on the device."""
        parts = np.ascontiguousarray(array, self.messages), np.array(squares, np.float64)
        content = np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])
        return torch.from_numpy(content).to(self.device)

    def _unpacked(
        self, packets: torch.Tensor, sizes: list[int], points: int
    ) -> tuple[list[FloatArray], tuple[float, float]]:
        """The arrays (points, …) of packets of these sizes in bytes, in float64, and their sums."""
        arrays, sums = [], np.zeros(2)
        for packet in np.split(packets.cpu().numpy(), np.cumsum(sizes)[:-1]):
            numbers = np.frombuffer(packet[:-16].tobytes(), self.messages)
            arrays.append(numbers.astype(np.float64).reshape(points, -1))
            sums += np.frombuffer(packet[-16:].tobytes(), np.float64)
        return arrays, (float(sums[0]), float(sums[1]))


def gathered(piece: Any) -> list[Any]:
    """Everybody's picklable ``piece``, in the order of the ranks; for once at the end."""
    pieces: list[Any] = [None] * dist.get_world_size()
    with ranks_together():
        dist.all_gather_object(pieces, piece)
    return pieces
