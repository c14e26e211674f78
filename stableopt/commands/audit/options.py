"""The command line of the audit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count
from pathlib import Path

AUDITS = Path("runs/audit")
"""Where each checkpoint has a directory, if none is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """The command line of ``stableopt audit``.

    Attributes:
        checkpoint: The file.
        out: Where ``audit.json`` and ``audit.png`` go; a directory of that checkpoint's own below
            ``runs/audit`` if ``None``.
        exact: Whether every matrix is decomposed, for effective rank and condition number.
        match: A pattern of :mod:`fnmatch`: only tensors whose name fits it.
        published: Whether the formulas of ASSR and Gradience are computed, too.
        as_json: Whether JSON is printed, and nothing else, instead of the table.
    """

    checkpoint: Path
    out: Path | None = None
    exact: bool = True
    match: str | None = None
    published: bool = False
    as_json: bool = False

    @property
    def directory(self) -> Path:
        """Where the files go: ``out``, or the directory named after the checkpoint.

        Another checkpoint of that name has one with a number, so that no audit overwrites that
        of another file, while an audit of the same file replaces the one before.
        """
        if self.out is not None:
            return self.out
        name = self.checkpoint.stem
        tried = (AUDITS / (name if n == 1 else f"{name}-{n}") for n in count(1))
        return next(path for path in tried if _audited(path) in (None, self.checkpoint.resolve()))


def _audited(directory: Path) -> Path | None:
    """Return the file whose audit is in a directory; ``None`` if there is none to be read."""
    try:
        found = json.loads((directory / "audit.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    told = found.get("checkpoint") if isinstance(found, dict) else None
    return Path(told).resolve() if isinstance(told, str) else None
