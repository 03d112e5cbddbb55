"""Flows to learn: Duffing, Lorenz-63, Lorenz-96, Kuramoto, from many starts at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from koopcore.types import FloatArray


@dataclass(frozen=True)
class Flow:
    """ẋ = velocity(x), sampled every ``dt``.

    velocity: of states (…, n), in place of one state after another. start: n_starts states
    (n_starts, n) from a generator. settle: time that passes before the first sample, so that
    trajectories lie on the attractor where there is one. substeps: of the integrator, per ``dt``.
    """

    name: str
    n_states: int
    dt: float
    velocity: Callable[[FloatArray], FloatArray]
    start: Callable[[np.random.Generator, int], FloatArray]
    settle: float = 0.0
    substeps: int = 10

    def trajectories(
        self, n_trajectories: int, n_points: int, rng: np.random.Generator
    ) -> FloatArray:
        """(n_trajectories, n_points, n_states) from random starts, by the Runge-Kutta method of
        order 4 with a step of dt/substeps.

        Trajectories of the chaotic ones are of the map that this makes, not those of the equations
        after many Lyapunov times, which no method has.
        """
        x = self.start(rng, n_trajectories)
        for _ in range(round(self.settle / self.dt)):
            x = self._ahead(x)
        states = np.empty((n_trajectories, n_points, self.n_states))
        for k in range(n_points):
            states[:, k] = x
            x = self._ahead(x)
        return states

    def _ahead(self, x: FloatArray) -> FloatArray:
        step, f = self.dt / self.substeps, self.velocity
        for _ in range(self.substeps):
            a = f(x)
            b = f(x + 0.5 * step * a)
            c = f(x + 0.5 * step * b)
            d = f(x + step * c)
            x = x + (step / 6.0) * (a + 2.0 * (b + c) + d)
        return x


def _box(width: float, n: int) -> Callable[[np.random.Generator, int], FloatArray]:
    return lambda rng, count: rng.uniform(-width, width, (count, n))


def duffing(damping: float = 0.5, dt: float = 0.1) -> Flow:
    """ẋ = v, v̇ = -damping v + x - x³: two wells at ±1 and a saddle between them.

    Source: Williams, Kevrekidis, Rowley 2015, section 4.2 (their damping, and starts in [-2, 2]²).
    """

    def velocity(x: FloatArray) -> FloatArray:
        position, speed = x[..., 0], x[..., 1]
        return np.stack([speed, position - position**3 - damping * speed], axis=-1)

    return Flow("Duffing", 2, dt, velocity, _box(2.0, 2))


def lorenz63(dt: float = 0.02) -> Flow:
    """The attractor of σ = 10, r = 28, b = 8/3. Source: Lorenz 1963."""

    def velocity(s: FloatArray) -> FloatArray:
        x, y, z = s[..., 0], s[..., 1], s[..., 2]
        return np.stack([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z], axis=-1)

    return Flow(
        "Lorenz-63",
        3,
        dt,
        velocity,
        lambda rng, count: np.array([0.0, 0.0, 25.0]) + rng.uniform(-10.0, 10.0, (count, 3)),
        settle=10.0,
    )


def lorenz96(n_states: int = 20, forcing: float = 8.0, dt: float = 0.05) -> Flow:
    """ẋ_i = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + forcing on its attractor. Source: Lorenz 1996."""

    def velocity(x: FloatArray) -> FloatArray:
        ahead, back, two_back = (np.roll(x, s, axis=-1) for s in (-1, 1, 2))
        return (ahead - two_back) * back - x + forcing

    return Flow(
        f"Lorenz-96 ({n_states})",
        n_states,
        dt,
        velocity,
        lambda rng, count: forcing + rng.standard_normal((count, n_states)),
        settle=10.0,
    )


def kuramoto(n_oscillators: int = 20, coupling: float = 1.0, dt: float = 0.1) -> Flow:
    """Phases θ̇_i = ω_i + coupling/n Σ_j sin(θ_j - θ_i), seen as (cos θ, sin θ): 2 n states.

    ω evenly spaced in [-1, 1], so that this coupling leaves part of the phases drifting. The state
    is on the circles, where the equations are polynomials. Source: Kuramoto 1984.
    """
    omega = np.linspace(-1.0, 1.0, n_oscillators)

    def velocity(s: FloatArray) -> FloatArray:
        c, d = s[..., :n_oscillators], s[..., n_oscillators:]
        mean_c, mean_d = c.mean(axis=-1, keepdims=True), d.mean(axis=-1, keepdims=True)
        rate = omega + coupling * (mean_d * c - mean_c * d)
        return np.concatenate([-d * rate, c * rate], axis=-1)

    def start(rng: np.random.Generator, count: int) -> FloatArray:
        phase = rng.uniform(-np.pi, np.pi, (count, n_oscillators))
        return np.concatenate([np.cos(phase), np.sin(phase)], axis=-1)

    return Flow(f"Kuramoto ({n_oscillators})", 2 * n_oscillators, dt, velocity, start)
