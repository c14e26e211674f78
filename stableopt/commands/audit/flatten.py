"""The tensors of a nested checkpoint by dotted names; optimizer state is only counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

_OPTIMIZER_KEYS = frozenset(
    {"optimizer", "optimizers", "optimizer_state", "optimizer_states", "optimizer_state_dict"}
)
ROOT = "tensor"
"""The name of a tensor that is the whole file."""


class Flat(NamedTuple):
    """What was found in a nest of containers.

    Attributes:
        tensors: Name and tensor, in the order of the file; one tensor may have several names.
        optimizer_tensors: How many tensors of optimizer state were left out.
    """

    tensors: list[tuple[str, Tensor]]
    optimizer_tensors: int


class _Place(NamedTuple):
    name: str
    key: str
    value: Any
    optimizer: bool


def flatten(content: object) -> Flat:
    """Return every tensor in nested dicts, lists and tuples, by its dotted name.

    Optimizer state is what lies below a key like ``"optimizer"`` or ``"optimizer_states"``,
    below ``"state"`` if that has integer keys, and in a dict with both ``"state"`` and
    ``"param_groups"``, as ``torch.optim.Optimizer.state_dict()`` makes it.

    Args:
        content: What ``torch.load`` returned; may be nested deeply, and contain itself.

    Cost:
        One visit of each container; no tensor is read.
    """
    tensors: list[tuple[str, Tensor]] = []
    left_out = 0
    visited = set[int]()
    # Not recursive: a file can nest deeper than Python recurses.
    places = [_Place("", "", content, optimizer=False)]
    while places:
        place = places.pop()
        if isinstance(place.value, Tensor):
            left_out += place.optimizer
            if not place.optimizer:
                tensors.append((place.name or ROOT, place.value))
        elif isinstance(place.value, (Mapping, list, tuple)) and id(place.value) not in visited:
            visited.add(id(place.value))
            places.extend(reversed(_inside(place)))
    return Flat(tensors, left_out)


def _inside(place: _Place) -> list[_Place]:
    optimizer = place.optimizer or _is_optimizer(place.key, place.value)
    pairs = place.value.items() if isinstance(place.value, Mapping) else enumerate(place.value)
    dot = f"{place.name}." if place.name else ""
    return [_Place(f"{dot}{key}", str(key), value, optimizer) for key, value in pairs]


def _is_optimizer(key: str, value: Any) -> bool:
    if key in _OPTIMIZER_KEYS:
        return True
    if not isinstance(value, Mapping):
        return False
    if "param_groups" in value and isinstance(value.get("state"), Mapping):
        return True
    return key == "state" and bool(value) and all(isinstance(index, int) for index in value)
