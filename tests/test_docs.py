"""README and docs: what they link to exists, and they show nothing private."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.readme import RESULTS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"```.*?```|`[^`\n]*`|<!--.*?-->", re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Return the fragments of a page, as mkdocs makes them of headings and of entries."""
    text = page.read_text(encoding="utf-8")
    entries = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return entries | {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not fragment or fragment in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_private_is_shown(page):
    assert not re.findall(r"\b(?:opt|optimizer|model)\._\w+", page.read_text(encoding="utf-8"))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_every_page_is_in_the_navigation():
    nav = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert nav == {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}


def test_the_picture_of_learning_rates_is_that_of_the_benchmark():
    """``make gallery`` copies it."""
    copy = ROOT / "docs" / "gallery" / "learning-rate.svg"
    assert copy.read_bytes() == (RESULTS / "lr_sensitivity.svg").read_bytes()
