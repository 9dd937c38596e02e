"""docs/journal-format.md: its reader prints what it says, and that is what zoft computes."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import ROOT
from support.directions import direction
from support.optimizers import SECTION

from zoft.engine.optimizers.optimizer import optimizer_for
from zoft.engine.optimizers.update import Resident, Tuned
from zoft.engine.probe.structures.table import values_of
from zoft.runs.journal import NEEDED, parse

PAGE = (ROOT / "docs" / "journal-format.md").read_text(encoding="utf-8")
[CODE] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
[OUTPUT] = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


def executed() -> tuple[SimpleNamespace, str]:
    """The names of the page's program, and what it printed."""
    lines: list[str] = []
    names: dict[str, Any] = {"print": lambda *words: lines.append(" ".join(map(str, words)))}
    exec(CODE, names)
    return SimpleNamespace(**names), "".join(f"{line}\n" for line in lines)


def test_the_example_prints_what_the_page_says() -> None:
    assert executed()[1] == OUTPUT


def test_zoft_computes_the_same() -> None:
    reader, printed = executed()
    header, entries, _, _ = parse(Path("journal.jsonl"), reader.JOURNAL.encode())
    assert set(NEEDED) <= set(header)
    start = {"a.weight": [0.5, -0.25, 1.0, 0.0, 2.0, -1.5], "a.bias": [1.0, 0.0, -1.0]}
    tuned = [
        Tuned(name, torch.nn.Parameter(torch.tensor(start[name]).view(shape)), number, decays)
        for name, number, shape, decays in header["parameters"]
    ]
    settings = SECTION.validate_python(header["optimizer"])
    optimizer = optimizer_for(settings, header["seed"], Resident(tuned))
    for entry in entries:
        if entry.measurement.finite:
            optimizer.update(entry.measurement, entry.lr)
    for weight in tuned:
        words = (struct.pack(">f", x).hex() for x in weight.data.view(-1).tolist())
        assert " ".join([weight.name, *words]) in printed


@pytest.mark.parametrize("shape", [(70, 131), (9000,)])
def test_the_page_draws_zofts_directions(shape: tuple[int, ...]) -> None:
    """Across tiles, and at a step and a direction that need more than a few bits."""
    reader, _ = executed()
    seed, step, k, number = 2**32 - 3, 70_000, 1027, 0xDEADBEEF
    z = values_of(direction(seed, step, k, "rank1"), torch.zeros(shape), number)
    flat = z.view(-1).int().tolist()
    for element in range(0, len(flat), 97):
        assert flat[element] == reader.z(seed, step, number, shape, k, element)
