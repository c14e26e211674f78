"""What the user moves beside the optimizer, and wants moved back with it."""

from __future__ import annotations

import logging
import random
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

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

REPLAYS = frozenset({"dataloader", "generators"})
"""Names of what decides on the data and the noise: they go back only for a replay."""


class Tracked:
    """Objects by name, whatever gives its state and takes it back.

    Modules are copied tensor by tensor, buffers that are not persistent included; anything
    else through ``state_dict`` and ``load_state_dict``, or through the pair of methods that
    generators have.

    Attributes:
        declined: Names that were given as ``None``: nobody is asked whether they were forgotten.
    """

    def __init__(self) -> None:
        self._items: dict[str, tuple[Callable[[], Any], ...]] = {}
        self.declined: set[str] = set()

    def add(self, items: Mapping[str, Any]) -> None:
        """Track ``items``; ``None`` ends the tracking of a name.

        Raises:
            ConfigError: One of them has no state; nothing of the call is then tracked.
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
        """Whether a learning rate schedule goes back, too."""
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
        """Track nothing in a copy: what is tracked here belongs to the original."""
        return {"_items": {}, "declined": set()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of tracked modules (an EMA), and what they are called."""
        for name, item in self._each():
            if isinstance(item, nn.Module):
                for path, tensor in _module_tensors(item).items():
                    yield f"{name}.{path}", tensor

    def take(self, old: TrackedCopy | None, memory: Memory) -> TrackedCopy:
        """Copy the state of everything tracked, into the memory of ``old`` where it fits."""
        saver = TreeSaver(memory)
        before = old.states if old is not None else {}
        states = {}
        for name, items in self._alive():
            try:
                now = [None if item is None else _accessors(item)[0]() for item in items]
            except Exception as error:
                raise TrackedError(f"{name} does not give its state: {error!r}") from error
            states[name] = saver.copy(now, before.get(name))
        saver.finish()
        return TrackedCopy(states)

    def restore(self, copy: TrackedCopy, *, replay: bool) -> tuple[str, ...]:
        """Put everything back that is in ``copy`` and still tracked.

        Args:
            copy: What :meth:`take` returned.
            replay: Whether data and noise go back as well.

        Returns:
            The names of what raised instead: the others have gone back all the same.
        """
        left_behind = []
        for name, items in self._alive():
            if name in copy.states and (replay or not _is_replayed(name, items)):
                for item, state in zip(items, copy.states[name], strict=False):
                    if item is None:
                        continue
                    try:
                        _accessors(item)[1](state)
                    except Exception:
                        logger.exception("%s=%s did not go back", name, type(item).__name__)
                        left_behind.append(name)
        return tuple(left_behind)

    def _alive(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        for name, held in self._items.items():
            yield name, tuple(ref() for ref in held)  # None for what nobody else holds any more

    def _each(self) -> Iterator[tuple[str, Any]]:
        for name, items in self._alive():
            for item in items:
                if item is not None:
                    yield name, item


class TrackedError(StableOptError):
    """A tracked object raised when it was asked for its state."""


class TrackedCopy:
    """The states of tracked objects at one moment, by name."""

    def __init__(self, states: dict[str, list[Any]]) -> None:
        self.states = states


class _Stateful(Protocol):
    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


def _is_replayed(name: str, items: tuple[Any, ...]) -> bool:
    return name in REPLAYS or any(_is_generator(item) for item in items)


def _is_generator(item: Any) -> bool:
    return isinstance(item, (torch.Generator, random.Random)) or hasattr(item, "bit_generator")


def _members(name: str, item: Any) -> tuple[Any, ...]:
    if item is None:
        return ()
    members = tuple(item) if isinstance(item, (list, tuple)) else (item,)
    for member in members:
        if isinstance(member, Optimizer):
            raise ConfigError(
                f"{name}={type(member).__name__} object is an optimizer: the one that is "
                "wrapped goes back anyway; wrap another one on its own"
            )
        if _accessors(member) is None:
            raise ConfigError(
                f"{name}={type(member).__name__} object has no state to track: give an object "
                "with state_dict() and load_state_dict(), a generator, or a list of these"
            )
    return members


def _held(item: Any) -> Callable[[], Any]:
    """Return how to get at an item; one that holds an optimizer, as a scheduler, is not kept alive.

    Its optimizer would be freed by the collector alone; and one that nobody else holds is never
    used again.
    """
    held = getattr(item, "__dict__", {}).values()
    if any(isinstance(value, Optimizer) for value in held):
        return weakref.ref(item)
    return lambda: item


def _accessors(item: Any) -> Any:
    """Return how to read the state of ``item``, and how to put a copy of it back."""
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


def _loader(item: _Stateful) -> Callable[[Any], None]:
    def load(saved: Any) -> None:
        # A loader may keep what it is given: the copy must stay ours.
        restorer = TreeRestorer(Memory.SAME)
        state = restorer.put(None, saved)  # nothing is reused
        restorer.finish()
        before = _lists(item)
        item.load_state_dict(state)
        _lengthen(before)

    return load


def _lists(item: Any) -> list[tuple[Any, str, list[Any]]]:
    """Return the lists of a scheduler, and of those in it: they have an entry for each group."""
    every = (item, *getattr(item, "_schedulers", ())) if isinstance(item, LRScheduler) else ()
    return [(e, key, list(v)) for e in every for key, v in vars(e).items() if type(v) is list]


def _lengthen(before: list[tuple[Any, str, list[Any]]]) -> None:
    """Give lists that have become shorter the entries that they had for groups that came later."""
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
    for name in known.keys() - resized:  # a buffer that has grown is a cache, and stays
        target, source = known[name], saved[name]
        if is_plain(target):
            target, source = without_overlap(target, source)
        target.copy_(source)


def forgive_overflow(scaler: GradScaler) -> None:
    """Let ``scaler.update()`` not hold against its scale what a rollback has undone.

    The scale goes back with the weights. The overflow that the damaged weights have caused
    since is still noted in the scaler, and its next ``update()`` would halve the scale that
    was just restored.
    """
    for state in scaler._per_optimizer_states.values():
        for found in state["found_inf_per_device"].values():
            found.zero_()
