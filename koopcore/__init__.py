"""Koopman operators of training trajectories, thousands at once: ``x[n+T] = U^T x[n]``.

Importing koopcore imports neither torch, CuPy nor Numba: each public name is imported from its
module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from koopcore import dmd as dmd
    from koopcore import learning as learning
    from koopcore import plot as plot
    from koopcore import spectrum as spectrum
    from koopcore import torch_ops as torch_ops
    from koopcore.backends import available_backends as available_backends
    from koopcore.operators import KoopmanOperators as KoopmanOperators
    from koopcore.operators import fit as fit
    from koopcore.partition.layout import Layout as Layout
    from koopcore.partition.partition import Partition as Partition
    from koopcore.training.attach import attach as attach

__version__ = "0.1.0"

_HOME = {
    "KoopmanOperators": "koopcore.operators",
    "Layout": "koopcore.partition.layout",
    "Partition": "koopcore.partition.partition",
    "attach": "koopcore.training",
    "available_backends": "koopcore.backends",
    "dmd": "koopcore.dmd",
    "fit": "koopcore.operators",
    "learning": "koopcore.learning",
    "plot": "koopcore.plot",
    "spectrum": "koopcore.spectrum",
    "torch_ops": "koopcore.torch_ops",
}

__all__ = [
    "KoopmanOperators",
    "Layout",
    "Partition",
    "__version__",
    "attach",
    "available_backends",
    "dmd",
    "fit",
    "learning",
    "plot",
    "spectrum",
    "torch_ops",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'koopcore' has no attribute {name!r}")
    try:
        module = import_module(_HOME[name])
        value = module if _HOME[name] == f"koopcore.{name}" else getattr(module, name)
    except ModuleNotFoundError as error:
        needed = {"torch": ("torch", "torch"), "sklearn": ("scikit-learn", "dmd")}
        if error.name not in needed:
            raise
        package, extra = needed[error.name]
        raise ImportError(
            f"koopcore.{name} needs {package}, which is not installed: "
            f'pip install "koopcore[{extra}]"'
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
