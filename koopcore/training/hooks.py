"""What an attachment has registered: which calls of ``step`` are steps, and when states are loaded.

Nothing else of the optimizer or the model is touched, and :meth:`Hooks.remove` takes it all away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from koopcore.training.recording.parameters import local, same_bits, stopped

_MARK = "_koopcore_attached"


class Hooks:
    """Call ``stepped()`` after each step of all optimizers, and notice when states are loaded.

    Calls of ``optimizer.step`` that are no steps of training do not count:

    * no parameter has a gradient, or every rate is zero, so that none moves: weights that the user
      has stopped stay, and torch's checkpoint functions make the optimizer's state that way;
    * where there is no rate they do it by gradients of zero: looked for in the first step;
    * a fused optimizer has left the step out because GradScaler found infinities (others are not
      called at all then); reading that flag waits for the device, and only GradScaler sets it;
    * the call of ``super().step()`` inside a subclass's ``step``, for which torch runs the hooks
      twice.

    loaded: whether ``load_state_dict`` of the optimizer, of the model or of one of its modules has
    brought another state since the last step. Weights that were exchanged and are back before the
    next step, as for a validation at an average, are no other state; they are compared with copies
    that live until then. Scripted modules cannot be watched.

    before: called once, before the next step with a gradient, with whether that is still to be
    computed, by a closure.

    Inside ``torch.compile`` the hooks break the graph instead of being traced.

    Args:
        weights: the tensors by which that is judged, asked for when a state is loaded.
        any_rank: whether something is true on any of the processes that train together.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        model: nn.Module,
        stepped: Callable[[], None],
        weights: Callable[[], list[Tensor]],
        any_rank: Callable[[bool], bool] = bool,
    ) -> None:
        self.loaded = False
        self.before: Callable[[bool], None] | None = None
        self._stepped = stepped
        self._weights = weights
        self._copies: list[Tensor] | None = None
        self._round = Round(optimizers)
        self._any_rank = any_rank
        self._stepped_before: set[int] = set()
        self._pending = False
        self._gradients = False
        before, after = untraced(self._before_step), untraced(self._after_step)
        setattr(after, _MARK, True)
        self._handles: list[Any] = []
        for optimizer in optimizers:
            self._handles += [
                optimizer.register_step_pre_hook(before),
                optimizer.register_step_post_hook(after),
                optimizer.register_load_state_dict_post_hook(self._after_optimizer_load),
            ]
        loading = OnLoad(self._before_load)
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                self._handles.append(module._register_load_state_dict_pre_hook(loading))

    def remove(self) -> None:
        """Leave the optimizer and the model as if they had never been attached."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def _before_load(self) -> None:
        if self._copies is None:
            self._copies = [t.detach().clone() for t in self._weights()]

    def _after_optimizer_load(self, optimizer: torch.optim.Optimizer) -> None:
        self.loaded = True

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._pending = True
        self._round.begins(optimizer)
        closure = any(value is not None for value in (*args[1:], *kwargs.values()))
        self._gradients = closure or has_gradient(optimizer)
        if self._copies is not None:
            pairs = zip(self._weights(), self._copies, strict=False)
            if not all(same_bits(now, before) for now, before in pairs):
                self.loaded = True
            self._copies = None
        if self.before is not None and self._gradients:
            before, self.before = self.before, None
            before(closure)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._pending:
            return
        self._pending = False
        if not (self._gradients or has_gradient(optimizer)) or overflowed(optimizer):
            return
        if resting(optimizer):
            return
        if id(optimizer) not in self._stepped_before:
            # The gradients are perhaps cleared already, by another hook.
            if not self._any_rank(not has_gradient(optimizer) or moves(optimizer)):
                return
        self._stepped_before.add(id(optimizer))
        if not self._round.ends(optimizer):
            return
        self._stepped()
        self.loaded = False


class Round:
    """When a step of several optimizers is over: each of those that step at all has stepped.

    Which do is learned from the round before: one whose parameters have no gradients does not. A
    round in which fewer step than were expected is noticed as the next begins, and not counted.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._expected = {id(o) for o in optimizers}
        self._stepped: set[int] = set()

    def begins(self, optimizer: torch.optim.Optimizer) -> None:
        """Take in that ``optimizer`` is about to step."""
        if id(optimizer) in self._stepped:
            self._expected = self._stepped
            self._stepped = set()

    def ends(self, optimizer: torch.optim.Optimizer) -> bool:
        """Take in that ``optimizer`` has stepped; return whether the round is over."""
        self._stepped.add(id(optimizer))
        if not self._stepped >= self._expected:
            return False
        self._expected, self._stepped = self._stepped, set()
        return True


def untraced(function: Callable[..., None]) -> Callable[..., None]:
    """Return ``function``, run by Python also where ``torch.compile`` traces the caller.

    What ``torch.compiler.disable`` returns costs a step several microseconds even where nothing is
    being traced.
    """
    disabled = torch.compiler.disable(function)

    def call(*args: Any) -> None:
        if torch.compiler.is_dynamo_compiling():
            disabled(*args)
        else:
            function(*args)

    return call


class OnLoad:
    """Calls ``function`` whatever the arguments; a copy of it, in a copied model, does nothing."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def __call__(self, *_: object) -> None:
        self._function()

    def __deepcopy__(self, memo: object) -> Callable[..., None]:
        return nullcontext().__exit__

    def __reduce__(self) -> tuple[Any, ...]:
        # Of the standard library, so that a pickled model can be read where koopcore is not.
        return getattr, (nullcontext(), "__exit__")


def attached(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an attachment's hooks are on ``optimizer``."""
    return any(hasattr(h, _MARK) for h in optimizer._optimizer_step_post_hooks.values())


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return [p.grad for p in parameters if p.grad is not None]


def has_gradient(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether any parameter has a gradient; nearly always the first one has."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                return True
    return False


def moves(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a gradient is anything but zero. Waits for the device."""
    for gradient in _gradients(optimizer):
        gradient = local(gradient)
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        if bool(values.any()):
            return True
    return False


def resting(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether every group's rate is zero; a rate on a device is not waited for."""
    for group in optimizer.param_groups:  # no generator: this is asked at every step
        if not stopped(group):
            return False
    return True


def overflowed(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether GradScaler found infinities, and the optimizer has left the step out."""
    infinities = getattr(optimizer, "found_inf", None)
    return infinities is not None and bool(infinities)
