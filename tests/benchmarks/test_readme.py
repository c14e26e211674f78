"""The table of the README is the one of the committed results."""

from __future__ import annotations

import json

from benchmarks.readme import README, RESULTS, digest, replaced


def test_the_readme_quotes_the_committed_results():
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = README.read_text(encoding="utf-8")
    assert result["complete"]
    assert replaced(text, digest(result)) == text
