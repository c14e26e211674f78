"""Runs the cells of a benchmark, several at once, and continues where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.common.threads import settle_worker, silent, torch_threads

C = TypeVar("C")
R = TypeVar("R")


@dataclass(frozen=True)
class Journal:
    """A file with one finished run per line.

    Attributes:
        path: The file; it need not exist.
        version: What a run depends on besides its cell: runs of other versions do not count.
        kind: The dataclass of the cells.
    """

    path: Path
    version: str
    kind: type

    def load(self) -> dict[Any, Any]:
        """Return the records of this version, by cell."""
        if not self.path.exists():
            return {}
        done = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # empty, or being written when everything stopped
            if entry["version"] == self.version:
                done[self.kind(**entry["cell"])] = entry["record"]
        return done

    def append(self, cell: Any, record: Any) -> None:
        """Add a finished run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"version": self.version, "cell": asdict(cell), "record": record}
        with self.path.open("a", encoding="utf-8") as file:
            # On a line of its own, whatever was interrupted before.
            file.write("\n" + json.dumps(entry, allow_nan=False) + "\n")


def play(
    function: Callable[[C], R],
    cells: Sequence[C],
    *,
    jobs: int = 0,
    title: str = "runs",
    journal: Journal | None = None,
) -> dict[C, R]:
    """Return the record of every cell, in the order of the cells.

    Args:
        function: Makes the record of a cell; with ``jobs`` it has to be picklable.
        cells: Hashable, in the order in which they begin.
        jobs: Worker processes, each of one thread; 0 for this process alone.
        title: Of the progress bar.
        journal: Holds what is done already, and gets what is finished.
    """
    done: dict[C, R] = {} if journal is None else journal.load()
    left = [cell for cell in dict.fromkeys(cells) if cell not in done]
    for cell, record in track(_finished(function, left, jobs), title, total=len(left)):
        done[cell] = record
        if journal is not None:
            journal.append(cell, record)
    return {cell: done[cell] for cell in cells}


def _finished(function: Callable[[C], R], cells: Sequence[C], jobs: int) -> Iterator[tuple[C, R]]:
    """Yield every cell with its record as soon as it is there."""
    if jobs == 0:
        with torch_threads(), silent():
            for cell in cells:
                yield cell, function(cell)
        return
    context = get_context("spawn")  # a fork would inherit the threads of torch
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=settle_worker)
    try:
        started = {pool.submit(function, cell): cell for cell in cells}
        for future in as_completed(started):
            yield started[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def in_turn(items: Iterable[C], round_: int) -> list[C]:
    """Return the items, rotated by the number of the round, and reversed in every other one."""
    items = list(items)
    turn = round_ % len(items)
    order = items[turn:] + items[:turn]
    return order[::-1] if round_ % 2 else order


def track(items: Iterable[C], title: str, total: int | None = None) -> Iterator[C]:
    """Yield ``items`` with a progress bar on stderr, which has no thread of its own.

    Args:
        items: What is counted.
        title: Of the bar.
        total: How many there are; ``None`` if they have a length.
    """
    # Not needed to measure on a GPU, where there may be no rich.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        yield from progress.track(items, total=total, description=title)
