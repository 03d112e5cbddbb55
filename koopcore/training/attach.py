"""``attach``: Koopman prediction in an ordinary torch training loop, with one line added."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from koopcore.training.attached import Attached
from koopcore.training.hooks import attached
from koopcore.training.jumping.guarded_loss import GuardedLoss
from koopcore.training.jumping.span import Residuals
from koopcore.training.optimizers import Stepper, members, model_of, stepper_of
from koopcore.training.parallel.processes import ProcessGroup, processes_for
from koopcore.training.recording.parameters import Masters, unwrapped
from koopcore.training.settings import Options, Settings
from koopcore.training.statistics import JumpRecord

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack


def attach(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    model: nn.Module | Sequence[nn.Module],
    *misplaced: NoReturn,
    loss: Callable[[], Any] | None = None,
    residuals: Callable[[], Any] | None = None,
    masters: Masters | None = None,
    generators: torch.Generator | Iterable[torch.Generator] = (),
    process_group: ProcessGroup = "auto",
    on_jump: Callable[[JumpRecord], object] | None = None,
    **options: Unpack[Options],
) -> Attached:
    """Let ``optimizer`` jump ahead along the Koopman trajectory of ``model``'s parameters.

    Whether the trajectory can be predicted is found out, and judged again all along. Where it
    cannot, in minibatch training, the weights are never touched: averages are kept beside them, and
    ``koop.averaged()`` hands out the best. Where it can, every ``stride`` steps a snapshot ``x_k``
    is taken; when ``window`` of them are there, one operator per group is fitted
    (``x_{k+1} = U^T x_k``), candidates ``x_{n+T}`` are predicted at a geometric series of horizons
    ``T``, ``loss`` is evaluated at each, and the best one that beats the present loss becomes the
    parameters; otherwise everything is put back bit by bit. The training loop does not change::

        koop = koopcore.attach(optimizer, model, loss=lambda: criterion(model(x), y))

    Args:
        optimizer: any ``torch.optim.Optimizer``; it stays the user's object. Wrappers that hold one
            as ``.optimizer`` are seen through. Several that step parts of one model, in a list, are
            one attachment: a step is over when each of those with gradients has stepped.
        model: the ``nn.Module`` whose parameters it holds; compiled and DDP models are unwrapped.
            Several in a list are one, their parameters named ``0.weight``, ``1.weight``, ...
            What trains is looked at again at every window: frozen parameters stay where they are,
            unfrozen, added and, after their first forward pass, lazy ones are recorded.
        loss: no arguments; returns the loss at the model's present parameters as one number. It
            is called several times per attempt, without gradients if it needs none, always on the
            same random state: hold one representative batch in it, or a validation batch. None: a
            jump as long as the hindcast error allows, a weaker guard that nothing checks.
        residuals: for least squares on the full batch: no arguments; returns the residuals ``r`` at
            the present parameters, a tensor whose squares sum to the loss, or an iterable (a
            generator) of such tensors, one piece of the batch each, where all at once do not fit
            into memory. Jumps are then Gauss-Newton steps in the span of the last snapshots
            (:class:`SpanJump`), not Koopman predictions. ``loss`` is their sum of squares if None.
        masters: float32 masters of a bfloat16/float16 model (the tensors that ``optimizer``
            steps), by name or in module order; a jump writes both.
        generators: torch generators that ``loss`` draws from, restored for each candidate.
        process_group: of torch.distributed, whose ranks decide together: their losses are averaged,
            so each gives its own batch, and a failure on one is a rejection on all. "auto": the
            default group where there is one. None: this process decides alone. Every rank attaches
            the same, with the same options. docs/parallel.md says what is sent.
        on_jump: called with the :class:`JumpRecord` of each attempt, accepted or not.
        options: ``window``, ``stride``, ``partition``, ``candidates``, ... with types, defaults
            and meaning in :class:`koopcore.training.Settings`.

    Returns:
        :class:`Attached`: ``stats``, ``regime``, ``recorded``, ``averaged()``, ``pause()``,
        ``resume()``, ``reset()``, ``state_dict()``, ``load_state_dict()``, ``detach()``.

    Raises:
        TypeError, ValueError: options, an optimizer that does not hold the parameters, attaching
        twice, and a loss that fails, returns no finite number, changes the model or its gradients,
        or is random: it is called twice, and what it did is undone bit by bit. So are residuals
        whose squares do not sum to the loss, or whose number changes. MemoryError: the
        ring does not fit. While training: RuntimeError if all parameters were replaced, ValueError
        for a partition that does not follow a change of what trains.

    Cost: ``(window + 4) P`` numbers of memory and one copy of the parameters per stride; per
    attempt one pass over the ring, and one more pass and one ``loss`` per candidate. After
    rejections the distance between attempts doubles up to 64 windows, in which nothing is recorded.
    Under noise a sixth of a read and write of the parameters a step.

    Not in place of L-BFGS on a small full-batch problem whose optimizer may change, and not where
    ``loss`` costs as much as many steps.

    Source: Dogra & Redman, NeurIPS 2020, Algorithm 1, with a line search in place of its fixed T.
    """
    if misplaced:
        raise TypeError(
            "attach takes the optimizer and the model by place and all else by name, as in "
            f"attach(optimizer, model, loss=...); a third argument was given: {misplaced[0]!r}"
        )
    processes = processes_for(process_group)
    with processes.together(0, "attach"), torch.inference_mode(False):
        # Outside of inference mode, whose tensors could not be recorded into later.
        stepper = unattached(stepper_of(optimizer))
        module = model_of(model)
        if on_jump is not None and not callable(on_jump):
            raise TypeError(f"on_jump is {type(on_jump).__name__}; give a function of a JumpRecord")
        settings = Settings.of(options)
        squares = None if residuals is None else Residuals(residuals)
        loss = squares if loss is None else loss
        guarded = None
        if loss is not None:
            guarded = GuardedLoss(loss, unwrapped(module), generators, processes)
        return Attached(stepper, module, settings, guarded, squares, masters, processes, on_jump)


def unattached(stepper: Stepper) -> Stepper:
    """Return ``stepper``; ValueError where koopcore is attached to it."""
    if any(attached(member) for member in members(stepper)):
        raise ValueError(
            "koopcore is attached to this optimizer already; keep the object that attach "
            "returned, and detach() it before attaching again"
        )
    return stepper
