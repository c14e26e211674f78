"""The rows of the contract suite cover every pair that any row can have."""

from __future__ import annotations

from itertools import combinations, product

from tests.contract.pairwise import cover


def test_every_possible_pair_is_covered_and_no_impossible_row_is_made():
    dimensions = {"a": [0, 1, 2, 3], "b": [0, 1, 2], "c": [False, True], "d": [0, 1, 2]}

    def possible(row):
        return not (row.get("a") == 3 and row.get("c")) and not (
            row.get("b") == 0 and row.get("d") == 2
        )

    rows = cover(dimensions, possible)
    assert all(possible(row) for row in rows)
    every = [dict(zip(dimensions, values, strict=True)) for values in product(*dimensions.values())]
    valid = [row for row in every if possible(row)]
    for a, b in combinations(dimensions, 2):
        assert {(r[a], r[b]) for r in rows} == {(r[a], r[b]) for r in valid}
    assert len(rows) < len(valid)
