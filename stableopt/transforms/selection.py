"""Which parameters: by name, by the type of their layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from stableopt.errors import ConfigError
from stableopt.runtime.names import without_wrappers
from stableopt.runtime.words import listed
from stableopt.transforms.protocol import Target


class NothingSelectedError(ConfigError):
    """A transform has found no parameter to act on."""


@dataclass(frozen=True)
class Selection:
    """Which parameters a transform acts on.

    Attributes:
        names: Patterns of their names (``*``, ``?``); ``None`` for all.
        layers: Names of layer classes, or of classes they derive from; ``None`` for all.
    """

    names: tuple[str, ...] | None = None
    layers: tuple[str, ...] | None = None

    def among(self, targets: Sequence[Target], model: nn.Module | None) -> list[Target]:
        """Return those of ``targets`` that are selected.

        Raises:
            NothingSelectedError: A pattern or a layer type has no parameter.
            ConfigError: Layer types are asked for, but there is no model to look them up in.
        """
        found = list(targets)
        if self.names is not None:
            for pattern in self.names:
                if not any(_matches(target.name, pattern) for target in targets):
                    raise NothingSelectedError(_unmatched("params", pattern, targets))
            patterns = self.names
            found = [t for t in found if any(_matches(t.name, p) for p in patterns)]
        if self.layers is not None:
            kinds = _layer_types(model)
            for layer in self.layers:
                if not any(layer in kinds.get(target.name, ()) for target in found):
                    raise NothingSelectedError(_unmatched("layers", layer, targets))
            wanted = set(self.layers)
            found = [t for t in found if wanted & kinds.get(t.name, frozenset())]
        return found

    def __repr__(self) -> str:
        if self.layers is None:
            return repr(None if self.names is None else list(self.names))
        names = "" if self.names is None else f", params={list(self.names)!r}"
        return f"layers({', '.join(map(repr, self.layers))}{names})"


Select = Selection | str | Iterable[str] | None
"""What is taken for a selection."""


def layers(*types: type[nn.Module] | str, params: str | Iterable[str] | None = None) -> Selection:
    """Select the parameters of layers of some types, by class or by its name.

    Needs ``model=``. Classes that derive from one of them are found as well.

    Args:
        *types: ``torch.nn.Linear``, or ``"Linear"``.
        params: Patterns of parameter names, to narrow it down.

    Raises:
        ConfigError: None are given, or something else.

    Example:
        >>> layers(nn.Linear, nn.Conv2d, params="*.weight")
        layers('Linear', 'Conv2d', params=['*.weight'])
    """
    if not types:
        raise ConfigError("layers() selects nothing: name at least one, e.g. layers(nn.Linear)")
    names = []
    for kind in types:
        is_layer = isinstance(kind, type) and issubclass(kind, nn.Module)
        if not is_layer and not (isinstance(kind, str) and kind):
            raise ConfigError(
                f"layers has {kind!r}, which is no nn.Module class and no name of one"
            )
        names.append(kind if isinstance(kind, str) else kind.__name__)
    return Selection(selection("params", params).names, tuple(names))


def selection(option: str, given: object) -> Selection:
    """Return what was given as ``params=`` as a selection.

    Args:
        option: Its name, for the message.
        given: ``None`` for all, a pattern, several, a selection, or a dict of one.

    Raises:
        ConfigError: It is none of these.
    """
    if isinstance(given, Selection):
        return given
    if given is None:
        return Selection()
    if isinstance(given, Mapping) and set(given) <= {"layers", "params"} and "layers" in given:
        kinds = given["layers"]
        several = isinstance(kinds, (list, tuple, set, frozenset))
        return layers(*(_listed(kinds) if several else [kinds]), params=given.get("params"))
    found = () if isinstance(given, Mapping) else _listed(given)
    if not found or not all(isinstance(pattern, str) and pattern for pattern in found):
        raise ConfigError(
            f"{option}={given!r} must be name patterns, e.g. ['*.weight'], layers(nn.Linear), or "
            "None for all"
        )
    return Selection(found)


def _listed(given: object) -> tuple[Any, ...]:
    """Return one or several as a tuple, the same one in every process."""
    if isinstance(given, str):
        return (given,)
    if isinstance(given, (set, frozenset)):
        return tuple(sorted(given, key=str))
    return tuple(given) if isinstance(given, Iterable) else ()


def _matches(name: str, pattern: str) -> bool:
    """Return whether a pattern matches a name, or is that name (which may have brackets in it)."""
    return name == pattern or fnmatchcase(name, pattern)


def _layer_types(model: nn.Module | None) -> dict[str, frozenset[str]]:
    """Return by the name of each parameter the classes of its layer."""
    if model is None:
        raise ConfigError("layers() needs model=: it says which layer a parameter belongs to")
    kinds = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        classes = frozenset(kind.__name__ for kind in type(module).__mro__)
        for name, _ in module.named_parameters(recurse=False):
            kinds[without_wrappers(f"{prefix}.{name}" if prefix else name)] = classes
    return kinds


def _unmatched(option: str, given: str, targets: Sequence[Target]) -> str:
    names = listed([target.name for target in targets], 8)
    return f"{option}={given!r} matches no parameter: the names are {names}"
