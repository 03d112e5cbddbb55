"""Evaluate a loss without leaving a trace: no gradients, same random numbers, same buffers."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from koopcore.training.parallel.processes import ALONE, Processes
from koopcore.training.parallel.shards import Shards, reshard, sharded_modules
from koopcore.training.recording.live_buffers import reestimate
from koopcore.training.recording.parameters import is_sharded, real, same_bits
from koopcore.types import FloatArray

#: Two values of one loss at the same parameters may differ by this share, for sums in other orders.
SAME = 1e-3


class GuardedLoss:
    """Call ``loss()`` any number of times under identical conditions, then undo its side effects.

    Used as a context around one line search. Each call runs without gradients, unless the loss
    turns out to differentiate inside (physics-informed training), and starts from the same random
    state of torch (CPU and the model's CUDA device), NumPy, ``random`` and the given generators, so
    that all candidates see the same batch and dropout masks. After each call the model's buffers
    and training flags are put back bit-exactly.

    Args:
        loss: takes nothing, returns one number: a float or a tensor of one element.
        model: whose parameters the loss may read and must not change.
        generators: further torch generators that the loss draws from, one or several.
        processes: whose losses are averaged by every call, which all of them make.

    Raises (on a call): TypeError if the result is no real scalar; ValueError if the loss changed
    a parameter or accumulated into ``.grad``. A non-finite value is returned, not raised.

    Cost: one evaluation of the loss and a copy of the buffers and random states per search. It
    cannot undo what lives elsewhere: a loss that takes ``next(loader)`` sees another batch each
    time; hold the batch in the closure instead.
    """

    def __init__(
        self,
        loss: Callable[[], Any],
        model: nn.Module,
        generators: torch.Generator | Iterable[torch.Generator] = (),
        processes: Processes = ALONE,
    ) -> None:
        if not callable(loss):
            raise TypeError(
                f"loss is {type(loss).__name__}; give a function without arguments that returns "
                "the loss at the model's present parameters, or None"
            )
        check_arguments(loss)
        self.loss = loss
        self.model = model
        self.processes = processes
        self._random = RandomState(generators)
        self._differentiates = False
        self._raised: Exception | None = None  # by the loss, not by what is checked around it

    def __enter__(self) -> GuardedLoss:
        self._sharded = sharded_modules(self.model)
        reshard(self._sharded)
        self._parameters = list(self.model.named_parameters())
        self._buffers = _Buffers(self.model)
        self._training = [(m, m.training) for m in self.model.modules()]
        self._random.save({p.device for _, p in self._parameters})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
        del self._parameters, self._buffers, self._training

    def __call__(self) -> float:
        """Return the loss at the model's present parameters, with the buffers as on entry."""
        return self.processes.mean(lambda: scalar(self.run(self.loss)))

    def run(self, function: Callable[[], Any]) -> Any:
        """Return what ``function`` does, under the same conditions; a tensor as a copy of its own.

        Raises as a call does, but for what it returns.
        """
        versions = [p._version for _, p in self._parameters]
        gradients = [_gradient_mark(p) for _, p in self._parameters]
        try:
            result = self._run(function)
            if isinstance(result, Tensor):  # perhaps of a buffer that is put back now
                result = result.detach().clone()
        finally:
            self._random.notice()
            self._restore()
            reshard(self._sharded)  # what a forward without gradients has left gathered
        for (name, p), version, mark in zip(self._parameters, versions, gradients, strict=True):
            if p._version != version:
                raise ValueError(
                    f"the loss changed the parameter {name!r}; a loss must only read the model: "
                    "leave optimizer steps out of it"
                )
            if _gradient_mark(p) != mark:
                raise ValueError(
                    f"the loss changed {name}.grad; leave backward() and zero_grad() out of it, "
                    "and use torch.autograd.grad for derivatives inside a loss"
                )
        return result

    def rehearse(self) -> None:
        """Call the loss twice and say what is wrong with it; parameters and gradients stay.

        Besides what a call raises: ValueError if the loss raises anything, changes parameters
        behind autograd's back, is not finite, or is another one the second time. Cost: two
        evaluations, and a copy of all parameters and gradients for as long.
        """
        parameters = {n: p for n, p in self.model.named_parameters() if not is_lazy(p)}
        values = {name: p.detach().clone() for name, p in parameters.items()}
        gradients = {
            name: None if p.grad is None else (p.grad, p.grad.clone())
            for name, p in parameters.items()
        }
        try:
            with self:
                first = self()
                if changed := [n for n, p in parameters.items() if not same_bits(p, values[n])]:
                    raise ValueError(
                        f"the loss changed the parameter {changed[0]!r} behind autograd's back "
                        "(through .data); a loss must only read the model"
                    )
                second = self()
        except Exception as error:
            if error is not self._raised or _explained(error):
                raise
            raise ValueError(
                f"the loss failed when attach tried it: {type(error).__name__}: {error}. It is "
                "called without arguments, at the present parameters and in the model's present "
                "mode, and must return one number: loss=lambda: criterion(model(x), y)"
            ) from error
        finally:
            _put_back(parameters, values, gradients)
        if not math.isfinite(first):
            raise ValueError(
                f"the loss is {first} at finite parameters the first time it is evaluated; it must "
                "return a finite number (a mean over a batch that is not empty)"
            )
        if not abs(first - second) <= SAME * max(abs(first), abs(second)):
            raise ValueError(
                f"the loss is random: {first:.6g} and then {second:.6g} at the same parameters, so "
                "candidates could not be compared. Take one batch before, and hold it in the loss: "
                "x, y = next(iter(loader)); loss=lambda: criterion(model(x), y). If it draws from "
                "a torch.Generator of its own, give that as generators="
            )

    def gradient(self, parameters: Sequence[Tensor]) -> Sequence[Tensor | None] | None:
        """Return the loss's gradient; None where it has none (a number, computed without grad).

        Of parameters sharded by ``fully_shard`` it is what a backward pass leaves in ``.grad``,
        reduced over the mesh; all gradients that were there before are put back.
        """

        def differentiated() -> Any:
            with torch.enable_grad():
                value = self.loss()
                if not isinstance(value, Tensor) or not value.requires_grad:
                    return None
                if self._sharded:
                    return self._accumulated(value.sum(), parameters)
                return torch.autograd.grad(value.sum(), parameters, allow_unused=True)

        with unsynchronized():
            result: Sequence[Tensor | None] | None = self.run(differentiated)
        return result

    def _accumulated(
        self, value: Tensor, parameters: Sequence[Tensor]
    ) -> Sequence[Tensor | None] | None:
        """Only the backward pass reduces what is sharded: the leaves are gathered parameters."""
        held = [p for _, p in self._parameters]
        if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in held):
            return None  # perhaps an optimizer's step
        before = [(p, p.grad) for p in [*held, *leaves(value)]]
        for p, _ in before:
            p.grad = None
        try:
            value.backward()
            return [p.grad for p in parameters]
        finally:
            for p, gradient in before:
                p.grad = gradient

    def reestimate_buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Fill the batch-norm statistics from one run of the loss; see :func:`reestimate`."""
        try:
            return reestimate(self.model, lambda: self._run(self.loss))
        finally:
            self._random.restore()

    def _run(self, loss: Callable[[], Any]) -> Any:
        """The loss without gradients, or with them once it was seen to need them."""
        try:
            if not self._differentiates:
                try:
                    with torch.no_grad():
                        return loss()
                except RuntimeError as error:
                    if "does not require grad" not in str(error):
                        raise
                self._differentiates = True
                self._restore()
            with torch.enable_grad():
                return loss()
        except Exception as error:
            self._raised = error
            raise

    def _restore(self) -> None:
        self._random.restore()
        self._buffers.restore()
        for module, training in self._training:
            if module.training is not training:  # setting a module's attribute costs 3 us
                module.training = training


#: Cosine of two gradients from which on they count as one: what rounding and autocast leave.
ONE = 0.999
#: Elements of a gradient that are averaged over processes at most, evenly over all.
SAMPLED = 8192


def same_gradient(
    guarded: GuardedLoss, parameters: Sequence[Tensor], shards: Shards | None = None
) -> bool:
    """Return whether ``.grad`` of the parameters has the direction of the loss's gradient.

    It has in a run of full batches without dropout, whatever the optimizer then does with it, and
    hardly ever in another. False where that cannot be told: the loss has no gradient or fails in
    computing it, gradients are sparse, or steps are taken inside of a sharded backward pass. Cost:
    one forward and backward pass of the loss. Over several processes replicated gradients are
    averaged at :data:`SAMPLED` places at most; of ``shards``, which hold gradients reduced already,
    only three sums are added up. All have one answer.
    """
    processes = guarded.processes
    held = [k for k, p in enumerate(parameters) if p.grad is not None and p.requires_grad]
    known = not any(g is not None and g.is_sparse for g in (parameters[k].grad for k in held))
    if not processes.all(known and (bool(held) or shards is not None)):
        return False
    gradients: Sequence[Tensor | None] | None = None
    try:
        with guarded:
            gradients = guarded.gradient([parameters[k] for k in held])
    except Exception:  # of a loss that is only right without gradients; an attempt would say it
        gradients = None
    if not processes.all(gradients is not None):
        return False
    assert gradients is not None
    dots, plain = np.zeros(3), []
    for k, own in zip(held, gradients, strict=True):
        p = parameters[k]
        if own is None or p.grad is None:
            continue
        pair = real(_placed(p.grad, p)).flatten(), real(_placed(own, p)).flatten()
        if shards is None or not is_sharded(p):
            plain.append(pair)
        elif shards.counted[k]:
            dots += _products(*pair)
    if shards is not None:
        dots = processes.total(dots)
    every = 1
    if plain and processes.size > 1:
        every = max(1, -(-sum(mine.numel() for mine, _ in plain) // SAMPLED))
        one, other = (
            torch.cat([pair[side][::every].double().cpu() for pair in plain]) for side in (0, 1)
        )
        plain = [(one, torch.from_numpy(processes.total(other.numpy())) / processes.size)]
    for pair in plain:
        dots += every * _products(*pair)
    product, one_square, other_square = map(float, dots)
    return processes.all(product > ONE * math.sqrt(one_square * other_square))


def _products(one: Tensor, other: Tensor) -> FloatArray:
    one, other = one.double(), other.double()
    products = torch.stack([one @ other, one @ one, other @ other])
    result: FloatArray = products.cpu().numpy()
    return result


def _placed(gradient: Any, parameter: Any) -> Tensor:
    """A DTensor's gradient with the placements of its parameter."""
    if is_sharded(gradient) and gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)
    placed: Tensor = gradient
    return placed


