"""Algorithms 1 to 3 of Liu, Ding, Chen, Yeung 2020 against their formulas, one point at a time."""

from itertools import pairwise

import numpy as np
import pytest
from learning_cases import by_points

from koopcore.lab.problems.van_der_pol import paper_split
from koopcore.learning import (
    AlternatingLearner,
    AsynchronousLearner,
    Blocks,
    DistributedLearner,
    OneLayer,
)

WIDTHS = (3, 2)  # features of two workers, one state each
STEP_K, STEP_W = 0.05, 0.03
ITERATIONS = 12


def by_workers(w, k, x):
    """What the workers of Algorithm 2 accumulate: E, and dK_ij and dW_i of every worker."""
    slope_k = [[np.zeros_like(block) for block in row] for row in k]
    slope_w = [np.zeros_like(own) for own in w]
    count = len(x) - 1
    for now, ahead in pairwise(x):
        psi = [np.tanh(own * s) for own, s in zip(w, now, strict=True)]
        psi_ahead = [np.tanh(own * s) for own, s in zip(w, ahead, strict=True)]
        e = [psi_ahead[i] - sum(k[i][j] @ psi[j] for j in (0, 1)) for i in (0, 1)]
        for i in (0, 1):
            for v in (0, 1):
                slope_k[i][v] -= 2.0 / count * np.outer(e[i], psi[v])
            back = sum(k[v][i].T @ e[v] for v in (0, 1))
            slope_w[i] += 2.0 / count * e[i] * (1.0 - psi_ahead[i] ** 2) * ahead[i]
            slope_w[i] -= 2.0 / count * back * (1.0 - psi[i] ** 2) * now[i]
    return slope_k, slope_w


def test_algorithm_1_keeps_the_iterate_that_the_papers_tracker_keeps():
    x = paper_split().train[:60]
    dictionary = OneLayer(2, 3, bias=None)
    w, k = dictionary.initial(np.random.default_rng(4)).reshape(3, 2), np.eye(3)
    least, best = np.inf, None
    for _ in range(ITERATIONS):
        slope_k = by_points(w, k, [x])[1]
        k = k - 0.2 * slope_k
        slope_w = by_points(w, k, [x])[2]
        e = (slope_k**2).sum() + (slope_w**2).sum()
        if e < least:
            least, best = e, (w, k)
        w = w - 0.1 * slope_w
    learner = AlternatingLearner(
        dictionary, n_iterations=ITERATIONS, step_k=0.2, step_w=0.1, random_state=4
    ).fit(x)
    np.testing.assert_allclose(learner.operator_.parameters, best[0].reshape(-1), atol=1e-10)
    np.testing.assert_allclose(learner.operator_.operator, best[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [DistributedLearner, AsynchronousLearner])
def test_algorithms_2_and_3_are_the_workers_sums(kind):
    """Algorithm 3 without old messages is Algorithm 2, but that it ends with the last iterate."""
    x = paper_split().train[:40]
    dictionary = Blocks(tuple(OneLayer(1, width, bias=None) for width in WIDTHS))
    theta = dictionary.initial(np.random.default_rng(2))
    w = np.split(theta, [WIDTHS[0]])
    cuts = np.split(np.eye(sum(WIDTHS)), [WIDTHS[0]])
    k = [np.split(row, [WIDTHS[0]], axis=1) for row in cuts]
    iterates, criterion = [], []
    for _ in range(ITERATIONS + 1):
        iterates.append((np.concatenate(w), np.block(k)))
        slope_k, slope_w = by_workers(w, k, x)
        squares = [(s**2).sum() for row in slope_k for s in row] + [(s**2).sum() for s in slope_w]
        criterion.append(sum(squares))
        k = [[k[i][j] - STEP_K * slope_k[i][j] for j in (0, 1)] for i in (0, 1)]
        w = [w[i] - STEP_W * slope_w[i] for i in (0, 1)]
    settings = {"delay": 0} if kind is AsynchronousLearner else {}
    learner = kind(
        dictionary,
        workers=2,
        n_iterations=ITERATIONS,
        step_k=STEP_K,
        step_w=STEP_W,
        random_state=2,
        **settings,
    ).fit(x)
    last = ITERATIONS if kind is AsynchronousLearner else int(np.argmin(criterion[:ITERATIONS]))
    np.testing.assert_allclose(learner.operator_.parameters, iterates[last][0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(learner.operator_.operator, iterates[last][1], rtol=0, atol=1e-10)
