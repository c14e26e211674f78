"""A journal of Optuna that is checked before anything is written to it."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from stableopt.errors import ConfigError, MissingExtraError

try:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
except ImportError as error:
    raise MissingExtraError("stableopt.integrations.optuna", "optuna") from error

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("stableopt")

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What Optuna raises for lines that are no records of its own."""


def open_journal(path: Path) -> JournalStorage:
    """Open a journal, or begin one.

    A process that is killed while it writes leaves half a record at the end. Optuna reads over it
    and writes its next record into the same line, which makes the journal unreadable from there
    on: half a record is taken off first, while no other process writes.

    Args:
        path: Of the file; its directory is created.

    Raises:
        ConfigError: It cannot be written, or is no journal, or one with broken lines.

    Cost:
        Reads the file twice.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(path)))
        if not _ends_well(path.read_bytes()):
            _mend(path)
        return storage
    except OSError as error:
        raise ConfigError(
            f"storage={str(path)!r} cannot be written ({error.strerror or error}): give a file in "
            "a directory that this process may create and write, or a URL"
        ) from error
    except UNREADABLE as error:
        raise ConfigError(
            f"storage={str(path)!r} cannot be read as a journal of Optuna ({_what_is_wrong(path)}):"
            " give another file, or mend that line in a copy of this one"
        ) from error


def _ends_well(data: bytes) -> bool:
    """Tell whether the next record may be written behind these."""
    lines = data.splitlines(keepends=True)
    return not lines or (lines[-1].endswith(b"\n") and _is_record(lines[-1]))


def _mend(path: Path) -> None:
    """End the last record, or take it off if it is but half of one.

    Raises:
        ValueError: No record comes before it: this is another file, which stays as it is.
    """
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()  # as Optuna does to write: from here on nobody is in the middle of a record
    try:
        data = path.read_bytes()
        half = data[data.rfind(b"\n") + 1 :]
        before = data[: len(data) - len(half)]
        with path.open("r+b") as file:
            if _is_record(half):
                file.seek(len(data))
                file.write(b"\n")
            elif not _ends_well(before) or (half and not before):
                raise ValueError("the last line is no record")
            elif half:
                file.truncate(len(before))
                logger.warning(
                    "%s ended in half a record, of a process that was killed while it wrote: "
                    "these %d bytes were taken off: %.80r",
                    path,
                    len(half),
                    half,
                )
    finally:
        lock.release()


def _what_is_wrong(path: Path) -> str:
    """Return the first line that is no record."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not _is_record(line):
            return f"line {number} is {line[:40]!r}"
    return "its records do not fit together"


def _is_record(line: bytes) -> bool:
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return isinstance(found, dict) and "op_code" in found
