"""What code and pages cite as docs/PAGE.md#anchor is a heading of that page."""

from __future__ import annotations

import re

import pytest
from markdown.extensions.toc import slugify
from support import ROOT

FOLDERS = ("zoft", "benchmarks", "scripts", "tests", "docs")
SOURCES = [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".md", ".sh") and path.name != "test_citations.py"
] + sorted(ROOT.glob("*.md"))
CITED = re.compile(r"docs/([\w-]+\.md)#([\w-]+)")


def anchors(page: str) -> set[str]:
    text = re.sub(
        r"^```.*?^```", "", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.M | re.S
    )
    return {slugify(heading, "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def citations() -> set[tuple[str, str]]:
    return {found for path in SOURCES for found in CITED.findall(path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize(("page", "anchor"), sorted(citations()))
def test_a_cited_section_exists(page: str, anchor: str) -> None:
    assert anchor in anchors(page)


def test_code_cites_the_methods_it_implements() -> None:
    cited = {anchor for page, anchor in citations() if page == "methods.md"}
    assert {"projected-gradients", "random-numbers", "r-adazo", "scalar-moments"} <= cited


@pytest.mark.parametrize("name", ["METHODS", "ARCHITECTURE"])
def test_no_source_cites_a_document_that_is_not_in_the_repository(name: str) -> None:
    cites = re.compile(rf"\b{name}\b(?! = |\.get)")  # but for a constant of this name
    assert not [
        str(path.relative_to(ROOT)) for path in SOURCES if cites.search(path.read_text("utf-8"))
    ]
