"""A model as its modules and parameters by the names the user knows."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from stableopt.runtime.names import without_wrappers


class Tree:
    """The modules of a model by name, wrappers left out, and the names of its parameters.

    Args:
        model: Compiled, in DistributedDataParallel, or neither.
    """

    def __init__(self, model: nn.Module) -> None:
        # What is inside of a wrapper has the name of the wrapper, and comes after it.
        self._modules = {
            without_wrappers(f"{name}.").rstrip("."): module
            for name, module in model.named_modules()
        }
        self._parameters = {id(p): without_wrappers(n) for n, p in model.named_parameters()}

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        """Return names and modules, the outer ones first."""
        return iter(self._modules.items())

    def get(self, name: str) -> nn.Module | None:
        """Return the module of that name, or ``None``."""
        return self._modules.get(name)

    def parameter(self, tensor: object) -> str | None:
        """Return the name of a parameter; ``None`` for what is none."""
        return self._parameters.get(id(tensor))

    def parent(self, name: str) -> tuple[str, str] | None:
        """Return the nearest module around one, and the path from there; ``None`` at the root."""
        if not name:
            return None
        parts = name.split(".")
        for end in range(len(parts) - 1, -1, -1):
            outer = ".".join(parts[:end])
            if outer in self._modules:
                return outer, ".".join(parts[end:])
        return None


def join(outer: str, path: str) -> str:
    """Return the name of what is at ``path`` inside of ``outer``."""
    return f"{outer}.{path}" if outer else path
