"""Any torch module as a dictionary, differentiated by autograd; koopcore's own in torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from koopcore.learning.checks import whole
from koopcore.learning.dictionaries.blocks import Blocks
from koopcore.learning.dictionaries.layered import Layered
from koopcore.learning.dictionaries.one_layer import OneLayer
from koopcore.learning.dictionaries.protocol import Dictionary, Pullback
from koopcore.learning.dictionaries.state_inclusive import StateInclusive
from koopcore.types import FloatArray


class TorchDictionary:
    """ψ(x) = module(x) for a module from (M, n_states) to (M, h), computed in float64 on the CPU.

    The module is copied, so later changes to it are not seen. θ is its parameters in the order of
    ``module.parameters()``, flattened; learning starts from the module's own values, whatever the
    random state. Buffers (running means and the like) stay as they are: use ``eval()`` mode.
    Raises ValueError for a module that makes something else, TypeError for complex numbers.

    A step costs torch's dispatch, some 10 µs per operation: for small stacks of dense layers
    `Layered` is several times faster. A saved operator holds θ but not the module's code.
    """

    def __init__(self, module: torch.nn.Module, n_states: int) -> None:
        self.module = copy.deepcopy(module).double().cpu()
        self.n_states = whole("n_states", n_states)
        if any(p.is_complex() for p in self.module.parameters()):
            raise TypeError("the module has complex parameters; use real and imaginary parts")
        with torch.no_grad():
            outputs = self.module(torch.zeros(2, self.n_states, dtype=torch.float64))
        if outputs.is_complex():
            raise TypeError("the module makes complex numbers; use real and imaginary parts")
        shape = tuple(outputs.shape)
        if len(shape) != 2 or shape[0] != 2 or not shape[1]:
            raise ValueError(
                f"the module takes (2, {n_states}) to {shape}; (2, n_features) is needed"
            )
        self.n_features = int(shape[1])
        self._shapes = {name: p.shape for name, p in self.module.named_parameters()}
        self.n_parameters = sum(shape.numel() for shape in self._shapes.values())
        self._modules: dict[tuple[torch.dtype, torch.device], torch.nn.Module] = {}

    def initial(self, rng: np.random.Generator) -> FloatArray:
        parts = [_values(p).reshape(-1) for p in self.module.parameters()]
        return np.concatenate(parts) if parts else np.zeros(0)

    def features(self, parameters: FloatArray, states: FloatArray) -> FloatArray:
        with torch.no_grad():
            return _values(self._call(torch.from_numpy(parameters), states))

    def linearized(self, parameters: FloatArray, states: FloatArray) -> tuple[FloatArray, Pullback]:
        theta = torch.from_numpy(parameters).clone().requires_grad_(True)
        outputs = self._call(theta, states)

        def pullback(gradient: FloatArray) -> FloatArray:
            if not outputs.requires_grad:  # a module without parameters
                return np.zeros(self.n_parameters)
            seed = torch.from_numpy(np.ascontiguousarray(gradient)).to(outputs.dtype)
            (result,) = torch.autograd.grad(outputs, theta, seed, retain_graph=True)
            return _values(result)

        return _values(outputs), pullback

    def torch_features(self, theta: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """ψ of states (M, n), θ and states of one dtype and on one device; differentiable by θ."""
        place = states.dtype, states.device
        if place not in self._modules:  # its buffers must be where the states are
            moved = copy.deepcopy(self.module).to(device=states.device, dtype=states.dtype)
            self._modules[place] = moved
        return self._called(self._modules[place], theta, states)

    def _call(self, theta: torch.Tensor, states: FloatArray) -> torch.Tensor:
        return self._called(self.module, theta, torch.from_numpy(np.ascontiguousarray(states)))

    def _called(
        self, module: torch.nn.Module, theta: torch.Tensor, states: torch.Tensor
    ) -> torch.Tensor:
        pieces = theta.split([shape.numel() for shape in self._shapes.values()])
        named: dict[str, Any] = {
            name: piece.view(shape)
            for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }
        result: torch.Tensor = functional_call(module, named, (states,))
        return result


def torch_features(
    dictionary: Dictionary, theta: torch.Tensor, states: torch.Tensor
) -> torch.Tensor:
    """ψ (M, h) of a koopcore dictionary in torch: any dtype and device, differentiable by θ (p,).

    The same θ and, to rounding, the same ψ as ``dictionary.features``. Raises TypeError for a
    dictionary that is none of koopcore's and has no method ``torch_features(theta, states)``.
    """
    if isinstance(dictionary, OneLayer):
        return _activated(dictionary.activation, _affine(dictionary, theta, states))
    if isinstance(dictionary, Layered):
        current, start = states, 0
        for fan_in, fan_out in pairwise((dictionary.n_states, *dictionary.widths)):
            bias, weight = theta[start : start + fan_out], theta[start + fan_out :]
            start += fan_out * (fan_in + 1)
            inner = torch.addmm(bias, current, weight[: fan_in * fan_out].view(fan_in, fan_out))
            current = _activated(dictionary.activation, inner)
        return current
    if isinstance(dictionary, StateInclusive):
        parts = [states[:, : dictionary.states], torch_features(dictionary.inner, theta, states)]
        if dictionary.constant:
            parts.append(torch.ones_like(states[:, :1]))
        return torch.cat(parts, dim=1)
    if isinstance(dictionary, Blocks):
        places = zip(
            dictionary.dictionaries, dictionary.parameter_slices(), dictionary.states, strict=True
        )
        blocks = [torch_features(d, theta[at], states[:, list(part)]) for d, at, part in places]
        return torch.cat(blocks, dim=1)
    own: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = getattr(
        dictionary, "torch_features", None
    )
    if own is None:
        raise TypeError(
            f"{type(dictionary).__name__} has no torch_features(theta, states); OneLayer, Layered, "
            "StateInclusive, Blocks of these, or TorchDictionary learn in torch"
        )
    return own(theta, states)


def _affine(layer: OneLayer, theta: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Wx + b, or Wx."""
    h, n = layer.n_features, layer.n_states
    weights = theta[: h * n].view(h, n).T
    return states @ weights if layer.bias is None else torch.addmm(theta[h * n :], states, weights)


def _activated(name: str, inner: torch.Tensor) -> torch.Tensor:
    function: Callable[[torch.Tensor], torch.Tensor] = {
        "tanh": torch.tanh,
        "logistic": torch.sigmoid,
        "arctan": torch.atan,
    }[name]
    return function(inner)


def _values(tensor: torch.Tensor) -> FloatArray:
    """The numbers of a real tensor, with a pending negation done; shared where they can be."""
    values: FloatArray = tensor.detach().resolve_neg().to(torch.float64).numpy()
    return values
