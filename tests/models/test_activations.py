from __future__ import annotations

import pytest
import torch
from support import tiny
from support.autograd import kept_bytes
from torch import nn
from transformers import Gemma2Config, PreTrainedModel

from zoft.models.activations import trace_pass, trace_saved
from zoft.models.meta import build_outline
from zoft.recipe.sections.tune import TuneSection

ROWS, LENGTH = 4, 32


def outline_of(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> nn.Module:
    return build_outline(model.config, TuneSection(), stored=dtype)


def test_a_mlp_is_what_lives_at_once() -> None:
    """OPT: the stream, its norm, positions; then fc1's output and its ReLU, four times as wide."""
    live = trace_pass(outline_of(tiny.opt()), ROWS, LENGTH).live
    tokens, hidden, inner = ROWS * LENGTH, 32, 64
    assert tokens * (hidden + 2 * inner) * 4 <= live <= tokens * (6 * hidden + 2 * inner) * 4


@pytest.mark.parametrize("model", [tiny.llama(), tiny.opt(), tiny.gpt2(), tiny.qwen2()])
def test_it_grows_with_the_rows_and_not_with_the_square_of_the_length(
    model: PreTrainedModel,
) -> None:
    outline = outline_of(model)
    one, rows, long = (trace_pass(outline, *x).live for x in ((2, 16), (4, 16), (2, 32)))
    assert rows == pytest.approx(2 * one, rel=0.1)
    assert long == pytest.approx(2 * one, rel=0.1)


def test_half_the_width_half_the_bytes() -> None:
    wide, narrow = (
        trace_pass(outline_of(tiny.opt(), dtype), ROWS, LENGTH).live
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert narrow == pytest.approx(wide / 2, rel=0.1)


def test_whether_the_head_ends_the_model() -> None:
    assert trace_pass(outline_of(tiny.llama()), 1, 4).bare_head
    assert trace_pass(outline_of(tiny.opt()), 1, 4).bare_head
    gemma = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, final_logit_softcapping=30.0,
    )  # fmt: skip
    softcap = build_outline(gemma, TuneSection(), stored=torch.float32)
    assert not trace_pass(softcap, 1, 4).bare_head


def test_what_back_propagation_keeps_is_what_autograd_packs() -> None:
    names = {name for name, _ in tiny.opt().named_parameters()}
    saved = trace_saved(outline_of(tiny.opt()), names, ROWS, LENGTH)
    assert saved == pytest.approx(kept_bytes(tiny.opt(), ROWS, LENGTH), rel=0.1)


def test_a_frozen_model_keeps_less() -> None:
    tune = TuneSection(method="lora")
    outline = build_outline(tiny.opt().config, tune, stored=torch.float32)
    names = {name for name, _ in outline.named_parameters()}
    adapter = {name for name in names if "lora_" in name}
    least, most = (trace_saved(outline, x, ROWS, LENGTH) for x in (adapter, names))
    assert 0 < least < most
    assert not any(p.requires_grad for p in outline.parameters())
