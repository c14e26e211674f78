"""Rows that cover every possible pair of values of any two dimensions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Pair = tuple[str, int, str, int]
Alike = Callable[[str, Any, str], str | None]


def cover(
    dimensions: Mapping[str, Sequence[Any]],
    possible: Callable[[Row], bool],
    seed: int = 0,
    candidates: int = 20,
    alike: Alike = lambda name, value, other: None,
) -> list[Row]:
    """Return rows that cover every pair of values that some possible row has.

    Greedy: each row is built around one pair that is still missing, and is the one out of
    ``candidates`` random completions that covers the most missing pairs.

    Args:
        dimensions: The values of each dimension.
        possible: Judges a partial row; must stay true when values are taken away.
        seed: Seed of the choice.
        candidates: How many completions are tried for each row.
        alike: Given a dimension, a value and another dimension, returns what several values have in
            common that need not be paired with the values of the other each; ``None`` if it does.
    """
    rng = random.Random(seed)
    first = _first_alike(dimensions, alike)
    missing = dict.fromkeys(_paired(pair, first) for pair in _pairs(dimensions))
    rows = []
    while missing:
        a, i, b, j = next(iter(missing))
        del missing[a, i, b, j]
        start = {a: i, b: j}
        found = [r for _ in range(candidates) if (r := _complete(start, dimensions, possible, rng))]
        if not found:
            continue  # no row can have this pair
        best = max(found, key=lambda row: sum(_paired(p, first) in missing for p in _pairs_of(row)))
        for pair in _pairs_of(best):
            missing.pop(_paired(pair, first), None)
        rows.append(_values(best, dimensions))
    return rows


def _first_alike(
    dimensions: Mapping[str, Sequence[Any]], alike: Alike
) -> dict[tuple[str, int, str], int]:
    """Return the first of the values that are alike, for every value and other dimension."""
    first = {}
    for a, values in dimensions.items():
        for b in dimensions:
            seen: dict[Any, int] = {}
            for i, value in enumerate(values):
                common = alike(a, value, b)
                first[a, i, b] = i if common is None else seen.setdefault(common, i)
    return first


def _paired(pair: Pair, first: Mapping[tuple[str, int, str], int]) -> Pair:
    a, i, b, j = pair
    return a, first[a, i, b], b, first[b, j, a]


def _pairs(dimensions: Mapping[str, Sequence[Any]]) -> Iterator[Pair]:
    names = list(dimensions)
    for n, a in enumerate(names):
        for b in names[n + 1 :]:
            for i in range(len(dimensions[a])):
                for j in range(len(dimensions[b])):
                    yield a, i, b, j


def _pairs_of(row: Mapping[str, int]) -> Iterator[Pair]:
    names = list(row)
    for n, a in enumerate(names):
        for b in names[n + 1 :]:
            yield a, row[a], b, row[b]


def _complete(
    start: dict[str, int],
    dimensions: Mapping[str, Sequence[Any]],
    possible: Callable[[Row], bool],
    rng: random.Random,
) -> dict[str, int] | None:
    row = dict(start)
    if not possible(_values(row, dimensions)):
        return None
    for name, values in dimensions.items():
        if name in row:
            continue
        order = rng.sample(range(len(values)), len(values))
        fitting = (i for i in order if possible(_values({**row, name: i}, dimensions)))
        choice = next(fitting, None)
        if choice is None:
            return None
        row[name] = choice
    return {name: row[name] for name in dimensions}


def _values(row: Mapping[str, int], dimensions: Mapping[str, Sequence[Any]]) -> Row:
    return {name: dimensions[name][i] for name, i in row.items()}
