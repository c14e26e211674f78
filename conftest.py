"""Run every Python block of the README and of the docs as a test."""

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*/*.md", "docs/*.md"],
).pytest()

collect_ignore = ["docs/example_sections.py"]
"""It is for mkdocs."""

OTHERS_WARN = {"trainers.md", "optuna.md", "trackers.md"}
"""Pages on which libraries warn of what they do to each other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let warnings of trainers about themselves and each other pass."""
    for item in items:
        if item.path.name in OTHERS_WARN:
            item.add_marker(pytest.mark.filterwarnings("ignore::FutureWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))
