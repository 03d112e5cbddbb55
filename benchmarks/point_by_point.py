"""Algorithm 2's step in NumPy as the paper writes it: for every point, for every worker."""

from itertools import pairwise

import numpy as np

from koopcore.learning import Blocks, Layered


def simultaneous_step_by_points(
    blocks: Blocks, theta: np.ndarray, operator: np.ndarray, states: np.ndarray, step: float
) -> tuple[np.ndarray, np.ndarray]:
    """(θ, K) after one step, equal blocks of `Layered` tanh nets on one state each."""
    count, h = len(blocks.dictionaries), blocks.dictionaries[0].n_features
    layers = [_layers(blocks, theta[own]) for own in blocks.parameter_slices()]
    slope_k = [[np.zeros((h, h)) for _ in range(count)] for _ in range(count)]
    slopes = [[(np.zeros_like(b), np.zeros_like(w)) for b, w in own] for own in layers]
    k = [
        [operator[i * h : (i + 1) * h, j * h : (j + 1) * h] for j in range(count)]
        for i in range(count)
    ]
    for now, ahead in pairwise(states):
        tapes = [_forward(layers[i], now[i : i + 1]) for i in range(count)]
        tapes_ahead = [_forward(layers[i], ahead[i : i + 1]) for i in range(count)]
        psi = [tape[-1] for tape in tapes]
        back = [np.zeros(h) for _ in range(count)]
        for i in range(count):
            error = tapes_ahead[i][-1] - sum(k[i][j] @ psi[j] for j in range(count))
            for j in range(count):
                slope_k[i][j] -= 2.0 * np.outer(error, psi[j])
                back[j] += k[i][j].T @ error
            _accumulate(slopes[i], layers[i], tapes_ahead[i], 2.0 * error)
        for i in range(count):
            _accumulate(slopes[i], layers[i], tapes[i], -2.0 * back[i])
    n = len(states) - 1
    flat = [np.concatenate([np.concatenate([b, w.reshape(-1)]) for b, w in own]) for own in slopes]
    return theta - step / n * np.concatenate(flat), operator - step / n * np.block(slope_k)


def _layers(blocks: Blocks, theta: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    one = blocks.dictionaries[0]
    assert isinstance(one, Layered)
    layers, start = [], 0
    for fan_in, fan_out in pairwise((one.n_states, *one.widths)):
        middle = start + fan_out
        stop = middle + fan_in * fan_out
        layers.append((theta[start:middle], theta[middle:stop].reshape(fan_in, fan_out)))
        start = stop
    return layers


def _forward(layers: list[tuple[np.ndarray, np.ndarray]], x: np.ndarray) -> list[np.ndarray]:
    tape = [x]
    for bias, weight in layers:
        tape.append(np.tanh(tape[-1] @ weight + bias))
    return tape


def _accumulate(
    slopes: list[tuple[np.ndarray, np.ndarray]],
    layers: list[tuple[np.ndarray, np.ndarray]],
    tape: list[np.ndarray],
    gradient: np.ndarray,
) -> None:
    for layer in range(len(layers) - 1, -1, -1):
        gradient = gradient * (1.0 - tape[layer + 1] ** 2)
        bias, weight = slopes[layer]
        bias += gradient
        weight += np.outer(tape[layer], gradient)
        gradient = layers[layer][1] @ gradient
