"""The command line of the audit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_OUT = Path("runs/audit")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """The command line of ``stableopt audit``.

    Attributes:
        checkpoint: The file.
        out: Where ``audit.json`` and ``audit.png`` go.
        exact: Whether every matrix is decomposed, for effective rank and condition number.
        match: A pattern of :mod:`fnmatch`: only tensors whose name fits it.
        published: Whether the formulas of ASSR and Gradience are computed, too.
        as_json: Whether JSON is printed, and nothing else, instead of the table.
    """

    checkpoint: Path
    out: Path = DEFAULT_OUT
    exact: bool = True
    match: str | None = None
    published: bool = False
    as_json: bool = False
