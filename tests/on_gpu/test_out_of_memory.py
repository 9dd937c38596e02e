"""On a GPU: its allocator's refusal becomes one line with overrides, and exit code 5."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import small

from zoft.cli.main import main

pytestmark = pytest.mark.gpu


@pytest.fixture
def full_card(gpu: torch.device) -> Iterator[torch.device]:
    """A card that says it has room, and gives none to this process."""
    module = torch.get_device_module(gpu)
    torch.accelerator.empty_cache()
    module.set_per_process_memory_fraction(1e-6, gpu)
    yield gpu
    module.set_per_process_memory_fraction(1.0, gpu)


def test_the_message_names_overrides(
    full_card: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small.write(tmp_path)
    assert main(["train", str(recipe), f"device={full_card}"]) == 5
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert line.startswith("error: out of memory: ")
    assert re.search(r"(would fit|try|makes it fit).*[a-z]+\.[a-z_]+=", line), line
    assert not (tmp_path / "run").exists()
