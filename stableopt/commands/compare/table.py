"""Several runs as a table on a terminal."""

from __future__ import annotations

import json

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stableopt.commands.compare.compare import Comparison
from stableopt.commands.terminal import Column, fitting
from stableopt.recorded.run import TAIL
from stableopt.recorded.status import BROKEN, say_state
from stableopt.runtime.words import duration, printable, spell
from stableopt.telemetry.encode import plain

_COLUMNS = (
    Column("integrity", lambda s: s.integrity),
    Column("state", lambda s: s.state, least=90),
    Column("loss", lambda s: spell(s.final_loss)),
    Column("best", lambda s: spell(s.best_loss), least=70),
    Column("steps", lambda s: f"{s.steps:,}", least=60),
    Column("skips", lambda s: str(s.skips)),
    Column("tamed", lambda s: str(s.tamed), least=70),
    Column("rollbacks", lambda s: str(s.rollbacks)),
    Column("undone", lambda s: str(s.steps_lost), least=100),
    Column("back-offs", lambda s: str(s.back_offs), least=110),
    Column("risk", lambda s: s.risk or "-", least=80),
    Column("time", lambda s: "-" if s.seconds is None else duration(s.seconds), least=90),
)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print a row per run, and what was configured differently.

    Args:
        console: Where; a wide one shows more columns.
        comparison: What to show.
    """
    columns = fitting(_COLUMNS, console)
    table = _table("run")
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    for title, status in zip(comparison.titles, comparison.statuses, strict=True):
        cells = [column.cell(status) for column in columns]
        style = "red" if status.bad else ""
        table.add_row(Text(printable(title)), *cells, style=style)
    console.print(table)
    console.print(
        Text(f"loss: mean of the last {TAIL} records; best: the lowest such mean", style="dim")
    )
    for title, status in zip(comparison.titles, comparison.statuses, strict=True):
        if status.state in BROKEN:
            console.print(Text(f"{printable(title)}: {say_state(status)}", style="red"))
    if comparison.differences:
        console.print()
        _show_differences(console, comparison)
    elif len(comparison.titles) > 1:
        console.print(Text("The recorded configurations are the same.", style="dim"))


def _show_differences(console: Console, comparison: Comparison) -> None:
    console.print(Text("configured differently", style="dim"))
    table = _table("setting")
    table.columns[0].no_wrap = True
    for title in comparison.titles:
        short = title.rstrip("/").rpartition("/")[2]
        table.add_column(Text(printable(short)), overflow="fold")
    for name, values in comparison.differences.items():
        table.add_row(Text(printable(name)), *(Text(_value(value)) for value in values))
    console.print(table)


def _table(first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    return table


def _value(value: object) -> str:
    return "-" if value is None else printable(json.dumps(plain(value), ensure_ascii=False))
