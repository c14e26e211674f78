"""Where an audit is written by default."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

AUDITS = Path("runs/audit")
"""Where each checkpoint has a directory."""


def directory_of(checkpoint: Path) -> Path:
    """Return the directory that is named after a checkpoint.

    Another checkpoint of that name has one with a number: no audit overwrites that of another
    file, and an audit of the same file replaces the one before.
    """
    name = checkpoint.stem
    tried = (AUDITS / (name if n == 1 else f"{name}-{n}") for n in count(1))
    return next(path for path in tried if _audited(path) in (None, checkpoint.resolve()))


def _audited(directory: Path) -> Path | None:
    """Return the file whose audit is in a directory; ``None`` if there is none to be read."""
    try:
        found = json.loads((directory / "audit.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    checkpoint = found.get("checkpoint") if isinstance(found, dict) else None
    return Path(checkpoint).resolve() if isinstance(checkpoint, str) else None
