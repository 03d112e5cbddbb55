"""Series whose eigenvalues are known."""

import numpy as np

SPACE = np.linspace(-5.0, 5.0, 40)
TIME = np.linspace(0.0, 4.0 * np.pi, 90)
DT = TIME[1] - TIME[0]


def toy(n=90, complex_=True):
    """PyDMD's first example: two spatial structures, each with a frequency of its own."""
    t = TIME[:n, None]
    first = np.exp(2.3j * t) / np.cosh(SPACE + 3.0)
    second = 2.0 * np.exp(2.8j * t) * np.tanh(SPACE) / np.cosh(SPACE)
    return first + second if complex_ else (first + second).real


TOY = np.exp(1j * DT * np.array([2.8, 2.3]))


def waves(systems=1, n=60, m=30, noise=0.0, standing=False, seed=0):
    """Two travelling waves each, or one of them standing; and the four eigenvalues of each."""
    rng = np.random.default_rng(seed)
    x, t = np.linspace(0.0, 1.0, m), 0.15 * np.arange(n)[:, None]
    series, eigenvalues = [], []
    for slow, fast, long in zip(
        rng.uniform(1.5, 2.2, systems),
        rng.uniform(3.5, 5.0, systems),
        rng.uniform(1.0, 2.0, systems),
        strict=True,
    ):
        first = np.sin(2.0 * np.pi * long * x - slow * t)
        if standing:
            first = np.cos(slow * t) * np.sin(2.0 * np.pi * long * x)
        series.append(first + 0.7 * np.sin(14.0 * x + fast * t))
        eigenvalues.append(np.exp(0.15j * np.array([slow, -slow, fast, -fast])))
    clean = np.array(series)
    return clean + noise * rng.standard_normal(clean.shape), np.array(eigenvalues)


def damped(n=60, m=12, seed=1):
    """Three damped oscillators on random modes."""
    rng = np.random.default_rng(seed)
    eigenvalues = np.array([0.995, 0.97, 0.9]) * np.exp(1j * np.array([0.3, 0.8, 1.4]))
    modes = rng.standard_normal((3, m)) + 1j * rng.standard_normal((3, m))
    return (eigenvalues ** np.arange(n)[:, None] @ modes).real, eigenvalues


def farthest(expected, got):
    """The largest distance of an expected eigenvalue from the nearest that was got."""
    return np.abs(np.asarray(expected)[:, None] - np.asarray(got)[None]).min(axis=1).max()
