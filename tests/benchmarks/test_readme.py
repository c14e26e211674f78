"""The figures of the README are those of the committed results."""

from __future__ import annotations

import json

import pytest

from benchmarks.readme import BLOCKS, README, RESULTS, updated


def test_the_readme_quotes_the_committed_results():
    text = README.read_text(encoding="utf-8")
    assert updated(text) == text


@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_quoted_is_a_complete_run(name):
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert result["complete"]
