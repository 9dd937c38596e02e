"""What belongs to one kind of accelerator is in one module: the rest of the package names none."""

from __future__ import annotations

import re

from support import ROOT

PLACE = "system/accelerator.py"
# `torch.backends.cuda` holds switches that every kind shares; they are set wherever zoft runs.
NAMED = re.compile(r"\btorch\.(cuda|xpu|mps)\b|import cuda\b|[\"'](cuda|xpu|mps)(:\d+)?[\"']")


def named(text: str) -> list[str]:
    return [found[0] for found in NAMED.finditer(text)]


def test_no_other_module_names_a_kind_of_accelerator() -> None:
    package = ROOT / "zoft"
    found = {
        str(path.relative_to(package)): named(path.read_text(encoding="utf-8"))
        for path in package.rglob("*.py")
    }
    assert PLACE in found
    assert {path: words for path, words in found.items() if words and path != PLACE} == {}


def test_what_names_one_would_be_found() -> None:
    source = "torch.cuda.synchronize(); from torch import cuda; x.to(\"cuda:0\"); y == 'xpu'"
    assert len(named(source)) == 4
    assert named("torch.backends.cuda.matmul; CUDA_CONTEXT") == []
