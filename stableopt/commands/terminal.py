"""What the commands share: lines and columns on a terminal, and a directory to write to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from stableopt.runtime.paths import usable
from stableopt.runtime.words import printable


class Column(NamedTuple):
    """A column of a table with a row for each of several things.

    Attributes:
        title: Its head.
        cell: Returns what it shows of one thing.
        least: Columns of a terminal that has room for it.
    """

    title: str
    cell: Callable[[Any], str]
    least: int = 0


def fitting(columns: Iterable[Column], console: Console) -> list[Column]:
    """Return the columns that a terminal has room for."""
    return [column for column in columns if console.width >= column.least]


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is: no markup, no control characters, no breaks in a name or a path."""
    console.print(Text(printable(text), style=style), soft_wrap=True)


def claim_directory(out: Path) -> Path:
    """Make ``out`` and check that it can be written.

    Raises:
        ConfigError: It cannot.
    """
    with usable("out", out, "written", "give a directory that this process may create and write"):
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    return out
