"""Count graphs, recompilations and graph breaks of every way to compile a training loop.

Run as ``python -m benchmarks.compiles``; see ``--help``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.command import results_directory, silent, torch_threads
from benchmarks.compile_cells import MODES, OPTIMIZERS, RATES, run_cell
from benchmarks.environment import describe_environment
from benchmarks.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STEPS = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, write ``compiles.json`` and ``compiles.md``, and print the latter.

    Args:
        arguments: The command line; ``None`` for that of the process.

    Returns:
        The exit status: 0 if there are no breaks and recompilations where bare torch has none,
        and all of ours leave out the NaN.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    names = options.optimizers or list(OPTIMIZERS)
    wanted = [
        (name, rate, mode, wrapped)
        for name in names
        for rate in RATES
        for mode in MODES
        for wrapped in (False, True)
    ]
    cells = []
    with torch_threads(), silent(), warnings.catch_warnings(), progress_bar() as bar:
        warnings.simplefilter("ignore")
        task = bar.add_task("cells", total=len(wanted))
        for name, rate, mode, wrapped in wanted:
            cell = run_cell(name, rate, mode, wrapped=wrapped, steps=options.steps)
            cells.append(cell.to_dict())
            bar.advance(task)
    complete = options.steps == STEPS and not options.optimizers
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.compiles", *arguments]),
        "complete": complete,
        "steps": options.steps,
        "environment": describe_environment(),
        "cells": cells,
    }
    text = render(result)
    directory: Path = options.output or results_directory(complete=complete)
    directory.mkdir(parents=True, exist_ok=True)
    content = json.dumps(result, indent=1) + "\n"
    (directory / "compiles.json").write_text(content, encoding="utf-8")
    (directory / "compiles.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if not worse_than_bare(cells) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiles", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each run")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, help="default: all of them")
    parser.add_argument("--output", type=Path, help="directory of the result files")
    return parser


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
    """Return the Markdown of a result.

    Args:
        result: What ``compiles.json`` holds.
    """
    environment = result["environment"]
    lines = [
        "# Graphs, recompilations, breaks",
        "",
        "<!-- Generated from `compiles.json` by `python -m benchmarks.compiles`; do not edit. -->",
        "",
        f"Every way to compile a loop, {result['steps']:,} steps each: **graphs made / of these "
        "after ten steps / graph breaks**, ours first, bare torch behind it. Half-way a batch is "
        "NaN: ours left it out in every cell, or the cell says so.",
        "",
        "`update` is `compile=True` (bare: `torch.compile(opt.step)`), `step` is "
        "`torch.compile(opt.step)`, `model` is `torch.compile(model)`, `whole step` is all from "
        "`zero_grad()` to `step()` in one function.",
        "",
        f"`{result['command']}`, {environment['date']}: stableopt {environment['stableopt']} "
        f"({environment['commit'] or 'no commit'}), torch {environment['torch']}.",
    ]
    if not result["complete"]:
        lines += ["", "**Not the complete run: these figures are not to be quoted.**"]
    lines += ["", "| optimizer | learning rate | " + " | ".join(MODES) + " |"]
    lines += ["|---|---|" + "---|" * len(MODES)]
    cells = {(*_key(cell), cell["wrapped"]): cell for cell in result["cells"]}
    rows = dict.fromkeys((cell["optimizer"], cell["rate"]) for cell in result["cells"])
    for optimizer, rate in rows:
        told = [_told(cells[optimizer, rate, mode, True]) for mode in MODES]
        bare = [_told(cells[optimizer, rate, mode, False]) for mode in MODES]
        pairs = [f"{ours} ({other})" for ours, other in zip(told, bare, strict=True)]
        lines.append(f"| {optimizer} | {rate} | " + " | ".join(pairs) + " |")
    worse = worse_than_bare(result["cells"])
    if worse:
        lines += ["", "Worse than bare torch:", "", *(f"- {line}" for line in worse)]
    else:
        lines += ["", "No break and no recompilation where bare torch has none, and no NaN taken."]
    if more := more_than_bare(result["cells"]):
        lines += ["", "More of them than bare torch, which has some:", ""]
        lines += [f"- {line}" for line in more]
    return "\n".join([*lines, ""])


def _key(cell: Mapping[str, Any]) -> tuple[str, str, str]:
    return cell["optimizer"], cell["rate"], cell["mode"]


def _told(cell: Mapping[str, Any]) -> str:
    if cell["error"]:
        return "error"
    taken = "" if cell["skips"] or not cell["wrapped"] else ", NaN taken"
    return f"{cell['graphs']} / {cell['recompiled']} / {cell['breaks']}{taken}"


if __name__ == "__main__":
    sys.exit(main())
