"""Telemetry as TensorBoard event files."""

from __future__ import annotations

import io
import os
import socket
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError, MissingExtraError, require_int
from stableopt.telemetry.encode import encode
from stableopt.telemetry.metrics import PREFIX, RunMetrics, check_prefix

try:
    from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-untyped]
        Event as Record,
    )
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
    from tensorboard.summary.writer.record_writer import (  # type: ignore[import-untyped]
        RecordWriter,
    )
    from torch.utils.tensorboard.summary import text as text_summary
except ImportError as error:
    raise MissingExtraError("TensorBoardWriter", "tensorboard") from error

if TYPE_CHECKING:
    from stableopt.types import Event

_SUFFIX = ".stableopt"
_CLOSED = -1
"""No file: the number of a closed one may by now be that of another."""


class TensorBoardWriter:
    """Write scalars and texts that TensorBoard shows, live.

    The x-axis is the call of ``step()``, the number that a trainer calls its global step: it never
    goes back. Texts: ``stable/ledger``, every intervention as a sentence, and ``stable/summary``.
    A directory that holds a run of ours already gets ``run-2``, ``run-3``, …, as two runs in one
    would be drawn as one zigzag; event files of others do not matter.

    Args:
        directory: Where TensorBoard looks; created, with its parents.
        every: Record one healthy step out of so many; interventions, and steps at which sensors
            were read, always.
        prefix: What the names of all scalars begin with.
        layers: Whether the readings of each weight are scalars of their own.

    Attributes:
        directory: Where the event file is.
        path: The event file.

    Raises:
        ConfigError: The directory cannot be written, or an option is out of range.
        MissingExtraError: On import, if TensorBoard is not installed.

    Cost:
        One write to the file per event, on a thread of its own; values are stored as float32.

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
        require_int("every", every, 1, "record one healthy step out of so many")
        if not isinstance(directory, (str, os.PathLike)) or not os.fspath(directory):
            raise ConfigError(f"directory={directory!r} must be a path")
        self.every = every
        self._prefix = check_prefix(prefix)
        self._metrics = RunMetrics(prefix, layers=layers)
        self._call = 0
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        try:
            self.directory = _unused(Path(directory))
            self.path = self.directory / f"{name}.{uuid.uuid4().hex[:8]}{_SUFFIX}"
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            self._append(Record(wall_time=time.time(), file_version="brain.Event:2"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"directory={str(directory)!r} cannot be written ({error}): give a directory that "
                "this process may create and write"
            ) from error

    def write(self, event: Event) -> None:
        """Write the scalars of an event, and its sentence if there is one."""
        self._call = event.call
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in self._metrics.of(event).items()
        ]
        self._append(Record(wall_time=event.time, step=event.call, summary=Summary(value=values)))
        if event.reason:
            sentence = f"call {event.call}: **{event.action.value}**, because {event.reason}"
            self._append_text("ledger", sentence, event.time)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the summary as a text."""
        block = "\n".join(f"    {line}" for line in encode(summary, indent=2).splitlines())
        self._append_text("summary", block, time.time())

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, _CLOSED
        os.close(file)

    def _append_text(self, name: str, sentence: str, when: float) -> None:
        summary = text_summary(  # type: ignore[no-untyped-call]
            f"{self._prefix}{name}", sentence
        )
        self._append(Record(wall_time=when, step=self._call, summary=summary))

    def _append(self, record: Record) -> None:
        """Write a whole record, or none of it: TensorBoard stops reading at half a one."""
        buffer = io.BytesIO()
        RecordWriter(buffer).write(record.SerializeToString())
        data = buffer.getvalue()
        before = os.lseek(self._file, 0, os.SEEK_END)
        try:
            if (written := os.write(self._file, data)) < len(data):
                raise OSError(f"only {written} of {len(data)} bytes fitted into {self.path}")
        except OSError:
            os.ftruncate(self._file, before)
            raise


def _unused(directory: Path) -> Path:
    """Create and return the first directory that holds no event file of ours."""
    number, found = 1, directory
    while True:
        found.mkdir(parents=True, exist_ok=True)
        if not any(found.glob(f"events.out.tfevents.*{_SUFFIX}")):
            return found
        number += 1
        found = directory / f"run-{number}"
