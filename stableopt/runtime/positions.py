"""The places of parameters in the groups of an optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from torch.nn.parameter import Parameter

from stableopt.runtime.storage import has_data

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer


class Position(NamedTuple):
    """Where a parameter is: trainers swap Parameter objects, but not their places."""

    group: int
    place: int


def positions(optimizer: Optimizer) -> dict[Position, Tensor]:
    """Return every parameter that has data by its place, in the optimizer's order."""
    return {
        Position(g, i): parameter
        for g, group in enumerate(optimizer.param_groups)
        for i, parameter in enumerate(group["params"])
        if has_data(parameter)
    }


def parameter_at(optimizer: Optimizer, place: Position) -> Tensor | None:
    """Return the parameter at a place; ``None`` if there is none."""
    groups = optimizer.param_groups
    if place.group >= len(groups) or place.place >= len(groups[place.group]["params"]):
        return None
    found: Tensor = groups[place.group]["params"][place.place]
    return found if has_data(found) else None


Shape: TypeAlias = "list[list[tuple[int, torch.Size | None, torch.dtype]]]"


def shape_of(optimizer: Optimizer) -> Shape:
    """Return the identity, shape and dtype of every parameter: a copy fits only these."""
    return [
        [(id(p), p.shape if _has_shape(p) else None, p.dtype) for p in group["params"]]
        for group in optimizer.param_groups
    ]


def has_shape(optimizer: Optimizer, shape: Shape) -> bool:
    """Return whether ``shape_of(optimizer) == shape``, but faster."""
    groups = optimizer.param_groups
    if len(groups) != len(shape):
        return False
    for group, known in zip(groups, shape, strict=True):
        params = group["params"]
        if len(params) != len(known):
            return False
        for p, (number, size, dtype) in zip(params, known, strict=True):
            if id(p) != number or p.dtype is not dtype:
                return False
            if (p.shape if _has_shape(p) else None) != size:
                return False
    return True


def _has_shape(parameter: Tensor) -> bool:
    """Return ``has_data`` for nearly every parameter, but faster: it is called in every step."""
    return not parameter.is_meta if type(parameter) is Parameter else has_data(parameter)
