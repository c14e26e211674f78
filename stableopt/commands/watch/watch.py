"""Follow a run on a terminal while it trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from stableopt.commands.watch.terminal import draw_frame, status_line
from stableopt.errors import ConfigError, require_number
from stableopt.recorded.files import Follower, Place, find_run, list_runs, runs_below
from stableopt.recorded.status import ENDED, Status, status_of
from stableopt.runtime.words import printable
from stableopt.telemetry.encode import encode

LONGEST = 86_400.0
"""Seconds between two looks, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """The command line of ``stableopt watch``.

    Attributes:
        where: A run directory, or an event file in one; need not be there yet.
        number: Which run of the directory, from 1; the newest if ``None``, also if a newer one
            begins later.
        once: Whether to show one frame and end.
        as_json: Whether to print the state as JSON; with ``once`` only.
        every: Seconds between two looks.
        wait: Seconds to wait for a run that is not there yet; for ever if ``None``, with ``once``
            not at all.

    Raises:
        ConfigError: The options contradict one another, or are out of range.
    """

    where: Path
    number: int | None = None
    once: bool = False
    as_json: bool = False
    every: float = 1.0
    wait: float | None = None

    def __post_init__(self) -> None:
        require_number("every", self.every, LONGEST, "seconds between two looks at the run")
        if self.wait is not None and not self.wait >= 0:
            raise ConfigError(
                f"wait={self.wait!r} must be at least 0: the seconds to wait for a run to begin"
            )
        if self.as_json and not self.once:
            raise ConfigError("json=True needs once=True: add --once")

    @property
    def patience(self) -> float | None:
        """Seconds to wait for a run; ``None`` for ever."""
        return 0.0 if self.once and self.wait is None else self.wait


def watch_run(
    options: WatchOptions, console: Console, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Show a run until it ends, or once.

    Args:
        options: The command line.
        console: Of the standard output.
        sleep: Waits.

    Returns:
        1 if the run is compromised or in danger, else 0.

    Raises:
        ConfigError: There is no such run, or it did not begin in time.
    """
    follower = Follower(_await(options, console, sleep))
    if options.once:
        follower.poll()
        status = status_of(follower.run)
        if options.as_json:
            console.out(encode(status.to_dict(), indent=2), highlight=False)
        else:
            console.print(_frame(follower, status, console, rows=None))
        return status.exit_code
    if not console.is_terminal:
        return _follow(options, follower, console, None, sleep).exit_code
    with Live(console=console, auto_refresh=False) as live:
        return _follow(options, follower, console, live, sleep).exit_code


def _await(options: WatchOptions, console: Console, sleep: Callable[[float], None]) -> Place:
    """Return the run, once it is there."""
    left = options.patience
    announced = False
    while True:
        try:
            return find_run(options.where, options.number)
        except ConfigError:
            if (left is not None and left <= 0) or _has_other_runs(options.where):
                raise
        if not announced:
            announced = True
            where = printable(str(options.where))
            console.print(Text(f"Waiting for a run in {where} …", style="dim"), soft_wrap=True)
        pause = options.every if left is None else min(options.every, left)
        sleep(pause)
        left = None if left is None else left - pause


def _has_other_runs(path: Path) -> bool:
    """Return whether a path is a file, or a directory with other runs than the one asked for."""
    try:
        return path.is_file() or bool(runs_below(path))
    except ConfigError:
        return False


def _follow(
    options: WatchOptions,
    follower: Follower,
    console: Console,
    live: Live | None,
    sleep: Callable[[float], None],
) -> Status:
    """Show what is new until the run ends: drawn again on a terminal, else as a line each."""
    while True:
        fresh = follower.poll()
        status = status_of(follower.run)
        if live is not None:
            live.update(_frame(follower, status, console, rows=console.height), refresh=True)
        elif fresh:
            console.print(Text(status_line(follower.run, status)), soft_wrap=True)
        if status.state in ENDED:
            return status
        sleep(options.every)
        follower = _newer(options, follower)


def _newer(options: WatchOptions, follower: Follower) -> Follower:
    """Return a follower of the run that has begun since in the same directory, if any."""
    if options.number is not None or options.where.is_file():
        return follower
    try:
        newest = list_runs(options.where)[-1]
    except (OSError, IndexError):  # it is gone: the next read raises
        return follower
    return follower if newest.path == follower.place.path else Follower(newest)


def _frame(
    follower: Follower, status: Status, console: Console, rows: int | None
) -> RenderableType:
    return draw_frame(
        follower.run, status, follower.place.title, console, now=time.time(), rows=rows
    )
