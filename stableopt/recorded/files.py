"""Find the runs of a directory, and follow an event file while it grows."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stableopt.errors import ConfigError
from stableopt.recorded.run import Run
from stableopt.runtime.paths import usable
from stableopt.runtime.words import listed

_EVENTS = re.compile(r"telemetry(?:-([1-9][0-9]*))?\.jsonl")
_CHUNK = 1 << 20
_FEW = 5


class Place(NamedTuple):
    """One run of a directory.

    Attributes:
        path: Its event file.
        number: Which, from 1.
        siblings: How many runs the directory has.
    """

    path: Path
    number: int
    siblings: int = 1

    @property
    def summary_path(self) -> Path:
        """Where its summary is, if it is there."""
        suffix = "" if self.number == 1 else f"-{self.number}"
        return self.path.with_name(f"summary{suffix}.json")

    @property
    def title(self) -> str:
        """The directory, and which run of it where there are several."""
        directory = self.path.parent
        name = str(directory) if directory.name else str(directory.resolve())
        return name if self.siblings == 1 else f"{name} (run {self.number} of {self.siblings})"


def list_runs(directory: Path) -> list[Place]:
    """Return the runs of a directory, oldest first.

    Raises:
        OSError: It cannot be read.
    """
    found = [(match, p) for p in directory.iterdir() if (match := _EVENTS.fullmatch(p.name))]
    places = [Place(path, int(match[1] or 1), len(found)) for match, path in found]
    return sorted(places, key=lambda place: place.number)


def find_run(where: str | os.PathLike[str], number: int | None = None) -> Place:
    """Return the run to look at.

    Args:
        where: A run directory, or an event file in one.
        number: Which run of the directory, from 1; the newest if not given.

    Raises:
        ConfigError: There is none; the message names what is there instead.
    """
    path = Path(where)
    if path.is_file():
        return _of_file(path, number)
    places = _runs_at(path)
    if not places:
        raise ConfigError(_nothing_at(path))
    if number is None:
        return places[-1]
    by_number = {place.number: place for place in places}
    if number in by_number:
        return by_number[number]
    known = ", ".join(map(str, by_number))
    raise ConfigError(f"run={number} is not in {str(path)!r}: choose one of {known}")


def runs_below(where: str | os.PathLike[str]) -> list[Place]:
    """Return the newest run of a directory, or of each directory in it if it has none itself.

    Raises:
        ConfigError: There is no run in either.
    """
    path = Path(where)
    if path.is_file() or _runs_at(path):
        return [find_run(path)]
    found = [_runs_at(inside)[-1] for inside in _with_runs(path)]
    if not found:
        raise ConfigError(_nothing_at(path))
    return found


def _runs_at(path: Path) -> list[Place]:
    if not path.is_dir():
        return []
    with usable("run", path, "read", "give a directory that this process may read"):
        return list_runs(path)


def _of_file(path: Path, number: int | None) -> Place:
    match = _EVENTS.fullmatch(path.name)
    if match is None:
        raise ConfigError(
            f"run={str(path)!r} must be a run directory or a telemetry*.jsonl in one: "
            "give the directory that was passed as telemetry="
        )
    if number is not None:
        raise ConfigError(
            f"run={number} must not be given with a file, which is one run: leave it out"
        )
    places = _runs_at(path.parent)
    return Place(path, int(match[1] or 1), siblings=max(1, len(places)))


def _with_runs(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(inside for inside in path.iterdir() if inside.is_dir() and _runs_at(inside))


def _nothing_at(path: Path) -> str:
    if not path.exists():
        return f"run={str(path)!r} must exist: check the path that was passed as telemetry="
    inside = [str(p) for p in _with_runs(path)]
    if inside:
        return (
            f"run={str(path)!r} must hold a telemetry.jsonl, and holds directories that do: "
            f"give one of {listed(inside, _FEW)}"
        )
    return (
        f"run={str(path)!r} must hold a telemetry.jsonl: give the directory that was passed as "
        "telemetry= to StableOptimizer"
    )


class Follower:
    """Reads a run, and what is appended to it later.

    Args:
        place: Which.

    Attributes:
        run: What is known so far.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._summary_stamp: tuple[int, int] | None = None
        self._start(None)

    def _start(self, summary: Mapping[str, Any] | None) -> None:
        """Read the file from its beginning."""
        self.run = Run(*self.place)
        self.run.summary = summary
        self._offset, self._rest = 0, b""

    def poll(self) -> bool:
        """Read what is new; return whether there was anything.

        Raises:
            ConfigError: The event file cannot be read.
        """
        fresh = self._read_summary()
        path, advice = self.place.path, "give a file that this process may read"
        with usable("run", path, "read", advice), path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._offset:
                self._start(self.run.summary)  # another file has replaced it
            file.seek(self._offset)
            while chunk := file.read(_CHUNK):
                fresh = True
                self._offset += len(chunk)
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                for line in lines:
                    self._line(line)
        return fresh

    def finish(self) -> Run:
        """Read to the end, take what is left there for a torn line, and return the run."""
        self.poll()
        self._line(self._rest)
        self._rest = b""
        return self.run

    def _line(self, line: bytes) -> None:
        if not line.strip():
            return
        record = _parse(line)
        if record is None:
            self.run.unreadable += 1
        else:
            self.run.add(record)

    def _read_summary(self) -> bool:
        """Read the summary if it has changed."""
        path = self.place.summary_path
        try:
            state = path.stat()
            stamp = (state.st_mtime_ns, state.st_size)
            if stamp == self._summary_stamp:
                return False
            summary = _parse(path.read_bytes())
        except OSError:  # there is none, or it was replaced just now
            return False
        self._summary_stamp = stamp
        if summary is not None and "integrity" in summary:
            self.run.summary = summary
        return True


def _parse(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    return found if isinstance(found, dict) else None


def load_run(where: str | os.PathLike[str], number: int | None = None) -> Run:
    """Read a run from its directory.

    Args:
        where: A run directory, or an event file in one.
        number: Which run of the directory, from 1; the newest if not given.

    Raises:
        ConfigError: There is none, or it cannot be read.

    Cost:
        One pass over the event file (some 15 MB a second); memory is bounded but for the
        interventions, all of which are kept.
    """
    return Follower(find_run(where, number)).finish()


def select_runs(where: Sequence[str | os.PathLike[str]]) -> tuple[list[Place], list[Path]]:
    """Return the runs at some paths, each once, and the paths that hold none.

    Of a directory of run directories it is the newest run of each. ``runs/*`` has more in it
    than runs: checkpoints, audits.

    Raises:
        ConfigError: None of them holds a run, or one is not there or cannot be read.
    """
    places: dict[Path, Place] = {}
    without = []
    for path in map(Path, where):
        if path.exists() and not _holds_run(path):
            without.append(path)
            continue
        places.update((place.path.resolve(), place) for place in runs_below(path))
    if len(without) == 1 and not places:
        runs_below(without[0])  # its message has what is there instead
    if not places:
        raise ConfigError(
            f"runs={[str(path) for path in without[:_FEW]]} must hold a telemetry.jsonl, one of "
            f"these {len(without)} at least: give directories that were passed as telemetry="
        )
    return list(places.values()), without


def _holds_run(path: Path) -> bool:
    if path.is_file():
        return _EVENTS.fullmatch(path.name) is not None
    return bool(_runs_at(path) or _with_runs(path))


def read_runs(places: Iterable[Place]) -> list[tuple[Place, Run]]:
    """Read several runs.

    Raises:
        ConfigError: One of them cannot be read.
    """
    return [(place, Follower(place).finish()) for place in places]
