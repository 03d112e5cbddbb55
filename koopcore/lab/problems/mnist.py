"""MNIST digits and the 784:20:20:20:10 network of Dogra & Redman 2020, with minibatch training."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WIDTHS = (784, 20, 20, 20, 10)
POOLED = (49, 64, 10)
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class Samples:
    """Inputs ``(n, ...)`` and int64 labels ``(n, ...)``, to train and to validate.

    Of digits the inputs are images ``(n, 784)``, float32 in [0, 1].
    """

    inputs: Tensor
    labels: Tensor
    validation_inputs: Tensor
    validation_labels: Tensor


def load(folder: Path | None = None, validation: int = 2000) -> Samples:
    """The 10,000 digits that the package carries, or the full MNIST from a folder.

    folder     : holds the four IDX files (``train-images-idx3-ubyte`` …), plain or ``.gz``; its
                 own test set is then the validation set.
    validation : of the embedded digits, the last so many are kept for validation.

    Raises FileNotFoundError for a missing file, ValueError for one that is not IDX.
    """
    if folder is not None:
        read = [_idx(folder, name) for name in _FILES]
        return Samples(_scaled(read[0]), _long(read[1]), _scaled(read[2]), _long(read[3]))
    if not 1 <= validation < 10_000:
        raise ValueError(f"validation is {validation}; a number in 1..9999 is needed")
    with files("koopcore.lab.problems").joinpath("data/mnist10k.npz").open("rb") as stream:
        stored = np.load(stream)
        images, labels = _scaled(stored["images"]), _long(stored["labels"])
    kept = len(images) - validation
    return Samples(images[:kept], labels[:kept], images[kept:], labels[kept:])


def of_settings(settings: Mapping[str, Any]) -> Samples:
    """The digits that an experiment's settings name: of the folder ``data``, or those carried."""
    folder = settings.get("data")
    return load(None if folder is None else Path(folder))


def described(settings: Mapping[str, Any]) -> str:
    """How many digits those settings train and validate on, in words."""
    if "data" in settings:
        return "digits of the folder given, its test set to validate"
    return "8,000 digits to train, 2,000 to validate"


def pooled(settings: Mapping[str, Any]) -> Samples:
    """Those digits at 7 x 7, each pixel the mean of 16: images ``(n, 49)``."""
    digits = of_settings(settings)

    def coarse(images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images.view(-1, 1, 28, 28), 4).flatten(1)

    return replace(
        digits,
        inputs=coarse(digits.inputs),
        validation_inputs=coarse(digits.validation_inputs),
    )


def network(seed: int = 0, widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """The 784:20:20:20:10 network with ReLU between its layers, torch's initialization."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Minibatches:
    """An endless sequence of random minibatches, each epoch a new order; a callable.

    Two sequences of the same seed are the same, whatever else draws random numbers.
    """

    def __init__(self, digits: Samples, size: int = 64, seed: int = 0) -> None:
        if not 1 <= size <= len(digits.inputs):
            raise ValueError(f"size is {size}; a number in 1..{len(digits.inputs)} is needed")
        self.digits = digits
        self.size = size
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """The next ``(size, 784)`` images and ``(size,)`` labels; what is left over is dropped."""
        if len(self._order) < self.size:
            self._order = torch.randperm(len(self.digits.inputs), generator=self._generator)
        chosen, self._order = self._order[: self.size], self._order[self.size :]
        return self.digits.inputs[chosen], self.digits.labels[chosen]


def train(
    model: nn.Module,
    stepper: torch.optim.Optimizer,
    batches: Minibatches,
    steps: int,
    after_step: Callable[[], object] | None = None,
) -> None:
    """Take ``steps`` optimizer steps on the cross entropy of minibatches."""
    for _ in range(steps):
        images, labels = batches()
        stepper.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        stepper.step()
        if after_step is not None:
            after_step()


def validation_loss(model: nn.Module, digits: Samples) -> float:
    """Mean cross entropy over the validation digits."""
    with torch.no_grad():
        output = model(digits.validation_inputs)
        return float(nn.functional.cross_entropy(output, digits.validation_labels))


def accuracy(model: nn.Module, digits: Samples) -> float:
    """Share of validation digits that are recognized."""
    with torch.no_grad():
        guessed = model(digits.validation_inputs).argmax(1)
    return float((guessed == digits.validation_labels).float().mean())


def _scaled(images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    return torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / 255)


def _long(labels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _idx(folder: Path, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """One IDX file of unsigned bytes: magic 0x0000 08 ndim, big-endian sizes, the values."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.exists():
        data = plain.read_bytes()
    elif packed.exists():
        data = gzip.decompress(packed.read_bytes())
    else:
        raise FileNotFoundError(f"{folder} holds neither {name} nor {name}.gz")
    header = 4 + 4 * data[3] if len(data) > 3 else 4
    sizes = tuple(np.frombuffer(data[4:header], ">u4").astype(int)) if len(data) >= header else ()
    if data[:3] != b"\0\0\x08" or len(data) != header + int(np.prod(sizes)):
        raise ValueError(f"{folder / name} is not an IDX file of unsigned bytes")
    return np.frombuffer(data, np.uint8, offset=header).reshape(sizes)
