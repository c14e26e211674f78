"""What is known of the tensors in a forward: where they come from, and where they go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import nn


@dataclass(frozen=True)
class Value:
    """Where a tensor comes from.

    Attributes:
        kind: ``"output"`` of the layer at ``name``, or the ``"argument"`` of that name.
        name: A path inside of the module, or the name of an argument.
        dropout: Probability of a dropout since.
    """

    kind: str
    name: str
    dropout: float = 0.0


@dataclass
class Flow:
    """What is seen in one forward.

    Attributes:
        inputs: By the path of a layer, and the position or keyword of its argument, what it was
            given at each call; by that of its weight, what that was multiplied with.
        returned: The first thing that is returned, at each return.
        arguments: The names of the arguments, in their order.
    """

    inputs: dict[str, list[dict[int | str, Value | None]]] = field(default_factory=dict)
    returned: list[Value | None] = field(default_factory=list)
    arguments: tuple[str, ...] = ()

    def given(self, path: str, position: int, keyword: str) -> Value | None:
        """Return what a layer is given as an argument; ``None`` if that is not certain."""
        calls = self.inputs.get(path, [])
        if position == 0:
            calls = calls + self.inputs.get(f"{path}.weight", [])
        return agreed(call.get(position, call.get(keyword)) for call in calls)


def agreed(values: Iterable[Value | None]) -> Value | None:
    """Return what all are; ``None`` if there is none, one is unknown or they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def through(layer: nn.Module | None, path: str, given: Value | None) -> Value | None:
    """Return what comes out of a layer."""
    if isinstance(layer, nn.Identity):
        return given
    if isinstance(layer, nn.Dropout):
        if given is None or layer.p >= 1:
            return None
        return replace(given, dropout=1 - (1 - given.dropout) * (1 - layer.p))
    return Value("output", path)
