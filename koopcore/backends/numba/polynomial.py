"""Long companion rollouts: x^T and 1 + x + … + x^{T-1} modulo p(x) = x^N - Σ a_i x^i, by squaring.

Entry i of a vector stands for x^i; the companion matrix multiplies by x, and a itself is x^N mod p.
"""

from __future__ import annotations

from koopcore.backends.numba.compiled import inner
from koopcore.backends.numba.lanes import add_multiple, copy
from koopcore.backends.numba.simd import WIDTH, constant, fma, load, store


@inner
def long_rollout(a, n, horizon, power, total, scratch):
    """power = a x^{T-1} and total = a (1 + x + … + x^{T-1}) mod p; scratch holds 4 n vectors.

    With P_t = x^t and Q_t = Σ_{j<t} x^j: P_{2t} = P_t², Q_{2t} = Q_t + P_t Q_t, P_{t+1} = x P_t and
    Q_{t+1} = Q_t + P_t. The terms of Q are added, never divided out, so that a root at 1 is no
    singularity. Cost: 4 n² multiplications a doubling.
    """
    p, q = 2 * n, 3 * n  # of scratch; the product stands below them
    for i in range(p, p + 2 * n):
        store(scratch, i * WIDTH, constant(0.0))
    store(scratch, p * WIDTH, constant(1.0))
    bit = 1
    while 2 * bit <= horizon - 1:
        bit *= 2
    while bit:
        multiply(a, n, scratch, p, scratch, q, scratch)
        add_multiple(scratch, q, constant(1.0), scratch, 0, n)
        multiply(a, n, scratch, p, scratch, p, scratch)
        copy(scratch, 0, scratch, p, n)
        if (horizon - 1) & bit:
            add_multiple(scratch, q, constant(1.0), scratch, p, n)
            times_x(a, n, scratch, p)
        bit //= 2
    multiply(a, n, a, 0, scratch, q, scratch)
    copy(scratch, 0, total, 0, n)
    multiply(a, n, a, 0, scratch, p, scratch)
    copy(scratch, 0, power, 0, n)
    add_multiple(total, 0, constant(1.0), power, 0, n)  # the last of the T terms


@inner
def multiply(a, n, u, at_u, v, at_v, product):
    """product[: n] = u v mod p; entries n .. 2n - 2 are scratch."""
    for i in range(2 * n - 1):
        store(product, i * WIDTH, constant(0.0))
    for i in range(n):
        add_multiple(product, i, load(u, (at_u + i) * WIDTH), v, at_v, n)
    for degree in range(2 * n - 2, n - 1, -1):
        add_multiple(product, degree - n, load(product, degree * WIDTH), a, 0, n)


@inner
def times_x(a, n, u, at):
    """u = x u mod p."""
    overflow = load(u, (at + n - 1) * WIDTH)
    for i in range(n - 1, 0, -1):
        below = load(u, (at + i - 1) * WIDTH)
        store(u, (at + i) * WIDTH, fma(overflow, load(a, i * WIDTH), below))
    store(u, at * WIDTH, overflow * load(a, 0))
