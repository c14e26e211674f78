"""The report as a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from stableopt.commands.report.page import build_page
from stableopt.errors import ConfigError
from stableopt.recorded.files import Follower, find_run
from stableopt.recorded.status import Status, status_of
from stableopt.runtime.paths import usable


class Report(NamedTuple):
    """A report that was written.

    Attributes:
        path: The HTML file.
        status: The state of the run.
    """

    path: Path
    status: Status


def write_report(
    where: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    number: int | None = None,
) -> Report:
    """Write a run as one HTML file that needs nothing else.

    Args:
        where: A run directory, or an event file in one.
        out: The file to write; ``report.html`` beside the records if not given, with the number
            of the run where it is not the first one.
        number: Which run of the directory, from 1; the newest if not given.

    Returns:
        Where it is, and the state of the run.

    Raises:
        ConfigError: There is no run, or the file cannot be written.

    Cost:
        One pass over the records, some 15 MB a second. An older report is replaced as a whole.
    """
    place = find_run(where, number)
    run = Follower(place).finish()
    suffix = "" if place.number == 1 else f"-{place.number}"
    path = place.path.with_name(f"report{suffix}.html") if out is None else Path(out)
    _replace(path, build_page(run, place.title))
    return Report(path, status_of(run))


def _replace(path: Path, page: str) -> None:
    if path.is_dir():
        raise ConfigError(
            f"out={str(path)!r} is a directory: give a file, e.g. {path / 'report.html'}"
        )
    with usable("out", path, "written", "give a file in a directory that this process may write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False
        ) as draft:
            draft.write(page)
        # As a file that open() makes: a temporary one is for its owner only.
        os.chmod(draft.name, 0o666 & ~_umask())
        os.replace(draft.name, path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
