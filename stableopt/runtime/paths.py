"""Files and directories that cannot be used, as errors of the user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from stableopt.errors import ConfigError


@contextmanager
def usable(option: str, path: str | os.PathLike[str], verb: str, advice: str) -> Iterator[None]:
    """Turn an ``OSError`` into the error that names the option and says what to do.

    Args:
        option: The option that the path was given as.
        path: The path.
        verb: What failed: ``"read"`` or ``"written"``.
        advice: What to do.

    Raises:
        ConfigError: An ``OSError`` was raised inside.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"{option}={str(path)!r} cannot be {verb} ({why}): {advice}") from error
