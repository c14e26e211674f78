"""What README and docs quote is what the committed results and the code say."""

from __future__ import annotations

import json

import pytest

from benchmarks.readme import PAGES, RESULTS, TABLES, updated


@pytest.mark.parametrize("page", dict.fromkeys((*PAGES, *TABLES)), ids=lambda page: page.name)
def test_every_page_quotes_the_committed_results_and_the_code(page):
    text = page.read_text(encoding="utf-8")
    assert updated(text, page) == text


@pytest.mark.parametrize("name", [name for blocks in PAGES.values() for name in blocks])
def test_what_is_quoted_is_a_complete_run(name):
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert result["complete"]
