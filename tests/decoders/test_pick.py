"""One decoder of every kind against a reference by hand; `scripts/decoders.sh` takes all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.decoders import probes, runs
from support.decoders.examine import check_full, check_lora
from support.decoders.findings import Findings
from support.decoders.models import build, wide_mamba
from support.decoders.probes import LONG, Subject

from zoft.recipe.sections.tune import TuneSection

PICK = (
    "llama", "gpt2", "opt", "gemma3_text", "qwen3_moe", "gpt_oss", "mamba", "mamba2",
    "deepseek_v3", "falcon_h1", "lfm2_moe",
)  # fmt: skip


@pytest.mark.parametrize("name", PICK)
def test_probes_and_steps_of_all_weights_are_as_by_hand(name: str, tmp_path: Path) -> None:
    found = Findings()
    build(name).save_pretrained(tmp_path)
    assert check_full(found, tmp_path, name)
    assert found.of("skipped", "refused", "crash", "wrong") == []
    assert len(found.of("ok")) > 20  # all were made


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "mamba2"])
def test_probes_and_steps_of_lora_are_as_by_hand(name: str, tmp_path: Path) -> None:
    found = Findings()
    build(name).save_pretrained(tmp_path)
    check_lora(found, tmp_path, name)
    assert found.of("skipped", "refused", "crash", "wrong") == []
    assert len(found.of("ok")) > 15


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_runs_are_as_by_hand(name: str, tmp_path: Path) -> None:
    found = Findings()
    with probes.using_threads(1):
        runs.check(found, tmp_path, build(name))
    assert found.of("unsaid", "crash", "wrong") == []
    assert found.passed("full run: final in plain transformers")


def test_a_wide_mamba_on_two_threads_is_as_by_hand() -> None:
    """As wide as mamba-130m, rows of 62 tokens: enough for torch's threads to share a product, whose
    input is a view."""
    subject = Subject.of(wide_mamba(), TuneSection())
    with probes.using_threads(2):
        probes.check_slopes(subject, "rank1", "example", paired=False, task="lm", examples=LONG)
