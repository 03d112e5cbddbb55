"""The walk over a torch module: which parameters are recorded, and how each layer's nodes run.

torch is looked up, never imported: whoever holds a module has imported it, so wherever this can
succeed it is there.

| module | node |
|---|---|
| Linear, Conv1d/2d/3d, Embedding, Bilinear | a row (filter) of the weight, and its bias |
| ConvTranspose | an output channel, over the inputs of its convolution group, and its bias |
| transposed Linear (class `Conv1D` with `nf`) | a column of the weight, and its bias |
| MultiheadAttention | a row of the fused or separate q, k, v projection, and its bias |
| RNN, LSTM, GRU and their cells | a gate's rows of weight_ih and weight_hh, and both biases |
| normalisation layers | all of weight and bias, as one node |
| any other module | matrices: a row and its entry of the matching bias; the rest: one node each |
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from koopcore.partition.units import Block, Unit

Shape = tuple[int, ...]
Named = list[tuple[str, Shape]]
Stored = dict[str, Named]  # a module's tensor -> the parameters it is computed from

_SHARED_BIAS = "in_proj_bias"  # of an attention's q, k and v projections, one behind the other
_RECURRENT = re.compile(r"(?:weight|bias)_(?:ih|hh)(?:_(?P<layer>.+))?")


class Claim(NamedTuple):
    """Nodes that run through some tensors of a module: (name, axis, conv groups, first index)."""

    suffix: str
    n_nodes: int
    tensors: list[tuple[str, int | None, int, int]]


def walk(
    model: Any, include: Sequence[str] | None, exclude: Sequence[str] | None
) -> tuple[Named, tuple[Unit, ...], tuple[tuple[str, str], ...]]:
    """Recorded parameters (name, shape) in flat order, their units, and what was left out."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"model is {type(model).__name__}; Layout.from_module takes a torch.nn.Module "
            "(Layout.from_shapes needs no torch)"
        )
    named, left_out = _recorded(torch, model, include, exclude)
    position = {name: i for i, (name, _) in enumerate(named)}
    claimed: set[str] = set()
    units: list[Unit] = []
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        stored = {
            logical: [(prefix + name, shape) for name, shape in tensors]
            for logical, tensors in _stored(torch, module).items()
        }
        own = {name for tensors in stored.values() for name, _ in tensors}
        # A parametrization's own parameters were claimed with the layer they parametrize.
        if own and not own <= claimed:
            root = path or type(module).__name__
            for claim in _claims(torch, module, {k: v[-1][1] for k, v in stored.items()}):
                units += _units(root, claim, stored, position)
            claimed |= own
    units.sort(key=lambda unit: min(block.tensor for block in unit.blocks))
    return named, tuple(units), left_out


def _recorded(
    torch: Any, model: Any, include: Sequence[str] | None, exclude: Sequence[str] | None
) -> tuple[Named, tuple[tuple[str, str], ...]]:
    named: Named = []
    left_out: list[tuple[str, str]] = []
    first_name: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first_name.setdefault(id(parameter), name)
        if known != name:
            reason = f"tied to {known}"
        elif include is not None and not any(fnmatchcase(name, p) for p in include):
            reason = "not included"
        elif any(fnmatchcase(name, p) for p in exclude or ()):
            reason = "excluded"
        elif not parameter.requires_grad:
            reason = "frozen: requires_grad is False"
        elif torch.nn.parameter.is_lazy(parameter):
            raise ValueError(
                f"parameter {name!r} is uninitialized (a lazy module) and has no shape yet; run "
                "one forward pass first, or exclude it"
            )
        elif not (parameter.is_floating_point() or parameter.is_complex()):
            reason = f"{parameter.dtype} is not a floating-point dtype"
        elif parameter.numel() == 0:
            reason = "empty"
        else:
            pair = (2,) if parameter.is_complex() else ()
            named.append((name, (*parameter.shape, *pair)))
            continue
        left_out.append((name, reason))
    for pattern in include or ():
        if not any(fnmatchcase(name, pattern) for name in first_name.values()):
            raise ValueError(
                f"the include pattern {pattern!r} matches no parameter; their names are "
                f"{', '.join(list(first_name.values())[:6])}, ..."
            )
    if not named:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out[:6])
        raise ValueError(
            f"{type(model).__name__} has no parameter to record ({why or 'it has none at all'}); "
            "give a module with trainable floating-point parameters"
        )
    return named, tuple(left_out)


def _stored(torch: Any, module: Any) -> Stored:
    """A module's tensors by name, each with its parameters; a parametrized one has several."""
    lazy = torch.nn.parameter.is_lazy
    stored: Stored = {
        name: [(name, tuple(p.shape))]
        for name, p in module._parameters.items()
        if p is not None and not lazy(p)
    }
    # A normed weight is kept as magnitude and direction, or under another name.
    for name in [name[:-2] for name in stored if name.endswith("_v") and f"{name[:-1]}g" in stored]:
        stored[name] = [*stored.pop(f"{name}_g"), *stored.pop(f"{name}_v")]
    for name in [name.removesuffix("_orig") for name in stored if name.endswith("_orig")]:
        stored[name] = stored.pop(f"{name}_orig")
    if torch.nn.utils.parametrize.is_parametrized(module):
        for name, parametrization in module.parametrizations.items():
            originals = [
                (f"parametrizations.{name}.{own}", tuple(p.shape))
                for own, p in parametrization._parameters.items()
                if p is not None
            ]
            if originals:  # the full-size one (the direction, of a weight norm) is the last
                stored[name] = originals
    return stored


