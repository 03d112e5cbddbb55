"""Any torch module as a dictionary: ψ = module(x), differentiated by autograd."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from koopcore.learning.checks import whole
from koopcore.learning.dictionaries.protocol import Pullback
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

    def _call(self, theta: torch.Tensor, states: FloatArray) -> torch.Tensor:
        pieces = theta.split([shape.numel() for shape in self._shapes.values()])
        named: dict[str, Any] = {
            name: piece.view(shape)
            for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }
        result: torch.Tensor = functional_call(
            self.module, named, (torch.from_numpy(np.ascontiguousarray(states)),)
        )
        return result


def _values(tensor: torch.Tensor) -> FloatArray:
    """The numbers of a real tensor, with a pending negation done; shared where they can be."""
    values: FloatArray = tensor.detach().resolve_neg().to(torch.float64).numpy()
    return values
