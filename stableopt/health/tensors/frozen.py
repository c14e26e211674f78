"""Frozen weights that change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stableopt.runtime.bit_sum import bit_sum
from stableopt.runtime.names import without_wrappers
from stableopt.runtime.portions import in_portions
from stableopt.runtime.shards import local
from stableopt.runtime.storage import has_data
from stableopt.runtime.words import listed
from stableopt.types import Finding, Scope

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer


@dataclass(slots=True)
class _Known:
    total: Tensor
    steady: bool = False


class FrozenWatch:
    """Compares a checksum of every frozen weight with its last one, once per ``period``.

    Frozen weights require no gradient, in the model or in the optimizer: the base of a LoRA, a
    frozen encoder. One that changes between its first two checks is taken to change on purpose (the
    teacher of a distillation that follows its student) and is not checked again. Neither is one
    after its change was reported, because some change now and then (target networks).

    Snapshots hold only weights of the optimizer: other frozen weights cannot be restored.

    Args:
        optimizer: The inner optimizer.
        model: Searched for frozen weights, too.
        period: Calls in which all of them are checked once.

    Cost:
        One read of the frozen weights per ``period`` steps, in equal parts.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module | None, period: int) -> None:
        self._optimizer = optimizer
        self._model = model
        self._period = period
        self._parts: list[list[tuple[str, Tensor]]] = []
        self._known: dict[str, _Known] = {}
        self._moving: set[str] = set()
        self._asked: list[tuple[str, Tensor]] = []

    def start(self) -> list[Tensor]:
        """Check one part; return whether each of its weights differs, on its device."""
        if not self._parts:
            self._parts = self._plan()
        self._asked = []
        for name, tensor in self._parts.pop():
            if not has_data(tensor):
                continue
            if tensor.requires_grad:
                self._known.pop(name, None)  # it is trained now
                continue
            total = bit_sum(local(tensor))
            if name in self._known and self._known[name].total.device == total.device:
                self._asked.append((name, total))
            else:
                self._known[name] = _Known(total)
        return [total != self._known[name].total for name, total in self._asked]

    def findings(self, differ: Sequence[float]) -> tuple[Finding, ...]:
        """Return what has changed, given the numbers of :meth:`start`."""
        changed = []
        for (name, _), differs in zip(self._asked, differ, strict=True):
            known = self._known[name]
            if not differs:
                known.steady = True
                continue
            self._moving.add(name)
            if known.steady:
                changed.append(name)
        self._asked = []
        if not changed:
            return ()
        message = f"the frozen weights of {listed(changed)} have changed"
        where = tuple(changed)
        return (Finding(kind="changed_frozen", message=message, scope=Scope.NOTICE, where=where),)

    def beside(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the frozen weights that the optimizer does not hold, and their names."""
        if self._model is None:
            return
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        for name, parameter in self._model.named_parameters():
            if not parameter.requires_grad and id(parameter) not in held and has_data(parameter):
                yield without_wrappers(name), parameter

    def forget(self) -> None:
        """Start from scratch with the next check: weights were loaded on purpose."""
        self._parts, self._asked = [], []
        self._known.clear()
        self._moving.clear()

    def __getstate__(self) -> dict[str, object]:
        """Let copies start from scratch."""
        return {**self.__dict__, "_parts": [], "_asked": [], "_known": {}, "_moving": set()}

    def _plan(self) -> list[list[tuple[str, Tensor]]]:
        """Split the frozen weights into ``period`` parts of about equal size."""
        frozen = dict(self._beside_and_held())
        for name in self._known.keys() - frozen.keys():
            del self._known[name]
        watched = [(name, t) for name, t in frozen.items() if name not in self._moving]
        return in_portions(watched, self._period)

    def _beside_and_held(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name of every frozen weight that can be read, and the weight."""
        known = {}
        if self._model is not None:
            known = {id(p): without_wrappers(n) for n, p in self._model.named_parameters()}
            yield from ((n, t) for n, t in self.beside() if _is_plain(t))
        for g, group in enumerate(self._optimizer.param_groups):
            for i, parameter in enumerate(group["params"]):
                if not parameter.requires_grad and _is_plain(parameter):
                    yield known.get(id(parameter), f"{g}.{i}"), parameter


def _is_plain(tensor: Tensor) -> bool:
    tensor = local(tensor)
    return (
        has_data(tensor)
        and tensor.layout is torch.strided
        and not hasattr(tensor, "__tensor_flatten__")
    )
