"""The background of a video, and what moves before it: modes that stand still, and the rest.

python examples/dmd_video.py video.png
"""

from __future__ import annotations

import sys

import numpy as np

import koopcore as kc

HEIGHT, WIDTH, FRAMES = 40, 60, 120


def video(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames (FRAMES, HEIGHT, WIDTH), the background, and where something moves before it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    background = 0.5 + 0.2 * np.sin(x / 7.0) * np.cos(y / 5.0) + 0.1 * (x + y) / (HEIGHT + WIDTH)
    frames, moving = np.empty((2, FRAMES, HEIGHT, WIDTH))
    for t in range(FRAMES):
        across = (5 + 0.9 * t) % (WIDTH + 10) - 5
        down = HEIGHT / 2 + 10 * np.sin(t / 9.0)
        moving[t] = (abs(x - across) < 4) & (abs(y - down) < 4)
        frames[t] = np.where(moving[t] > 0, 1.0, background)
    return frames + 0.02 * rng.standard_normal(frames.shape), background, moving


def main(picture: str | None = None) -> dict[str, float]:
    """Separate the two (Grosek & Kutz 2014), and say how well."""
    frames, background, moving = video()
    x = frames.reshape(FRAMES, -1)
    dmd = kc.dmd.DMD(20, delays=3, modes="refit", dt=1 / 30).fit(x)
    # A background is what neither grows, nor decays, nor turns: the eigenvalue next to 1.
    still = int(np.argmin(np.abs(dmd.eigenvalues_ - 1.0)))
    seen = (dmd.modes_[:, still] * dmd.amplitudes_[still]).real.reshape(HEIGHT, WIDTH)
    error = np.linalg.norm(seen - background) / np.linalg.norm(background)
    mask = np.abs(frames - seen) > 0.25
    overlap = (mask & (moving > 0)).sum() / (mask | (moving > 0)).sum()
    print(f"background found to {100 * error:.1f} %, what moves to {100 * overlap:.0f} % overlap")
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 2.6), dpi=110, layout="constrained")
        shown = {"frame 60": frames[60], "background mode": seen, "what moves": mask[60]}
        for axes, (name, image) in zip(figure.subplots(1, 3), shown.items(), strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
            axes.set(title=name, xticks=[], yticks=[])
        figure.savefig(picture)
    return {"background": float(error), "overlap": float(overlap)}


if __name__ == "__main__":
    main(*sys.argv[1:])
