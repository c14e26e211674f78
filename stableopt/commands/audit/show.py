"""What the terminal shows: a bar while weights are measured, a table, a verdict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from stableopt.commands.terminal import Column, fitting, say
from stableopt.health.spectra.tiers import TIERS
from stableopt.runtime.words import printable, spell
from stableopt.types import Standing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from stableopt.commands.audit.findings import Audit
    from stableopt.commands.audit.measure import WeightReport

ROWS = 40
"""Rows of the table before the rest is only counted."""

_NARROWEST = 16
"""Columns that a name has at least."""

_USUAL, _WIDE = 76, 120
"""Columns of a terminal from which on it has room for what is judged, and for every measure."""

_STYLES = {
    Standing.DANGER: "bold red",
    Standing.WARNING: "yellow",
    Standing.HEALTHY: "green",
    Standing.UNJUDGED: "dim",
    Standing.UNDEFINED: "magenta",
}

LONGEST_NAME = 160
"""Characters of a name that the table shows; the JSON has all of them."""


def _cell(value: float | None) -> str:
    """Return a measure in three digits, and a dash where there is none."""
    return spell(None if value is None or math.isnan(value) else value, 3)


_COLUMNS = (
    Column("shape", lambda r: "x".join(map(str, r.shape)) or "-"),
    Column("norm", lambda r: _cell(r.spectral_norm), least=_WIDE),
    Column("stable", lambda r: _cell(r.stable_rank), least=_WIDE),
    Column("eff.rank", lambda r: _cell(r.effective_rank), least=_WIDE),
    Column("rel.rank", lambda r: _cell(r.relative_rank)),
    Column("κ_p10", lambda r: _cell(r.kappa_p10), least=_USUAL),
    Column("fiedler", lambda r: _cell(r.fiedler), least=_WIDE),
    Column("rel.fied", lambda r: _cell(r.relative_fiedler), least=_USUAL),
    Column("redund.", lambda r: _cell(r.redundancy), least=_WIDE),
    Column("κ", lambda r: _cell(r.condition_number), least=_WIDE),
    Column("κ/Gauss", lambda r: _cell(r.relative_condition)),
)

_PUBLISHED = (
    Column("ASSR Fiedler", lambda r: _cell(r.assr_fiedler)),
    Column("ASSR κ", lambda r: _cell(r.assr_condition_number)),
    Column("Gradience κ̃", lambda r: _cell(r.kappa_tilde)),
)


def show_table(console: Console, audit: Audit, *, published: bool = False) -> None:
    """Print one row per weight, the worst first, and why they stand where they do.

    Args:
        console: Where; a wide one shows more columns.
        audit: What was measured.
        published: Whether a second table follows, of the formulas of ASSR and Gradience.
    """
    shown = audit.worst_first[:ROWS]
    if shown:
        _print_table(console, shown, fitting(_COLUMNS, console))
        if published:
            console.print()
            say(console, "As published by ASSR/Gradience", style="bold")
            _print_table(console, shown, _PUBLISHED)
        console.print()
    hidden = len(audit.reports) - len(shown)
    if hidden:
        say(console, f"... and {hidden} more, none worse, in audit.json", style="dim")
    for report in shown:
        if report.note and report.standing is not Standing.UNJUDGED:
            say(console, f"{report.name}: {report.note}", style=_STYLES[report.standing])
    if shown:
        console.print(Text(_legend(audit), style="dim"))


def show_verdict(console: Console, audit: Audit, files: tuple[Path, ...]) -> None:
    """Print what else there was, where the files are, and the verdict."""
    counts = {"optimizer state": audit.optimizer_tensors, "integers": audit.integer_tensors}
    left_out = [f"{number} of {what}" for what, number in counts.items() if number]
    if audit.vectors:
        say(console, f"looked at  {audit.vectors} vectors and scalars: all finite", style="dim")
    if left_out:
        say(console, f"left out   tensors: {', '.join(left_out)}", style="dim")
    say(console, "files      " + "  ".join(map(str, files)), style="dim")
    say(console, audit.verdict, style=_STYLES[audit.standing])


def _print_table(console: Console, reports: list[WeightReport], columns: Sequence[Column]) -> None:
    cells = [[column.cell(report) for column in columns] for report in reports]
    texts = zip([column.title for column in columns], *cells, strict=True)
    width = sum(1 + max(map(len, column)) for column in texts)
    room = max(_NARROWEST, console.width - width - len("undefined") - 1)
    names = [_title(report) for report in reports]
    common = _common(names) if max(map(len, names)) > room else ""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    table.add_column("standing", no_wrap=True)
    table.add_column("weight", overflow="fold")
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    for report, name, row in zip(reports, names, cells, strict=True):
        table.add_row(
            Text(report.standing.value, style=_STYLES[report.standing]),
            Text(_folded(name.removeprefix(common), room)),
            *row,
        )
    console.print(table)
    if common:
        say(console, f"Every name begins with {common}", style="dim")


def _title(report: WeightReport) -> str:
    ties = f" (= {', '.join(report.aliases)})" if report.aliases else ""
    name = printable(report.name + ties)
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]} … {name[-half:]}"


def _common(names: list[str]) -> str:
    """Return the dotted prefix that all names have, e.g. ``"model."``."""
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return first[: first.rfind(".", 0, same) + 1]


def _folded(name: str, room: int) -> str:
    """Return a name in lines of at most ``room``, broken behind a dot or a space if possible."""
    lines = []
    while len(name) > room:
        cut = max(name.rfind(".", 1, room - 1), name.rfind(" ", 1, room - 1)) + 1 or room
        lines.append(name[:cut].rstrip())
        name = name[cut:]
    return "\n".join([*lines, name])


def _legend(audit: Audit) -> str:
    judged = ("relative_rank", "relative_kappa_p10", "relative_fiedler")
    rank, kappa, fiedler = (TIERS[metric].warning for metric in judged)
    exact = "" if audit.exact else " The exact tier was left out (--no-exact)."
    return (
        "rel.rank, rel.fied and κ/Gauss are over what a random matrix of that shape reads: 1 is "
        f"random. In a healthy weight rel.rank is above {rank:g}, κ_p10 below {kappa:g} times "
        "that of a random one, rel.fied "
        f"above {fiedler:g}.{exact}"
    )