def leaves(value: Tensor) -> list[Tensor]:
    """Return the tensors into whose ``.grad`` a backward pass from ``value`` accumulates."""
    seen, ahead, reached = set(), [value.grad_fn], []
    while ahead:
        node: Any = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            reached.append(node.variable)
        ahead += [following for following, _ in node.next_functions]
    return reached


@contextmanager
def unsynchronized() -> Iterator[None]:
    """Let wrappers that count backward passes (DDP) not count what is differentiated in the block.

    They would wait for a reduction that ``torch.autograd.grad`` never begins. Whatever is called in
    the block is looked at: a loss may hold a wrapper that nobody else knows.
    """
    names = "require_backward_grad_sync", "require_forward_param_sync"
    before: dict[Any, list[Any]] = {}

    def stop(module: nn.Module, _: Any) -> None:
        if module not in before and all(name in vars(module) for name in names):
            before[module] = [getattr(module, name) for name in names]
            setattr(module, names[0], False)

    handle = register_module_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()
        for module, values in before.items():
            for name, value in zip(names, values, strict=True):
                setattr(module, name, value)


def check_arguments(loss: Callable[..., Any]) -> None:
    """Raise TypeError for a loss that cannot be called without arguments."""
    function = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of builtins that tell nothing
        return
    try:
        signature.bind()
    except TypeError as error:
        name = getattr(loss, "__name__", type(loss).__name__)
        raise TypeError(
            f"loss {name}{signature} cannot be called without arguments ({error}); give a function "
            "that returns the loss at the model's present parameters: "
            "loss=lambda: criterion(model(x), y)"
        ) from None


