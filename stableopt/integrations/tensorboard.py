"""Telemetry as TensorBoard event files."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError, MissingExtraError
from stableopt.integrations.tracker import Tracker
from stableopt.telemetry.encode import encode
from stableopt.telemetry.metrics import PREFIX

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise MissingExtraError("TensorBoardWriter", "tensorboard") from error

if TYPE_CHECKING:
    from stableopt.types import Event

_SUFFIX = ".stableopt"


class TensorBoardWriter(Tracker):
    """Write scalars and texts that TensorBoard shows, live.

    The x-axis is the call of ``step()``, the global step of a trainer: it never decreases. Texts:
    ``stable/ledger``, every intervention as a sentence, and ``stable/summary``. A directory that
    holds a run of stableopt gets ``run-2``, ``run-3``, …, as TensorBoard would draw two runs in one
    directory as one line; event files of other programs do not matter.

    Args:
        directory: The log directory of TensorBoard; created, with its parents.
        every: Record one healthy step out of so many; interventions, and steps at which sensors
            were read, always.
        prefix: Of the names of all scalars.
        layers: Whether the readings of each weight are scalars of their own.

    Attributes:
        directory: The directory of the event file.
        path: The event file; after a full disk there is a second one beside it.

    Raises:
        ConfigError: The directory cannot be written, or an option is out of range.
        MissingExtraError: On import, if TensorBoard is not installed.

    Cost:
        One write to the file per scalar, on a separate thread; values are stored as float32.

    Example:
        ``StableOptimizer(optimizer, telemetry=[TensorBoardWriter("runs/x")])``, then
        ``tensorboard --logdir runs``.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every: int = 10,
        prefix: str = PREFIX,
        layers: bool = True,
    ) -> None:
        super().__init__(every=every, prefix=prefix, layers=layers)
        if not isinstance(directory, (str, os.PathLike)) or not os.fspath(directory):
            raise ConfigError(f"directory={directory!r} must be a path")
        self._call = 0
        self._closed = False
        try:
            self.directory = _unused(Path(directory))
            self._board: SummaryWriter | None = self._open()
            self.path = next(self.directory.glob(f"*{_SUFFIX}"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"directory={str(directory)!r} cannot be written ({error}): give a directory that "
                "this process may create and write"
            ) from error

    def write(self, event: Event) -> None:
        """Write the scalars of an event, and its reason if there is one."""
        self._call = event.call
        sentence = f"call {event.call}: **{event.action.value}**, because {event.reason}"
        texts = {"ledger": sentence} if event.reason else {}
        self._append(self._metrics.of(event), texts, event.time)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the summary as a text."""
        block = "\n".join(f"    {line}" for line in encode(summary, indent=2).splitlines())
        self._append({}, {"summary": block}, time.time())

    def close(self) -> None:
        """Close the file."""
        board, self._board, self._closed = self._board, None, True
        if board is not None:
            board.close()

    def _append(self, scalars: dict[str, float], texts: dict[str, str], when: float) -> None:
        board, self._board = self._board or self._open(), None
        for name, value in scalars.items():
            board.add_scalar(name, value, self._call, when)
        for name, text in texts.items():
            board.add_text(f"{self._prefix}{name}", text, self._call, when)
        board.flush()
        self._board = board  # after an error the next event begins another file

    def _open(self) -> SummaryWriter:
        if self._closed:
            raise ValueError("the event file is closed: make a new writer for each training")
        return SummaryWriter(self.directory, filename_suffix=_SUFFIX)


def _unused(directory: Path) -> Path:
    """Create and return the first directory without an event file of stableopt."""
    found, number = directory, 1
    while any(found.glob(f"events.out.tfevents.*{_SUFFIX}")):
        number += 1
        found = directory / f"run-{number}"
    found.mkdir(parents=True, exist_ok=True)
    return found
