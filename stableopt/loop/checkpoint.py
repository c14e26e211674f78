"""What is remembered beside weights and optimizer state: for checkpoints and for snapshots."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from stableopt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


logger = logging.getLogger("stableopt")


class Part(Protocol):
    """Something that remembers."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what is remembered, as plain data and tensors."""

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what assigns ``state``; an empty one starts again.

        Nothing has changed before that is called.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: :meth:`state_dict` has not made it.
        """


class Register:
    """The parts by name: all of them are in checkpoints, and some are restored with the weights.

    What counts how often the run was rescued is in checkpoints alone: a rollback must not undo it.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}
        self._restored: list[str] = []

    def add(self, name: str, part: Part, *, restored: bool) -> None:
        """Add a part.

        Args:
            name: Its key in checkpoints.
            part: What remembers.
            restored: Whether a rollback restores it together with the weights.
        """
        self._parts[name] = part
        if restored:
            self._restored.append(name)

    def remembered(self) -> dict[str, Any]:
        """Return what a snapshot holds of the parts that a rollback restores."""
        return {name: self._parts[name].state_dict() for name in self._restored}

    def restore(self, remembered: Mapping[str, Any]) -> None:
        """Restore what :meth:`remembered` returned."""
        for assign in [self._parts[name].prepare(remembered[name]) for name in self._restored]:
            assign()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what assigns the state of a checkpoint; what it lacks starts again.

        Raises:
            ConfigError: No :meth:`state_dict` has written it; nothing has changed.
        """
        if not isinstance(state, Mapping):
            raise _broken("", state)
        if state and "clocks" not in state:
            logger.warning(
                "the checkpoint was written by another version of stableopt: weights and optimizer "
                "state are loaded; counts, baselines and readings start again"
            )
            state = {}
        acts = []
        for name, part in self._parts.items():
            known = state.get(name, {})
            try:
                acts.append(part.prepare(known))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise _broken(f"[{name!r}]", known) from error

        def assign() -> None:
            for act in acts:
                act()

        return assign


def _broken(where: str, state: object) -> ConfigError:
    shown = repr(state)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}…"
    return ConfigError(
        f"state_dict['stableopt']{where}={shown} is not what state_dict() writes: delete the key "
        "'stableopt' to load weights and optimizer state alone"
    )
