"""``attach``: Koopman prediction in an ordinary torch training loop, with one line added."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from koopcore.training.attached import Attached
from koopcore.training.hooks import attached
from koopcore.training.jumping.guarded_loss import GuardedLoss
from koopcore.training.jumping.span import Residuals
from koopcore.training.recording.parameters import Masters, unwrapped
from koopcore.training.settings import Options, Settings

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack


#: What an optimizer has that was made by ``Optimizer.__init__``, and its wrappers have not.
_HOOKS = "_optimizer_step_post_hooks"


def attach(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    loss: Callable[[], Any] | None = None,
    residuals: Callable[[], Any] | None = None,
    masters: Masters | None = None,
    generators: torch.Generator | Iterable[torch.Generator] = (),
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
            as ``.optimizer`` are seen through.
        model: the ``nn.Module`` whose parameters it holds; compiled and DDP models are unwrapped.
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
        options: ``window``, ``stride``, ``partition``, ``candidates``, ... with types, defaults
            and meaning in :class:`koopcore.training.Settings`.

    Returns:
        :class:`Attached`: ``stats``, ``regime``, ``recorded``, ``averaged()``, ``reset()``,
        ``state_dict()``, ``load_state_dict()``, ``detach()``.

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
    stepper = inner_optimizer(optimizer)
    settings = Settings.of(options)
    squares = None if residuals is None else Residuals(residuals)
    loss = squares if loss is None else loss
    guarded = None if loss is None else GuardedLoss(loss, unwrapped(model), generators)
    with torch.inference_mode(False):  # whose tensors could not be recorded into later
        return Attached(stepper, model, settings, guarded, squares, masters)


def inner_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the torch optimizer, also out of a wrapper; raise where koopcore is attached to it."""
    inner: Any = optimizer
    while isinstance(inner, torch.optim.Optimizer) and not hasattr(inner, _HOOKS):
        inner = getattr(inner, "optimizer", None)
    if not isinstance(inner, torch.optim.Optimizer):
        raise TypeError(
            f"the first argument is {type(optimizer).__name__}; attach(optimizer, model) takes "
            "the torch.optim.Optimizer that steps the model"
        )
    if attached(inner):
        raise ValueError(
            "koopcore is attached to this optimizer already; keep the object that attach "
            "returned, and detach() it before attaching again"
        )
    return inner
