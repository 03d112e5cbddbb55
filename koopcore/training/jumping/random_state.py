"""Save and restore the random states that a loss draws from, each as cheaply as it allows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch


class RandomState:
    """The states of torch's generators and, if the loss uses them, of NumPy and ``random``.

    Saving NumPy's global state costs 150 us and ``random``'s 30 us, as much as a small network's
    training step, where torch's costs 3 us. So torch (CPU, the CUDA devices in use, the generators
    given) is always restored; the other two only from the first evaluation on in which the loss
    was seen to draw from them, which is looked for in the first :data:`PROBES` evaluations.
    """

    PROBES = 3

    def __init__(self, generators: Iterable[torch.Generator] = ()) -> None:
        self._generators = list(generators)
        self._torch: list[tuple[Callable[[Any], Any], Any]] = []
        self._others: dict[str, Any] = {}
        self._guarded = set(_OTHERS)
        self._drawn: set[str] = set()
        self._probed = 0

    def save(self, devices: Iterable[torch.device]) -> None:
        """Keep the present states; ``devices`` are those whose default generator is in use."""
        self._torch = [(torch.set_rng_state, torch.get_rng_state())]
        for device in devices:
            if device.type == "cuda":
                state = torch.cuda.get_rng_state(device)
                self._torch.append((_cuda_setter(device), state))
        self._torch += [(g.set_state, g.get_state()) for g in self._generators]
        self._others = {name: _OTHERS[name][0]() for name in self._guarded}

    def notice(self) -> None:
        """Look whether the evaluation that just ended drew from NumPy or ``random``."""
        if self._probed == self.PROBES:
            return
        self._probed += 1
        self._drawn |= {n for n, state in self._others.items() if not _same(_OTHERS[n][0](), state)}
        if self._probed == self.PROBES:
            self._guarded = self._drawn

    def restore(self) -> None:
        """Put back what :meth:`save` kept."""
        for setter, state in self._torch:
            setter(state)
        for name in self._drawn & self._others.keys():
            _OTHERS[name][1](self._others[name])


def _cuda_setter(device: torch.device) -> Callable[[Any], Any]:
    return lambda state: torch.cuda.set_rng_state(state, device)


def _same(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


#: Name of a global generator -> (get its state, set it).
_OTHERS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    # The legacy global state is deprecated for new code, but it is what losses draw from.
    "numpy": (np.random.get_state, np.random.set_state),
    "random": (random.getstate, random.setstate),
}
