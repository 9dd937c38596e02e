"""One decoder of every kind against a reference by hand; `scripts/decoders.sh` takes all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.decoders import probes, runs
from support.decoders.examine import examine_adapted
from support.decoders.findings import Findings
from support.decoders.models import build
from support.decoders.probes import LONG, Subject
from transformers import MambaConfig, MambaForCausalLM

from zoft.recipe.sections.tune import TuneSection

PICK = (
    "llama", "gpt2", "opt", "gemma3_text", "qwen3_moe", "gpt_oss", "mamba", "mamba2", "dbrx",
    "deepseek_v3", "falcon_h1", "lfm2_moe",
)  # fmt: skip
FULL = TuneSection()


@pytest.mark.parametrize("name", PICK)
def test_probes_and_steps_are_as_by_hand(name: str) -> None:
    found, subject = Findings(), Subject.of(build(name), FULL)
    probes.check(found, "full", subject)
    examine_adapted(found, build(name))
    assert not found.of("refused", "crash", "wrong")
    assert len(found.of("ok")) > 30  # all were made


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_runs_are_as_by_hand(name: str, tmp_path: Path) -> None:
    found = Findings()
    runs.check(found, tmp_path, build(name))
    assert not found.of("unsaid", "crash", "wrong")
    assert found.passed("full run: final in plain transformers")


def test_a_wide_mamba_on_two_threads_is_as_by_hand() -> None:
    """As wide as mamba-130m, rows of 62 tokens: enough for torch's threads to share a product, whose
    input is a view."""
    config = MambaConfig(hidden_size=768, num_hidden_layers=2, vocab_size=288, use_cache=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MambaForCausalLM(config).eval().requires_grad_(False)
    subject = Subject.of(model, FULL)
    with probes.using_threads(2):
        probes.check_slopes(subject, "rank1", "example", paired=False, task="lm", examples=LONG)