def _claims(torch: Any, module: Any, shapes: Mapping[str, Shape]) -> list[Claim]:
    nn = torch.nn
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    special: list[Claim] = []
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and "weight" in shapes:
        special = [_columns(shapes, module.groups)]
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf") and "weight" in shapes:
        special = [_columns(shapes, 1)]
    elif isinstance(module, nn.MultiheadAttention):
        special = _attention(shapes)
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        special = _recurrent(shapes)
    elif isinstance(module, norms):
        special = [Claim("", 1, [(name, None, 1, 0) for name in shapes])]
    taken = {name for claim in special for name, *_ in claim.tensors}
    return special + _rows({k: v for k, v in shapes.items() if k not in taken})


def _columns(shapes: Mapping[str, Shape], groups: int) -> Claim:
    tensors: list[tuple[str, int | None, int, int]] = [("weight", 1, groups, 0)]
    if "bias" in shapes:
        tensors.append(("bias", 0, 1, 0))
    return Claim("", shapes["weight"][1] * groups, tensors)


def _attention(shapes: Mapping[str, Shape]) -> list[Claim]:
    """The fused projection, or three that share one bias; bias_k, bias_v are left to the rows."""
    if "in_proj_weight" in shapes:
        names = [n for n in ("in_proj_weight", _SHARED_BIAS) if n in shapes]
        return [Claim("in_proj", shapes["in_proj_weight"][0], [(n, 0, 1, 0) for n in names])]
    claims: list[Claim] = []
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        width = shapes[f"{name}_weight"][0]
        tensors: list[tuple[str, int | None, int, int]] = [(f"{name}_weight", 0, 1, 0)]
        if shapes.get(_SHARED_BIAS) == (3 * width,):
            tensors.append((_SHARED_BIAS, 0, 1, i * width))
        claims.append(Claim(name, width, tensors))
    return claims


def _recurrent(shapes: Mapping[str, Shape]) -> list[Claim]:
    """One unit per layer and direction; an LSTM's projection (weight_hr) is left to the rows."""
    layers: dict[str, list[str]] = {}
    for name in shapes:
        matched = _RECURRENT.fullmatch(name)
        if matched:
            layers.setdefault(matched["layer"] or "", []).append(name)
    return [
        Claim(layer, shapes[names[0]][0], [(name, 0, 1, 0) for name in names])
        for layer, names in layers.items()
    ]


def _rows(shapes: Mapping[str, Shape]) -> list[Claim]:
    """Matrices by rows with the bias of their name; vectors and scalars whole."""
    claims: list[Claim] = []
    biases: set[str] = set()
    # A tensor called weight has the first claim on the bias.
    for name, shape in sorted(shapes.items(), key=lambda item: "weight" not in item[0]):
        bias = name.replace("weight", "bias") if "weight" in name else "bias"
        fits = len(shape) >= 1 and name != bias and shapes.get(bias) == shape[:1]
        paired = [bias] if fits and bias not in biases else []
        if len(shape) >= 2:
            n_nodes, axis = shape[0], 0
        elif paired and "weight" in name:
            n_nodes, axis = 1, None  # a scale and its shift: a normalisation layer by any name
        else:
            continue
        biases.update(paired)
        claims.append(Claim(_suffix(name), n_nodes, [(n, axis, 1, 0) for n in (name, *paired)]))
    taken = {name for claim in claims for name, *_ in claim.tensors}
    alone = [name for name in shapes if name not in taken]
    return claims + [Claim(_suffix(name), 1, [(name, None, 1, 0)]) for name in alone]


def _suffix(name: str) -> str:
    return "" if name == "weight" else name


def _units(root: str, claim: Claim, stored: Stored, position: Mapping[str, int]) -> list[Unit]:
    """The claim on what is recorded of it; parameters of another length stand on their own."""
    blocks: list[Block] = []
    alone: list[Unit] = []
    for logical, axis, groups, first in claim.tensors:
        for name, shape in stored[logical]:
            if name not in position:  # frozen, tied, excluded
                continue
            if _fits(claim.n_nodes, logical, shape, axis, groups):
                blocks.append(Block(position[name], axis, groups, first))
            else:
                alone.append(Unit(name, 1, (Block(position[name], None),)))
    whole = f"{root}.{claim.suffix}" if claim.suffix else root
    return ([Unit(whole, claim.n_nodes, tuple(blocks))] if blocks else []) + alone


def _fits(n_nodes: int, logical: str, shape: Shape, axis: int | None, groups: int) -> bool:
    """Whether the tensor has one share for every node, as a subclass may not have kept it."""
    if axis is None:
        return True
    if len(shape) <= axis:
        return False
    return shape[axis] * groups == n_nodes or logical == _SHARED_BIAS
