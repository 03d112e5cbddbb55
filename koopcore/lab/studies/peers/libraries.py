"""What the libraries of the field do, one group after the other as their interfaces have it.

Each with its defaults where they predict well, else with the options that did best on these
snapshots: the most accurate that ran, not the fastest. (kooplearn's kernel estimators work on
n x n matrices and are 10 to 100 times faster than its Ridge on features, but their Gram matrices
of the states square what distinguishes slow decays: 5 to 15 times the error of least squares.)
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcore.types import FloatArray


def pydmd(groups: npt.NDArray[Any], horizon: int, each: Callable[..., Any] = map) -> FloatArray:
    """`pydmd.DMD(svd_rank=0)`: exact DMD at the rank of the optimal hard threshold."""
    from pydmd import DMD

    out = np.empty((groups.shape[0], groups.shape[2]))
    for state, snapshots in zip(out, groups, strict=True):
        model = DMD(svd_rank=0)
        with warnings.catch_warnings():  # weights are always nearly dependent: no news
            warnings.simplefilter("ignore", UserWarning)
            model.fit(snapshots.T.astype(np.float64))
        last = len(snapshots) - 1 + horizon
        model.dmd_time["t0"] = model.dmd_time["tend"] = last
        state[:] = model.reconstructed_data[:, -1].real
    return out


def deeptime(groups: npt.NDArray[Any], horizon: int, each: Callable[..., Any] = map) -> FloatArray:
    """`deeptime.decomposition.DMD(mode="standard")`: its modes and eigenvalues, to the power."""
    from deeptime.decomposition import DMD

    out = np.empty((groups.shape[0], groups.shape[2]))
    for state, snapshots in zip(out, groups, strict=True):
        x = snapshots.astype(np.float64)
        model = DMD(mode="standard").fit((x[:-1], x[1:])).fetch_model()
        amplitudes = np.linalg.lstsq(model.modes.T, x[-1].astype(complex), rcond=None)[0]
        state[:] = ((model.eigenvalues**horizon * amplitudes) @ model.modes).real
    return out


def kooplearn(groups: npt.NDArray[Any], horizon: int, each: Callable[..., Any] = map) -> FloatArray:
    """`kooplearn.linear_model.Ridge(alpha=None, reduced_rank=False)` and its own prediction."""
    from kooplearn.linear_model import Ridge

    logging.getLogger("kooplearn").setLevel(logging.ERROR)
    out = np.empty((groups.shape[0], groups.shape[2]))
    for state, snapshots in zip(out, groups, strict=True):
        x = snapshots.astype(np.float64)
        model = Ridge(alpha=None, reduced_rank=False).fit(x)
        state[:] = np.real(model.predict(x[-1:], n_steps=horizon)[0])
    return out
