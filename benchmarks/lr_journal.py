"""What was run already, so that an interrupted benchmark goes on where it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.environment import ROOT
from benchmarks.lr_plan import Cell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.lr_runs import Record

_DECISIVE = (
    "lr_model",
    "lr_other_models",
    "lr_tasks",
    "lr_rivals",
    "lr_methods",
    "lr_runs",
)
"""Our files on which a run depends; how it is told, or where it stands, may change."""


class Journal:
    """A file with one finished run per line.

    Args:
        path: The file; it need not exist.
        version: What a run depends on besides its cell: runs of other versions do not count.
    """

    def __init__(self, path: Path, version: str) -> None:
        self.path, self.version = path, version

    def load(self) -> dict[Cell, Record]:
        """Return the runs of this version, by cell."""
        return {
            Cell(**entry["cell"]): entry["record"]
            for entry in self._entries()
            if entry["version"] == self.version
        }

    def append(self, cell: Cell, record: Record) -> None:
        """Add a finished run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"version": self.version, "cell": asdict(cell), "record": record}
        with self.path.open("a", encoding="utf-8") as file:
            # On a line of its own, whatever was interrupted before.
            file.write("\n" + json.dumps(entry, allow_nan=False) + "\n")

    def _entries(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue  # empty, or being written when everything stopped


def version_of(*, quick: bool) -> str:
    """Return a hash of everything that decides what a run comes to.

    Args:
        quick: Whether the tiny tasks are meant.
    """
    own = [ROOT / "benchmarks" / f"{name}.py" for name in _DECISIVE]
    digest = hashlib.sha256(f"{torch.__version__}, quick={quick}".encode())
    for path in [*sorted((ROOT / "stableopt").rglob("*.py")), *own]:
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
