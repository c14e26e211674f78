"""Which parameters have a spectrum."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stableopt.errors import ConfigError
from stableopt.runtime.names import parameter_names
from stableopt.runtime.shards import is_sharded
from stableopt.runtime.storage import has_data
from stableopt.runtime.words import listed

_OUTPUT = re.compile(
    r"head|head_dist|(?!.*(multi|attn|attention))\w{2,}_head|(\w+_)?classifier|score|logits(_\w+)?|"
    r"embed_out|output_projection"
)
"""What a part of the name of an output layer is, e.g. of ``lm_head.weight``.

Not ``heads`` and ``multi_head``, nor ``q_head`` of one letter: those belong to attention.
"""

_POSITION = re.compile(
    r"wpe|(\w+_)?positions?(_bias\w*)?|"
    r"(\w+_)?pos(itions?|itional)?_?(emb(ed(ding)?s?)?|enc(oding)?s?)(_table|_window)?"
)
"""What a part of the name of learned positions is, e.g. of ``wpe.weight``."""


class Targets:
    """The weights that can be measured, by name.

    Everything of two dimensions or more that is dense, of a floating dtype and has its values
    here. A parameter that is tied counts once.

    Args:
        optimizer: Whose parameters they are.
        model: Gives names.
        params: Patterns of the names; ``None`` for all.
        heads: Patterns of the names of output layers; ``None`` for those that look like one.

    Attributes:
        heads: The names of output layers and of learned positions, as of the last :meth:`weights`.
        sharded: Whether weights that are sharded count, too: somebody gathers them.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None,
        params: Sequence[str] | None,
        heads: Sequence[str] | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._model = model
        self._params = params
        self._heads = heads
        self.sharded = False
        self._key: tuple[object, ...] = ()
        self._names: dict[str, tuple[int, int]] = {}
        self.heads: frozenset[str] = frozenset()

    def check(self, *, sharded: bool = False) -> None:
        """Refuse patterns that match no parameter.

        Args:
            sharded: Whether weights that are sharded count from now on.

        Raises:
            ConfigError: One does not.
        """
        self.sharded = sharded
        names = list(parameter_names(self._optimizer, self._model).values())
        for pattern in self._params or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                known = listed(names, 8)
                raise ConfigError(f"params={pattern!r} matches no parameter: the names are {known}")

    def weights(self) -> dict[str, Tensor]:
        """Return every weight, detached, as it is now."""
        groups = self._optimizer.param_groups
        key = tuple(id(p) for group in groups for p in (*group["params"], group.get("param_names")))
        if key != self._key:
            self._key = key
            self._names = {
                name: place
                for place, name in parameter_names(self._optimizer, self._model).items()
                if self._params is None or any(fnmatchcase(name, p) for p in self._params)
            }
            self.heads = self._find_heads()
        found = {name: groups[g]["params"][i] for name, (g, i) in self._names.items()}
        return {
            name: p.detach()
            for name, p in found.items()
            if _has_spectrum(p) and (self.sharded or not is_sharded(p))
        }

    @property
    def places(self) -> dict[str, str]:
        """The place of every weight of the last :meth:`weights`, ``"group.index"``, by name."""
        return {name: f"{g}.{i}" for name, (g, i) in self._names.items()}

    def _find_heads(self) -> frozenset[str]:
        """Return the names of output layers, and of tables of positions."""
        outputs = [] if self._model is None else _outputs(self._model)
        groups = self._optimizer.param_groups

        def exempt(name: str, group: int, index: int) -> bool:
            if self._heads is not None:
                named = any(fnmatchcase(name, pattern) for pattern in self._heads)
                return _has_part(name, _POSITION) or named
            weight = groups[group]["params"][index]
            return bool(without_limits(name)) or any(weight is output for output in outputs)

        return frozenset(name for name, place in self._names.items() if exempt(name, *place))


def _outputs(model: nn.Module) -> list[Tensor]:
    """Return the weights that a model's outputs are made with, as far as it shows.

    The last linear layer; and the table of the vocabulary, where no layer has as many outputs:
    it is then tied to the output by hand.
    """
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    found: list[Tensor] = [linear[-1].weight] if linear else []
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    vocabulary = max(tables, key=lambda m: m.num_embeddings, default=None)
    if vocabulary is not None and vocabulary.num_embeddings not in {m.out_features for m in linear}:
        found.append(vocabulary.weight)
    return found


def without_limits(name: str) -> str | None:
    """Return what a parameter is, by its name, if its rows are alike in healthy runs, too."""
    if _has_part(name, _OUTPUT):
        return "an output layer"
    return "learned positions" if _has_part(name, _POSITION) else None


def _has_part(name: str, pattern: re.Pattern[str]) -> bool:
    """Return whether a whole part of a dotted name matches."""
    return any(pattern.fullmatch(part) for part in name.lower().split("."))


def _has_spectrum(parameter: Tensor) -> bool:
    if not has_data(parameter) or parameter.dim() < 2 or parameter.layout is not torch.strided:
        return False
    if type(parameter.data) is not torch.Tensor and not is_sharded(parameter):
        return False  # a subclass decides for itself what an operation means
    return parameter.numel() > 0 and (parameter.is_floating_point() or parameter.is_complex())
