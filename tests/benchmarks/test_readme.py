"""What README and docs quote is what the committed results and the code say."""

from __future__ import annotations

import json

import pytest

from benchmarks.readme import DIGESTS, PAGES, RESULTS, TABLES, quoted, updated

QUOTED = {page: quoted(page.read_text(encoding="utf-8")) for page in PAGES}


@pytest.mark.parametrize(
    "page", [page for page, names in QUOTED.items() if names], ids=lambda page: page.name
)
def test_every_page_quotes_the_committed_results_and_the_code(page):
    text = page.read_text(encoding="utf-8")
    assert updated(text) == text
    assert text.count(": python -m benchmarks.readme -->") == len(QUOTED[page])


def test_every_block_is_on_one_page():
    names = [name for names in QUOTED.values() for name in names]
    assert sorted(names) == sorted({*DIGESTS, *TABLES})


@pytest.mark.parametrize("name", DIGESTS)
def test_what_is_quoted_is_a_complete_run(name):
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert result["complete"]


def test_a_block_without_a_source_is_refused():
    with pytest.raises(KeyError, match="nothing"):
        updated("<!-- nothing: python -m benchmarks.readme -->\nold\n<!-- /nothing -->")
