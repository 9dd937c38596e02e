"""mkdocs.yml builds a site of docs/, and fails for what leads nowhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of what the site is built from."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    return tmp_path


def build(site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"], cwd=site, capture_output=True, text=True
    )


def test_the_pages_become_a_site(site: Path) -> None:
    done = build(site)
    assert done.returncode == 0, done.stderr
    assert "optimizer.lr" in (site / "site" / "recipe-reference" / "index.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("page", "text", "said"),
    [
        ("data.md", "[a link](nowhere.md)", "'nowhere.md'"),
        ("data.md", "[a link](train.md#nowhere)", "'#nowhere'"),
        ("new.md", "A page that no menu names.", "new.md"),
    ],
    ids=["dead link", "dead anchor", "page without an entry"],
)
def test_what_leads_nowhere_fails_the_build(site: Path, page: str, text: str, said: str) -> None:
    with (site / "docs" / page).open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")
    done = build(site)
    assert done.returncode != 0
    assert said in done.stderr
