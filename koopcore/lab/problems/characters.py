"""Next characters of a made-up language, and a small transformer that learns them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from koopcore.lab.problems.mnist import Samples

ALPHABET = " .abcdefghijklmnopqrstuvwxyz"
CONTEXT = 32
_WIDTH, _HEADS, _LAYERS = 48, 4, 2
_ONSETS = "b d f g k l m n p r s t v z br dr kl pr st tr".split()
_ENDS = "a e i o u an en in or us".split()


def text(length: int = 60_000, seed: int = 0) -> str:
    """Sentences of 3 to 9 made-up words in Zipf's frequencies; the same for a seed everywhere.

    Each of 300 words has one to three syllables, and a favourite successor that follows it every
    other time, so that there is something to learn at all distances.
    """
    random = np.random.default_rng(seed)
    syllables = [onset + end for onset in _ONSETS for end in _ENDS]
    words: list[str] = []
    while len(words) < 300:
        word = "".join(random.choice(syllables, random.integers(1, 4)))
        if word not in words:
            words.append(word)
    frequencies = 1.0 / np.arange(2.0, len(words) + 2.0)
    frequencies /= frequencies.sum()
    successors = random.permutation(len(words))
    written, size = [], 0
    while size < length:
        sentence = [int(random.choice(len(words), p=frequencies))]
        for _ in range(random.integers(2, 9)):
            usual = random.random() < 0.5
            drawn = int(random.choice(len(words), p=frequencies))
            sentence.append(int(successors[sentence[-1]]) if usual else drawn)
        written.append(" ".join(words[word] for word in sentence) + ". ")
        size += len(written[-1])
    return "".join(written)[:length]


def load(windows: int = 4000, validation: int = 256) -> Samples:
    """Windows of 32 characters ``(n, 32)`` int64, and at each place the one that comes next.

    Those to validate on are of the last tenth of the text, from which none is trained on.
    """
    written = text()
    codes = torch.tensor([ALPHABET.index(character) for character in written])
    split = int(0.9 * len(codes))
    random = np.random.default_rng(1)
    parts: list[Tensor] = []
    for count, low, high in ((windows, 0, split), (validation, split, len(codes))):
        starts = torch.from_numpy(random.integers(low, high - CONTEXT - 1, count))
        places = starts[:, None] + torch.arange(CONTEXT + 1)
        parts += [codes[places[:, :-1]], codes[places[:, 1:]]]
    return Samples(*parts)


class Transformer(nn.Module):
    """Two layers of causal attention over 32 characters, 41,000 parameters.

    Returns logits ``(rows, characters of the alphabet, 32)``, as ``cross_entropy`` takes them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), _WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, _WIDTH))
        layer = nn.TransformerEncoderLayer(
            _WIDTH, _HEADS, 2 * _WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)
        self.out = nn.Linear(_WIDTH, len(ALPHABET))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, characters: Tensor) -> Tensor:
        """``(rows, 32)`` codes to logits."""
        hidden = self.embedding(characters) + self.places
        hidden = self.layers(hidden, mask=self.mask, is_causal=True)
        logits: Tensor = self.out(hidden)
        return logits.transpose(1, 2)


def network(seed: int = 0) -> Transformer:
    """A transformer with torch's initialization."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer()
