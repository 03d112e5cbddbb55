"""``attach``: Koopman prediction in an ordinary torch training loop, with one line added."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from koopcore.training.attached import Attached
from koopcore.training.recording.parameters import Masters
from koopcore.training.recording.recording import PartitionLike
from koopcore.training.settings import Settings


def attach(
    optimizer: torch.optim.Optimizer,
    module: nn.Module,
    /,
    *,
    loss: Callable[[], Any] | None = None,
    window: int = 9,
    stride: int = 6,
    partition: PartitionLike = "network",
    model: str = "affine",
    max_horizon: float = 256,
    warmup: int | str = 0,
    rank: int | None = None,
    ridge: float = 0.0,
    backend: str | None = None,
    schedule: tuple[int, int, int] | None = None,
    candidates: Sequence[str] = ("koopman", "mean", "line"),
    ladder: float | None = None,
    slack: float = 0.5,
    margin: float = 0.0,
    record: str | int = 2,
    storage: str = "auto",
    observables: str = "weights",
    moments: str = "auto",
    buffers: str = "predict",
    average: float | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    masters: Masters | None = None,
    generators: Iterable[torch.Generator] = (),
) -> Attached:
    """Let ``optimizer`` jump ahead along the Koopman trajectory of ``module``'s parameters.

    Every ``stride`` steps a snapshot ``x_k`` is taken; when ``window`` of them are there, one
    operator per group is fitted (``x_{k+1} = U^T x_k``), candidates ``x_{n+T}`` are predicted at a
    geometric series of horizons ``T``, ``loss`` is evaluated at each, and the best one that beats
    the present loss becomes the parameters; otherwise everything is put back bit by bit. The
    training loop does not change::

        koop = koopcore.attach(optimizer, model, loss=lambda: criterion(model(x), y))

    Args:
        optimizer: any ``torch.optim.Optimizer``; it stays the user's object.
        module: the model whose parameters it holds. Frozen, tied, integer and not yet initialized
            (lazy) parameters are handled; compiled and DDP models are unwrapped.
        loss: no arguments; returns the loss at the module's present parameters as one number. It
            is called without gradients, several times per attempt, always on the same random
            state: hold one representative batch in it, or a validation batch. None: a jump as
            long as the hindcast error allows, a weaker guard that nothing checks.
        window: snapshots per fit, at least 3. stride: optimizer steps per snapshot.
        partition: "network", "layers", "nodes", "weights", a :class:`Partition` over the layout
            aligned to 32, or a function ``Layout -> Partition``.
        model, rank, ridge, backend: as in :func:`koopcore.fit`.
        max_horizon: farthest jump, in windows. ladder: factor between the horizons tried, from 1/4
            window up; beyond 16 windows only while the end is the best. None: 2 for optimizers
            with Adam's moments (their trajectories bend earlier; stride=10 suits them), else 4.
        warmup: steps before the first window, or "auto": until hindcast error and eigenvalues say
            that the trajectory can be predicted.
        schedule: ``(t1, t2, T)`` in optimizer steps: record from t1 to t2, jump T steps once, as
            in the paper; replaces window, warmup and adaptation. Without ``loss`` unconditional.
        candidates: of "koopman", "mean" (of the window), "line" (straight through its ends),
            "regression" (least-squares line, from where it is now on; for noisy windows). Those
            named after "koopman" are tried only where it does not beat the present loss.
        slack: among candidates with a loss of at most ``L* + slack (L - L*)``, ``L*`` the lowest
            and ``L`` the present one, the longest horizon wins; 0 takes the lowest.
        margin: share of the loss by which a winner must lie below it; for noisy losses.
        record: a snapshot is the "last" parameters of its stride, the mean of the last so many
            steps (a number), or the "mean" over all of it, against minibatch noise. Even numbers
            remove the flip from step to step that high rates cause. Each costs one read.
        storage: of snapshots: "auto" (float64 for float64 models, else float32), "float32", or
            "bfloat16" (differences to the newest; half the memory).
        observables: "weights", or "weights+update": the optimizer's normalized update beside them.
        moments: of the optimizer after a jump: "keep", "reset", "rescale"; "auto" per optimizer.
        buffers: "predict" those that training changes, "reestimate" batch-norm statistics by one
            more run of ``loss``, or "keep".
        average: decay per step of an exponential average of the weights, kept beside them and
            restarted at each jump, for :meth:`Attached.averaged`; 0.98 against minibatch noise.
            A jump must then beat the loss at the average too. Updated every 5 steps.
        include, exclude: fnmatch patterns on parameter names.
        masters: float32 masters of a bfloat16/float16 model (the tensors that ``optimizer``
            steps), by name or in module order; a jump writes both.
        generators: torch generators that ``loss`` draws from, restored for each candidate.

    Returns:
        :class:`Attached`: ``stats``, ``averaged()``, ``state_dict()``, ``load_state_dict()``,
        ``detach()``.

    Raises:
        TypeError, ValueError: options, an optimizer that does not hold the parameters, attaching
        twice. MemoryError: the ring does not fit. While training: RuntimeError if parameters
        change shape, device or dtype; ValueError if ``loss`` changes the model.

    Cost: ``window * P`` numbers of memory and one copy of the parameters per stride; per attempt
    one pass over the ring, and one more pass and one ``loss`` per candidate. After rejections the
    distance between attempts doubles up to 64 windows, in which nothing is recorded.

    Do not use it where the trajectory is mostly noise (small batches, rates near divergence)
    without ``record="mean"``, or where ``loss`` costs as much as many steps.

    Source: Dogra & Redman, NeurIPS 2020, Algorithm 1, with a line search in place of its fixed T.
    """
    settings = Settings(
        loss=loss,
        window=window,
        stride=stride,
        model=model,
        rank=rank,
        ridge=ridge,
        backend=backend,
        max_horizon=max_horizon,
        warmup=warmup,
        schedule=None if schedule is None else tuple(schedule),  # type: ignore[arg-type]
        candidates=tuple(candidates),
        ladder=default_ladder(optimizer) if ladder is None else ladder,
        slack=slack,
        margin=margin,
        record=record,
        storage=storage,
        observables=observables,
        moments=moments,
        buffers=buffers,
        average=average,
    )
    return Attached(optimizer, module, settings, partition, include, exclude, masters, generators)


def default_ladder(optimizer: torch.optim.Optimizer) -> float:
    """Return the factor between horizons that ``ladder=None`` means for ``optimizer``."""
    return 2.0 if "betas" in getattr(optimizer, "defaults", {}) else 4.0
