"""What can be attached to: torch optimizers, out of their wrappers, one or several at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

#: What an optimizer has that was made by ``Optimizer.__init__``, and some wrappers have not.
_HOOKS = "_optimizer_step_post_hooks"


class Optimizers:
    """Several optimizers that step parameters of one model, seen as one.

    members: in the order in which they were given. Their groups and states are looked up where
    they are, each time.
    """

    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:
        self.members = list(members)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all members."""
        return [group for member in self.members for group in member.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:
        """The states of all parameters; a parameter belongs to one member."""
        return {p: state for member in self.members for p, state in member.state.items()}

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of all members; of the same name those of the first."""
        return {k: v for member in reversed(self.members) for k, v in member.defaults.items()}


Stepper: TypeAlias = torch.optim.Optimizer | Optimizers


def members(stepper: Stepper) -> list[torch.optim.Optimizer]:
    """Return the torch optimizers."""
    return stepper.members if isinstance(stepper, Optimizers) else [stepper]


def stepper_of(given: Any) -> Stepper:
    """Return the torch optimizer in ``given``, or :class:`Optimizers` where it is a list.

    TypeError for what is none, or cannot be followed; ValueError for a list that is empty or
    holds a parameter twice.
    """
    if not isinstance(given, list | tuple):
        return inner_optimizer(given)
    inner = [inner_optimizer(one) for one in given]
    if not inner:
        raise ValueError("the list of optimizers is empty; give those that step the model")
    held = [id(p) for one in inner for group in one.param_groups for p in group["params"]]
    if len(set(held)) < len(held):
        raise ValueError(
            "a parameter is held by two of the optimizers (or an optimizer is named twice); each "
            "must be stepped by one"
        )
    return inner[0] if len(inner) == 1 else Optimizers(inner)


def inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return the torch optimizer, also out of what holds one as ``.optimizer``."""
    inner: Any = optimizer
    while True:
        _refuse_partitioned(inner)
        held = getattr(inner, "optimizer", None)
        if not isinstance(held, torch.optim.Optimizer) or held is inner:
            break
        inner = held
    if not isinstance(inner, torch.optim.Optimizer) or not hasattr(inner, _HOOKS):
        raise TypeError(
            f"the first argument is {type(optimizer).__name__}; attach(optimizer, model) takes "
            "the torch.optim.Optimizer that steps the model, what holds it as .optimizer, or a "
            "list of them"
        )
    return inner


def check_whole(stepper: Stepper, moments: str, observables: str) -> None:
    """Raise ValueError for options that read a state of which each rank has only a part."""
    for member in members(stepper):
        zero = any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(member).__mro__)
        if zero and (moments != "keep" or observables != "weights"):
            raise ValueError(
                f"moments={moments!r}, observables={observables!r}: a ZeroRedundancyOptimizer has "
                'only a part of the state on each rank; use moments="keep" and '
                'observables="weights", or fully_shard (FSDP2)'
            )


def model_of(given: Any) -> Any:
    """Return the module in ``given``; several, in a list, as one ``ModuleList`` of them.

    TypeError for models whose parameters cannot be recorded, with what to use instead.
    """
    if not isinstance(given, list | tuple):
        _refuse_flat(given)
        return given
    for one in given:
        if not isinstance(one, nn.Module):
            raise TypeError(f"the list of models holds a {type(one).__name__}; nn.Modules are due")
        _refuse_flat(one)
    if not given:
        raise ValueError("the list of models is empty; give those that the optimizer steps")
    return nn.ModuleList(given)


def _refuse_partitioned(optimizer: Any) -> None:
    if _is_deepspeed(optimizer):
        raise TypeError(
            f"{type(optimizer).__name__} is DeepSpeed's: it steps flat partitions of the "
            "parameters, which koopcore cannot follow; use torch's fully_shard (FSDP2) with a "
            "torch optimizer, or no ZeRO stage"
        )


def _refuse_flat(model: Any) -> None:
    """FSDP1 and DeepSpeed keep parameters as pieces of flat vectors, under other names."""
    if _is_deepspeed(model):
        raise TypeError(
            f"{type(model).__name__} is DeepSpeed's, which partitions parameters in ways that "
            "koopcore cannot follow; use torch's fully_shard (FSDP2), or DistributedDataParallel"
        )
    if not isinstance(model, nn.Module):
        return
    flat = [m for m in model.modules() if type(m).__name__ == "FullyShardedDataParallel"]
    if flat:
        raise TypeError(
            "the model is wrapped in FullyShardedDataParallel (FSDP1), whose flat parameters "
            "koopcore does not record; wrap it by torch.distributed.fsdp.fully_shard (FSDP2)"
        )


def _is_deepspeed(thing: Any) -> bool:
    return any(kind.__module__.partition(".")[0] == "deepspeed" for kind in type(thing).__mro__)