def _explained(error: Exception) -> bool:
    """Whether koopcore raised it, as it does for wrong residuals, and says what to do."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    package = trace.tb_frame.f_globals.get("__package__") or ""  # None in a script
    return package.startswith(__package__ or "koopcore")


@torch.no_grad()
def _put_back(
    parameters: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    gradients: Mapping[str, tuple[Tensor, Tensor] | None],
) -> None:
    for name, p in parameters.items():
        if not same_bits(p, values[name]):
            p.copy_(values[name])
        known = gradients[name]
        p.grad = None if known is None else known[0]
        if known is not None and not same_bits(known[0], known[1]):
            known[0].copy_(known[1])


def scalar(value: Any) -> float:
    """Return a loss as a float; TypeError unless it is one real number."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise TypeError(
                f"the loss returned a {value.dtype} tensor of shape {tuple(value.shape)}; "
                "return one real number (reduce with .mean())"
            )
        return float(value.detach())
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(
            f"the loss returned {type(value).__name__}; return a float or a tensor of one element"
        )
    return float(value)


def _gradient_mark(parameter: Tensor) -> tuple[int, int]:
    grad = parameter.grad
    return (0, 0) if grad is None else (id(grad), grad._version)


class _Buffers:
    """Values of all buffers of a module, put back after every evaluation.

    By value, whatever their version counters say: batch norm moves its statistics without
    counting.
    """

    def __init__(self, module: nn.Module) -> None:
        self._owners: list[tuple[nn.Module, str]] = []
        self._tensors: list[Tensor] = []
        for owner in module.modules():
            for name, buffer in owner._buffers.items():
                if buffer is not None and not is_lazy(buffer):
                    self._owners.append((owner, name))
                    self._tensors.append(buffer)
        self._values = [buffer.clone() for buffer in self._tensors]

    @torch.no_grad()
    def restore(self) -> None:
        for (owner, name), buffer in zip(self._owners, self._tensors, strict=True):
            if owner._buffers.get(name) is not buffer:
                owner._buffers[name] = buffer
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._values)


