"""What the reports of all benchmarks are made of: Markdown tables, and where it was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Columns = Mapping[str, Callable[[Any], str]]

MET = {True: "met", False: "**missed**", None: "not measured"}
"""What is said of a target."""


def heading(title: str, benchmark: str, results: str | None = None) -> str:
    """Return the title of a report, and the comment which says how it was made.

    Args:
        title: In plain words.
        benchmark: The name of its package.
        results: The stem of its result files; ``None`` if it is the same.
    """
    return (
        f"# {title}\n\n<!-- Generated from `{results or benchmark}.json` by "
        f"`python -m benchmarks.{benchmark}`; do not edit. -->\n"
    )


def facts(result: Mapping[str, Any], *more: str) -> str:
    """Return what ran, when, on which versions; a warning if it was not the complete run.

    Args:
        result: What the result file holds.
        more: Said as well, behind the versions.
    """
    where = result["environment"]
    seeds = [f"seed {result['seed']}"] if "seed" in result else []
    if "seeds" in result:
        seeds = [f"seeds {' '.join(str(seed) for seed in result['seeds'])}"]
    ran = ", ".join([f"`{result['command']}`", *seeds, where["date"]])
    versions = f"stableopt {where['stableopt']} ({where['commit'] or 'no commit'})"
    text = ", ".join([f"{ran}: {versions}", f"torch {where['torch']}", *more]) + "."
    if not result["complete"]:
        text += "\n\n**Not the complete run: these figures are not to be quoted.**"
    return text + "\n"


def machine(result: Mapping[str, Any]) -> str:
    """Return Python, system and processor."""
    where = result["environment"]
    return "Python {python}, {system}, {cpu}, {cores} cores".format(**where)


def table(columns: Columns, rows: Iterable[Any]) -> str:
    """Return a Markdown table.

    Args:
        columns: By title, what returns the cell of a row.
        rows: Of any kind.
    """
    return (
        "\n".join(grid(columns, ([cell(row) for cell in columns.values()] for row in rows))) + "\n"
    )


def grid(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a Markdown table of given cells."""
    head = list(head)
    titles = "|".join(f" {title}{' ' * bool(title.strip())}" for title in head)
    return [f"|{titles}|", "|---" * len(head) + "|", *map(_line, rows)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def pair(figures: Mapping[str, float] | None, separator: str = " / ") -> str:
    """Return median and maximum; a dash for none."""
    return "-" if figures is None else f"{figures['median']:g}{separator}{figures['max']:g}"


def middle(figures: Mapping[str, float] | None, form: str) -> str:
    """Return the median in bold, and the quartiles; a dash for none.

    Args:
        figures: Of :func:`~benchmarks.common.figures.quartiles`.
        form: A format string of one number.
    """
    if figures is None:
        return "-"
    low, median, high = (form.format(figures[key]) for key in ("p25", "median", "p75"))
    return f"**{median}** ({low} … {high})"
