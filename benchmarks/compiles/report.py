"""What the compiler made of every way to compile a loop, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.report import facts, grid, heading
from benchmarks.compiles.cells import MODES

_PREFACE = """\
Every way to compile a loop, {steps:,} steps each: **graphs made / of these \
after ten steps / graph breaks**, ours first, bare torch behind it. Half-way a batch is \
NaN: ours left it out in every cell, or the cell says so.

`update` is `compile=True` (bare: `torch.compile(opt.step)`), `step` is \
`torch.compile(opt.step)`, `model` is `torch.compile(model)`, `whole step` is all from \
`zero_grad()` to `step()` in one function.
"""


def worse_than_bare(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return where ours breaks or recompiles what torch alone does not, or takes a NaN.

    ``update`` is compared with zero: it is ours alone.
    """
    return _compared(cells, zeros=True)


def more_than_bare(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return where both break or recompile, and ours does so more often."""
    return _compared(cells, zeros=False)


def _compared(cells: Sequence[Mapping[str, Any]], *, zeros: bool) -> list[str]:
    found = []
    bare = {_key(cell): cell for cell in cells if not cell["wrapped"]}
    for cell in cells:
        other = bare[_key(cell)]
        if not cell["wrapped"] or other["error"]:
            continue
        where = ", ".join(_key(cell))
        ours_alone = cell["mode"] == "update"
        if zeros and cell["error"]:
            found.append(f"{where}: {cell['error']}")
        if zeros and not cell["skips"]:
            found.append(f"{where}: the NaN was taken")
        for what in ("breaks", "recompiled"):
            least = 0 if ours_alone else other[what]
            if cell[what] > least and zeros is (least == 0):
                found.append(f"{where}: {cell[what]} {what}, {other[what]} without us")
    return found


def render(result: Mapping[str, Any]) -> str:
    """Return the Markdown of a result, what ``compiles.json`` holds."""
    cells = {(*_key(cell), cell["wrapped"]): cell for cell in result["cells"]}
    rows = dict.fromkeys((cell["optimizer"], cell["rate"]) for cell in result["cells"])
    lines = [
        heading("Graphs, recompilations, breaks", "compiles"),
        _PREFACE.format(**result),
        facts(result),
        *grid(
            ("optimizer", "learning rate", *MODES),
            ([*row, *(_both(cells, *row, mode) for mode in MODES)] for row in rows),
        ),
    ]
    return "\n".join([*lines, "", digest(result), ""])


def digest(result: Mapping[str, Any]) -> str:
    """Return what the documentation quotes: where ours is worse than bare torch."""
    if worse := worse_than_bare(result["cells"]):
        lines = ["Worse than bare torch:", "", *(f"- {line}" for line in worse)]
    else:
        lines = ["No break and no recompilation where bare torch has none, and no NaN taken."]
    if more := more_than_bare(result["cells"]):
        lines += ["", "More of them than bare torch, which has some:", ""]
        lines += [f"- {line}" for line in more]
    return "\n".join(lines)


def _both(cells: Mapping[Any, Mapping[str, Any]], optimizer: str, rate: str, mode: str) -> str:
    ours, bare = (_told(cells[optimizer, rate, mode, wrapped]) for wrapped in (True, False))
    return f"{ours} ({bare})"


def _key(cell: Mapping[str, Any]) -> tuple[str, str, str]:
    return cell["optimizer"], cell["rate"], cell["mode"]


def _told(cell: Mapping[str, Any]) -> str:
    if cell["error"]:
        return "error"
    taken = "" if cell["skips"] or not cell["wrapped"] else ", NaN taken"
    return f"{cell['graphs']} / {cell['recompiled']} / {cell['breaks']}{taken}"
