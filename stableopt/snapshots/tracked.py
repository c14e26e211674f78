"""Objects of the user that are restored together with the optimizer."""

from __future__ import annotations

import logging
import random
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stableopt.errors import ConfigError, StableOptError
from stableopt.runtime.storage import has_data, is_plain, without_overlap
from stableopt.runtime.tree import tree_bytes
from stableopt.snapshots.tree_copy import Memory, TreeRestorer, TreeSaver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

logger = logging.getLogger("stableopt")

TrackedStates = dict[str, list[Any]]
"""The states of tracked objects at one step, by name."""

REPLAYS = frozenset({"dataloader", "generators"})
"""Names of what decides on data and noise: restored only if the same steps are repeated."""


class Tracked:
    """Objects by name, of any type that can return and load its state.

    Modules are copied tensor by tensor, buffers that are not persistent included; anything
    else through ``state_dict`` and ``load_state_dict``, or through the pair of methods that
    generators have.

    Attributes:
        declined: Names that were given as ``None``, so that no hint suggests tracking them.
    """

    def __init__(self) -> None:
        self._items: dict[str, tuple[Callable[[], Any], ...]] = {}
        self.declined: set[str] = set()

    def add(self, items: Mapping[str, Any]) -> None:
        """Track ``items``; ``None`` ends the tracking of a name.

        Raises:
            ConfigError: One of them has no state; then none of them is tracked.
        """
        given = {name: tuple(map(_held, _members(name, item))) for name, item in items.items()}
        self._items.update(given)
        self.declined |= {name for name, members in given.items() if not members}
        for name in [name for name, members in self._items.items() if not members]:
            del self._items[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The names that are tracked."""
        return tuple(self._items)

    @property
    def has_scheduler(self) -> bool:
        """Whether a learning rate scheduler is tracked."""
        return "scheduler" in self._items or any(
            isinstance(item, LRScheduler) for _, item in self._each()
        )

    @property
    def scalers(self) -> list[GradScaler]:
        """The gradient scalers among them."""
        return [item for _, item in self._each() if isinstance(item, GradScaler)]

    @property
    def nbytes(self) -> int:
        """The bytes of the tensors in their states."""
        return tree_bytes([_accessors(item)[0]() for _, item in self._each()])

    def __getstate__(self) -> dict[str, Any]:
        """Track nothing in a copy: tracked objects belong to the original."""
        return {"_items": {}, "declined": set()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of tracked modules (an EMA), and their names."""
        for name, item in self._each():
            if isinstance(item, nn.Module):
                for path, tensor in _module_tensors(item).items():
                    yield f"{name}.{path}", tensor

    def take(self, old: TrackedStates, memory: Memory) -> TrackedStates:
        """Copy the state of everything tracked, into the memory of ``old`` where it fits."""
        saver, states = TreeSaver(memory), {}
        for name, items in self._alive():
            try:
                now = [None if item is None else _accessors(item)[0]() for item in items]
            except Exception as error:
                raise TrackedError(f"the state of {name} could not be read: {error!r}") from error
            states[name] = saver.copy(now, old.get(name))
        saver.finish()
        return states

    def restore(self, states: TrackedStates, *, replay: bool) -> tuple[str, ...]:
        """Restore everything that is in ``states`` and still tracked.

        Args:
            states: What :meth:`take` returned.
            replay: Whether data and noise are restored as well.

        Returns:
            The names of objects that raised; all others are restored.
        """
        left_behind = []
        for name, items in self._alive():
            if name in states and (replay or not _is_replayed(name, items)):
                for item, state in zip(items, states[name], strict=False):
                    if item is None:
                        continue
                    try:
                        _accessors(item)[1](state)
                    except Exception:
                        logger.exception(
                            "tracked %s=%s could not be restored and stays as it is",
                            name,
                            type(item).__name__,
                        )
                        left_behind.append(name)
        return tuple(left_behind)

    def _alive(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        for name, held in self._items.items():
            yield name, tuple(ref() for ref in held)  # None for objects that are gone

    def _each(self) -> Iterator[tuple[str, Any]]:
        for name, items in self._alive():
            for item in items:
                if item is not None:
                    yield name, item


class TrackedError(StableOptError):
    """A tracked object raised when its state was read."""


def _is_replayed(name: str, items: tuple[Any, ...]) -> bool:
    generators = (torch.Generator, random.Random)
    return name in REPLAYS or any(
        isinstance(item, generators) or hasattr(item, "bit_generator") for item in items
    )


def _members(name: str, item: Any) -> tuple[Any, ...]:
    if item is None:
        return ()
    members = tuple(item) if isinstance(item, (list, tuple)) else (item,)
    for member in members:
        if isinstance(member, Optimizer):
            raise ConfigError(
                f"{name}={type(member).__name__} object is an optimizer: the wrapped one is "
                "restored anyway; wrap another one in a StableOptimizer of its own"
            )
        if _accessors(member) is None:
            raise ConfigError(
                f"{name}={type(member).__name__} object has no state to track: give an object "
                "with state_dict() and load_state_dict(), a generator, or a list of these"
            )
    return members


def _held(item: Any) -> Callable[[], Any]:
    """Return a reference to an item, a weak one if the item holds an optimizer, as a scheduler.

    A strong one would be a cycle, so that only the garbage collector would free the optimizer.
    """
    held = getattr(item, "__dict__", {}).values()
    if any(isinstance(value, Optimizer) for value in held):
        return weakref.ref(item)
    return lambda: item


def _accessors(item: Any) -> Any:
    """Return functions that read and load the state of ``item``; ``None`` if it has none."""
    if isinstance(item, nn.Module):
        return lambda: _module_tensors(item), lambda saved: _restore_module(item, saved)
    if isinstance(item, torch.Generator):
        return item.get_state, lambda saved: item.set_state(saved.clone())
    if isinstance(item, random.Random):
        return item.getstate, item.setstate
    numpy_generator = getattr(item, "bit_generator", None)
    if numpy_generator is not None:
        return lambda: numpy_generator.state, lambda s: setattr(numpy_generator, "state", s)
    if callable(getattr(item, "state_dict", None)) and callable(
        getattr(item, "load_state_dict", None)
    ):
        return item.state_dict, _loader(item)
    return None


def _loader(item: Any) -> Callable[[Any], None]:
    def load(saved: Any) -> None:
        # The item may keep what it is given, so it is given a copy of the copy.
        restorer = TreeRestorer(Memory.SAME)
        state = restorer.put(None, saved)  # nothing is reused
        restorer.finish()
        before = _lists(item)
        item.load_state_dict(state)
        _lengthen(before)

    return load


def _lists(item: Any) -> list[tuple[Any, str, list[Any]]]:
    """Return the lists of a scheduler, and of those in it, with an entry for each group."""
    every = (item, *getattr(item, "_schedulers", ())) if isinstance(item, LRScheduler) else ()
    return [(e, key, list(v)) for e in every for key, v in vars(e).items() if type(v) is list]


def _lengthen(before: list[tuple[Any, str, list[Any]]]) -> None:
    """Add the entries of groups that were added after the snapshot to lists that lack them."""
    for owner, key, known in before:
        now = getattr(owner, key)
        if type(now) is list and 0 < len(now) < len(known):
            now.extend(known[len(now) :])


def _module_tensors(module: nn.Module) -> dict[str, Any]:
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor.detach() for name, tensor in named if has_data(tensor)}


@torch.no_grad()
def _restore_module(module: nn.Module, saved: Mapping[str, Any]) -> None:
    now = _module_tensors(module)
    known = {name: tensor for name, tensor in now.items() if name in saved}
    resized = [name for name, tensor in known.items() if tensor.shape != saved[name].shape]
    if weights := [name for name in resized if name in dict(module.named_parameters())]:
        raise ValueError(f"{', '.join(weights)} have another shape than in the snapshot")
    for name in known.keys() - resized:  # a buffer that has grown is a cache: not restored
        target, source = known[name], saved[name]
        if is_plain(target):
            target, source = without_overlap(target, source)
        target.copy_(source)


def forgive_overflow(scaler: GradScaler) -> None:
    """Reset the overflow flags of a scaler after a rollback.

    The scale was restored with the weights. The scaler still has the overflow that the damaged
    weights caused, and its next ``update()`` would halve the restored scale.
    """
    for state in scaler._per_optimizer_states.values():
        for found in state["found_inf_per_device"].values():
            found.zero_()