class RandomState:
    """The states of torch's generators and, if the loss uses them, of NumPy and ``random``.

    Saving NumPy's global state costs 150 us and ``random``'s 30 us, as much as a small network's
    training step, where torch's costs 3 us. So torch (CPU, the CUDA devices in use, the generators
    given) is always restored; the other two only from the first evaluation on in which the loss
    was seen to draw from them, which is looked for in the first :data:`PROBES` evaluations.
    """

    PROBES = 3

    def __init__(self, generators: torch.Generator | Iterable[torch.Generator] = ()) -> None:
        if isinstance(generators, torch.Generator):
            generators = (generators,)
        self._generators = list(generators)
        self._torch: list[tuple[Callable[[Any], Any], Any]] = []
        self._others: dict[str, Any] = {}
        self._guarded = set(_OTHERS)
        self._drawn: set[str] = set()
        self._probed = 0

    def save(self, devices: Iterable[torch.device]) -> None:
        """Keep the present states; ``devices`` are those whose default generator is in use."""
        self._torch = [(torch.set_rng_state, torch.get_rng_state())]
        for device in devices:
            if device.type == "cuda":
                state = torch.cuda.get_rng_state(device)
                self._torch.append((_cuda_setter(device), state))
        self._torch += [(g.set_state, g.get_state()) for g in self._generators]
        self._others = {name: _OTHERS[name][0]() for name in self._guarded}

    def notice(self) -> None:
        """Look whether the evaluation that just ended drew from NumPy or ``random``."""
        if self._probed == self.PROBES:
            return
        self._probed += 1
        self._drawn |= {n for n, state in self._others.items() if not _same(_OTHERS[n][0](), state)}
        if self._probed == self.PROBES:
            self._guarded = self._drawn

    def restore(self) -> None:
        """Put back what :meth:`save` kept."""
        for setter, state in self._torch:
            setter(state)
        for name in self._drawn & self._others.keys():
            _OTHERS[name][1](self._others[name])


def _cuda_setter(device: torch.device) -> Callable[[Any], Any]:
    return lambda state: torch.cuda.set_rng_state(state, device)


def _same(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


#: Name of a global generator -> (get its state, set it).
_OTHERS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    # The legacy global state is deprecated for new code, but it is what losses draw from.
    "numpy": (np.random.get_state, np.random.set_state),
    "random": (random.getstate, random.setstate),
}
