"""Walk nested values with tensors in them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stableopt.runtime.storage import is_plain

if TYPE_CHECKING:
    from collections.abc import Iterator


def tree_tensors(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Yield the strided tensors of a nested value (of subclasses, the inner ones), each once."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    if isinstance(value, Tensor):
        seen.add(id(value))
        inner = getattr(value, "__tensor_flatten__", None)
        if inner is not None:
            for name in inner()[0]:
                yield from tree_tensors(getattr(value, name), seen)
        elif value.is_sparse:
            yield value._values()
        elif is_plain(value):
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tree_tensors(item, seen)
    elif isinstance(value, (list, tuple, deque, set, frozenset)):
        for item in value:
            yield from tree_tensors(item, seen)


def tree_bytes(value: Any) -> int:
    """Return the bytes of all tensors in a nested value, shared ones counted once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tree_tensors(value))
