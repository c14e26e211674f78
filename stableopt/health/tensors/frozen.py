"""Weights that nobody trains: do they stay what they are?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stableopt.runtime.bit_sum import bit_sum
from stableopt.runtime.names import without_wrappers
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
    """Compares the sum of the bits of every frozen weight with what it was, once per ``period``.

    Frozen is what does not require a gradient, in the model or in the optimizer: the base of a
    LoRA, a frozen encoder. What changes between the first two looks at it is meant to change (the
    teacher of a distillation that follows its student) and is left alone. A change is told once:
    what was told is left alone from then on, because some change it now and then (target networks).

    Snapshots hold only what the optimizer holds: nothing here can bring a frozen weight back.

    Args:
        optimizer: The inner optimizer.
        model: Where frozen weights are looked for beside it.
        period: Calls in which all of them are looked at once.

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
        """Look at one part; return whether each of its weights differs, to be read."""
        if not self._parts:
            self._parts = self._plan()
        self._asked = []
        for name, tensor in self._parts.pop():
            if not has_data(tensor):
                continue
            if tensor.requires_grad:
                self._known.pop(name, None)  # it is trained now
                continue
            total = bit_sum(tensor)
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
            elif known.steady:
                changed.append(name)
                self._moving.add(name)
            else:
                self._moving.add(name)
        self._asked = []
        if not changed:
            return ()
        message = f"the frozen weights of {listed(changed)} have changed, which nobody trains"
        return (
            Finding(
                kind="changed_frozen", message=message, scope=Scope.NOTICE, where=tuple(changed)
            ),
        )

    def beside(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the frozen weights that the optimizer does not hold, and their names."""
        if self._model is None:
            return
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        for name, parameter in self._model.named_parameters():
            if not parameter.requires_grad and id(parameter) not in held and has_data(parameter):
                yield without_wrappers(name), parameter

    def forget(self) -> None:
        """Take what is there at the next look for meant to be so."""
        self._parts, self._asked = [], []
        self._known.clear()
        self._moving.clear()

    def __getstate__(self) -> dict[str, object]:
        """Let copies begin anew."""
        return {**self.__dict__, "_parts": [], "_asked": [], "_known": {}, "_moving": set()}

    def _plan(self) -> list[list[tuple[str, Tensor]]]:
        """Cut the frozen weights into as many parts of about equal size as there are calls."""
        frozen = dict(self._beside_and_held())
        for name in self._known.keys() - frozen.keys():
            del self._known[name]
        watched = {name: t for name, t in frozen.items() if name not in self._moving}
        quota = max(1, sum(tensor.numel() for tensor in watched.values()) / self._period)
        parts: list[list[tuple[str, Tensor]]] = [[] for _ in range(self._period)]
        spent = 0
        for name, tensor in watched.items():
            parts[min(int(spent / quota), self._period - 1)].append((name, tensor))
            spent += tensor.numel()
        return parts

    def _beside_and_held(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all that is frozen, strided, and not without a shape yet."""
        known = {}
        if self._model is not None:
            known = {id(p): without_wrappers(n) for n, p in self._model.named_parameters()}
            yield from ((n, t) for n, t in self.beside() if _is_plain(t))
        for g, group in enumerate(self._optimizer.param_groups):
            for i, parameter in enumerate(group["params"]):
                if not parameter.requires_grad and _is_plain(parameter):
                    yield known.get(id(parameter), f"{g}.{i}"), parameter


def _is_plain(tensor: Tensor) -> bool:
    return (
        has_data(tensor)
        and tensor.layout is torch.strided
        and not hasattr(tensor, "__tensor_flatten__")
    )
