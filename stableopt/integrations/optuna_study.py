"""Open or create a study of Optuna that is kept on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError, MissingExtraError

try:
    import optuna
    from optuna.storages import BaseStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.study import StudyDirection
except ImportError as error:
    raise MissingExtraError("stableopt.integrations.optuna", "optuna") from error

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""Exceptions of Optuna for lines that are not its records."""


def open_study(
    name: str, storage: str | os.PathLike[str] | BaseStorage | None = None, **options: Any
) -> optuna.Study:
    """Open a study that is kept on disk, or create it.

    Any number of processes may open the same study at the same time.

    Args:
        name: Of the study.
        storage: ``None`` for a journal, ``<name>.journal`` in the working directory; another path
            for the journal; a URL (``sqlite:///study.db``, ``postgresql://…``) for a database, as
            several machines should use; or a storage of Optuna.
        **options: Of :func:`optuna.create_study`: ``direction``, ``sampler``, ``pruner``, ….

    Raises:
        ConfigError: The journal cannot be written or read, ``name`` is not a file name,
            ``storage`` is of another type, or the study exists with another ``direction``.

    Cost:
        Per trial some tens of milliseconds with a journal, some hundreds with sqlite.

    Example:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/search.journal"
        >>> open_study("search", path).study_name == open_study("search", path).study_name
        True
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"name={name!r} must be a string that is not empty: the study's name")
    if storage is None and Path(name).name != name:
        raise ConfigError(
            f"name={name!r} must be a file name to name a journal: give storage= as a path or a URL"
        )
    place = Path(f"{name}.journal") if storage is None else storage
    if not isinstance(place, (str, os.PathLike, BaseStorage)):
        raise ConfigError(f"storage={place!r} must be a path, a URL or a storage of Optuna")
    if not isinstance(place, BaseStorage) and "://" not in os.fspath(place):
        place = _open_journal(Path(place))
    study = optuna.create_study(
        study_name=name, **{"storage": place, "load_if_exists": True, **options}
    )
    _check_directions(study, options)
    return study


def _open_journal(path: Path) -> JournalStorage:
    """Open or create a journal.

    Raises:
        ConfigError: It cannot be written, or has lines that Optuna cannot read.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(path)))
        for last in path.read_bytes().splitlines(keepends=True)[-1:]:
            # Optuna ignores half a record, and would write its next one into the same line.
            if not last.endswith(b"\n") or not json.loads(last):
                raise ValueError("the last line is incomplete")
        return storage
    except OSError as error:
        raise ConfigError(
            f"storage={str(path)!r} cannot be written ({error.strerror or error}): give a file in "
            "a directory that this process may create and write, or a URL"
        ) from error
    except _UNREADABLE as error:
        raise ConfigError(
            f"storage={str(path)!r} cannot be read as a journal of Optuna ({error!r}): if a "
            "process was killed while it wrote, remove the incomplete record, usually the last "
            f"line of {path}; if this is not a journal, give another file"
        ) from error


def _check_directions(study: optuna.Study, options: Mapping[str, Any]) -> None:
    """Refuse a study that exists with other directions."""
    for option in ("direction", "directions"):
        given = options.get(option)
        if given is None:
            continue
        wanted = [_direction(one) for one in (given if option == "directions" else [given])]
        known = [_direction(one) for one in study.directions]
        if wanted != known:
            raise ConfigError(
                f"{option}={given!r} must be that of the study {study.study_name!r}, which "
                f"exists with {'direction' if len(known) == 1 else 'directions'}="
                f"{known[0] if len(known) == 1 else known!r}: leave it out to continue that study, "
                "or choose another name or storage"
            )


def _direction(given: str | StudyDirection) -> str:
    return given.name.lower() if isinstance(given, StudyDirection) else given.lower()
