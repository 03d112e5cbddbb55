"""The wake of a cylinder: a small flow simulation, its modes, and where it goes from there.

python examples/dmd_cylinder_wake.py wake.png
"""

from __future__ import annotations

import sys

import numpy as np

import koopcore as kc

WIDTH, HEIGHT, DIAMETER, SPEED, REYNOLDS = 110, 40, 8, 0.1, 100.0


def wake(start: int, snapshots: int, stride: int) -> np.ndarray:
    """Vorticity (snapshots, HEIGHT, WIDTH) by the lattice Boltzmann method (D2Q9, BGK)."""
    c = np.array([[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1], [1, 1], [-1, 1], [-1, -1], [1, -1]])
    w = np.array([4 / 9] + [1 / 9] * 4 + [1 / 36] * 4)
    back = [0, 3, 4, 1, 2, 7, 8, 5, 6]
    relaxation = 1.0 / (3.0 * SPEED * DIAMETER / REYNOLDS + 0.5)
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    solid = (x - 25) ** 2 + (y - HEIGHT / 2 + 0.6) ** 2 < (DIAMETER / 2) ** 2

    def equilibrium(rho: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        along = 3.0 * (c[:, 0, None, None] * u + c[:, 1, None, None] * v)
        square = 1.5 * (u * u + v * v)
        return rho * w[:, None, None] * (1.0 + along + 0.5 * along * along - square)

    f = equilibrium(np.ones(x.shape), SPEED * np.ones(x.shape), 0.02 * np.sin(x / 9.0))
    inflow = equilibrium(np.ones((HEIGHT, 1)), SPEED * np.ones((HEIGHT, 1)), np.zeros((HEIGHT, 1)))
    seen = []
    for step in range(start + snapshots * stride):
        for k in range(1, 9):
            f[k] = np.roll(f[k], (c[k, 1], c[k, 0]), axis=(0, 1))
        f[:, :, :1] = inflow
        f[:, :, -1] = f[:, :, -2]
        f[:, solid] = f[back][:, solid]
        rho = f.sum(axis=0)
        u, v = np.tensordot(c.T, f, axes=1) / rho
        if step >= start and (step - start) % stride == 0:
            seen.append(np.gradient(v, axis=1) - np.gradient(u, axis=0))
        fluid = ~solid
        f[:, fluid] += relaxation * (equilibrium(rho, u, v) - f)[:, fluid]
    return np.array(seen)


def main(picture: str | None = None) -> dict[str, float]:
    """Decompose 60 snapshots of the wake, forecast the next 30, and say how well."""
    stride = 30
    flow = wake(2_500, 90, stride)
    x = flow.reshape(len(flow), -1)
    dmd = kc.dmd.DMD(11, modes="refit", delays=10, dt=stride * SPEED / DIAMETER).fit(x[:60])
    shedding = dmd.frequencies_[(dmd.frequencies_ > 0.02)].min()
    ahead = dmd.forecast(horizon=30)
    error = np.linalg.norm(ahead - x[60:]) / np.linalg.norm(x[60:])
    still = np.linalg.norm(x[60:] - x[59]) / np.linalg.norm(x[60:])
    print(f"Strouhal number {shedding:.3f}; error of 30 snapshots ahead {error:.3f}")
    print(f"of the last snapshot, kept: {still:.3f}")
    if picture:
        figure = kc.plot.modes(dmd, count=3, shape=(HEIGHT, WIDTH))
        figure.savefig(picture)
    return {"strouhal": float(shedding), "error": float(error), "still": float(still)}


if __name__ == "__main__":
    main(*sys.argv[1:])
