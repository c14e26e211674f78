"""An optimizer with the optimizers and tensors in its attributes, beside ``.state``."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stableopt.runtime.storage import has_data

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

_DEPTH = 6
"""How deeply nested containers are searched."""

_OF_TORCH = frozenset(
    {"param_groups", "state", "defaults", "grad_scale", "found_inf", "step", "_opt_called"}
    | {"_step_count", "_zero_grad_profile_name", "_warned_capturable_if_run_uncaptured"}
)
"""Attributes of every optimizer, and those that schedulers and scalers put there."""

_CONTAINERS = (dict, list, tuple, deque, set, frozenset)
_NUMBERS = (int, float, bool)


def family(optimizer: Optimizer) -> list[Optimizer]:
    """Return an optimizer and those that it holds in its attributes (Lookahead, SAM, GaLore).

    An optimizer of torch that shares its ``.state`` with one in the list is left out.
    """
    found: list[Optimizer] = []
    waiting = deque([optimizer])
    while waiting:
        member = waiting.popleft()
        others = member is not optimizer and is_of_torch(member)
        shared = others and any(member.state is known.state for known in found)
        if not shared and all(member is not known for known in found):
            found.append(member)
            if not is_of_torch(member):
                for value in _own(member).values():
                    waiting.extend(each for each in _leaves(value) if isinstance(each, Optimizer))
    return found


def is_of_torch(optimizer: Optimizer) -> bool:
    """Return whether an optimizer is one of torch's own, all of whose state is in ``.state``."""
    return type(optimizer).__module__.startswith("torch.optim")


def attributes(optimizer: Optimizer, trained: Collection[int]) -> dict[str, Any]:
    """Return the attributes of an optimizer that hold tensors, or are plain numbers.

    Args:
        optimizer: One of a :func:`family`.
        trained: The ``id`` of every parameter: parameters are no state.
    """
    if is_of_torch(optimizer):
        return {}
    return {
        name: value
        for name, value in _own(optimizer).items()
        if isinstance(value, _NUMBERS) or _is_state(value, trained)
    }


def state_of(optimizer: Optimizer, parameter: Tensor) -> Mapping[str, Any]:
    """Return the state of a parameter in a family; keys of inner ones start with their name."""
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    if is_of_torch(optimizer):
        return state
    found = dict(state) if isinstance(state, dict) else {"": state}
    for member in family(optimizer)[1:]:
        inner = member.state.get(parameter, {})
        if isinstance(inner, dict) and inner is not state:
            found.update({f"{type(member).__name__}.{key}": v for key, v in inner.items()})
    return found


def loose_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the tensors that a family keeps in attributes, by their names."""
    if is_of_torch(optimizer):
        return {}
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {
        path: tensor
        for member in family(optimizer)
        for name, value in attributes(member, trained).items()
        for path, tensor in _named(value, name)
        if id(tensor) not in trained and has_data(tensor)
    }


def _named(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for i, (key, item) in enumerate(value.items()):
            yield from _named(item, f"{path}[{key!r}]" if isinstance(key, str) else f"{path}[{i}]")
    elif isinstance(value, _CONTAINERS):
        for i, item in enumerate(value):
            yield from _named(item, f"{path}[{i}]")


def numbers(optimizer: Optimizer) -> dict[str, Any]:
    """Return the attributes of a whole family that are plain numbers."""
    if is_of_torch(optimizer):
        return {}
    return {
        name: value
        for member in family(optimizer)
        for name, value in _own(member).items()
        if isinstance(value, _NUMBERS)
    }


def unseen(optimizer: Optimizer, trained: Collection[int]) -> Iterator[str]:
    """Yield attributes with tensors inside objects of other types, as ``attribute (Type)``.

    Args:
        optimizer: One of a :func:`family`.
        trained: The ``id`` of every parameter.
    """
    if is_of_torch(optimizer):
        return
    for name, value in _own(optimizer).items():
        for leaf in _leaves(value):
            if not isinstance(leaf, (Tensor, Optimizer)) and _has_tensors(leaf, trained):
                yield f"{name} ({type(leaf).__name__})"
                break


def _own(optimizer: Optimizer) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(optimizer).items()
        if name not in _OF_TORCH and not name.startswith("_optimizer_")
    }


def _is_state(value: Any, trained: Collection[int]) -> bool:
    """Return whether a value is a tensor or an array, or a container of these and plain values."""
    leaves = list(_leaves(value))
    arrays = [
        leaf
        for leaf in leaves
        if (isinstance(leaf, Tensor) and id(leaf) not in trained) or _is_array(leaf)
    ]
    plain = (Tensor, str, type(None), *_NUMBERS)
    return bool(arrays) and all(isinstance(leaf, plain) or _is_array(leaf) for leaf in leaves)


def _is_array(leaf: object) -> bool:
    """Return whether ``leaf`` is a numpy array."""
    return type(leaf).__module__ == "numpy" and hasattr(leaf, "__array_interface__")


def _leaves(value: Any, depth: int = _DEPTH) -> Iterator[Any]:
    """Yield the values in nested containers, without keys of dicts."""
    if not isinstance(value, _CONTAINERS) or depth == 0:
        yield value
        return
    for item in list(value.values() if isinstance(value, dict) else value):
        yield from _leaves(item, depth - 1)


def _has_tensors(thing: object, trained: Collection[int]) -> bool:
    """Return whether an object has state: untrained tensors, an optimizer or a generator."""
    if isinstance(thing, torch.Generator):
        return True
    if isinstance(thing, nn.Module):
        return any(id(t) not in trained for t in (*thing.parameters(), *thing.buffers()))
    if isinstance(thing, type) or callable(thing):
        return False
    return any(
        isinstance(leaf, Optimizer) or (isinstance(leaf, Tensor) and id(leaf) not in trained)
        for value in getattr(thing, "__dict__", {}).values()
        for leaf in _leaves(value)
    )
