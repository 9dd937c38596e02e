"""Experts whose weights have rank-1 directions: as models whose weights were moved, at no copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support import tiny
from support.directions import direction
from support.twins import moved, row_by_row, view_of
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from zoft.engine.probe.forwards.experts import ExpertsForward
from zoft.engine.probe.rows import assign_rows
from zoft.engine.probe.structures.table import layout_of, structure_of, values_of

SMALL: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "num_experts_per_tok": 2,
}  # fmt: skip
Z = direction(5, 3, 2, "rank1")
ROWS, WIDTH, EPSILON = 4, 9, 2e-2
INPUT = torch.arange(ROWS * WIDTH).view(ROWS, WIDTH) * 7 % tiny.VOCABULARY
POSITIONS = torch.tensor([3, 8 + 9, 7 + 18, 5 + 27, 8 + 27])


def qwen3_moe(experts: int = 4, width: int = 24) -> Any:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        **SMALL, intermediate_size=48, moe_intermediate_size=width, num_experts=experts,
        decoder_sparse_step=1, norm_topk_prob=True,
    )  # fmt: skip
    model: Any = Qwen3MoeForCausalLM(config)
    return model.eval()


def gpt_oss() -> Any:
    """Transposed tensors, a gate of its own between interleaved columns, a bias for each expert."""
    torch.manual_seed(0)
    config = GptOssConfig(
        **SMALL, intermediate_size=24, num_local_experts=4, layer_types=["full_attention"] * 2
    )
    config._attn_implementation = "eager"
    model: Any = GptOssForCausalLM(config)
    model.eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("_proj_bias", "sinks")):
            parameter.data.normal_(0, 0.3)
    return model


MODELS: dict[str, Callable[[], Any]] = {"qwen3-moe": qwen3_moe, "gpt-oss": gpt_oss}


@pytest.mark.parametrize("scales", [(EPSILON,), (EPSILON, -EPSILON)], ids=["single", "paired"])
@pytest.mark.parametrize(
    ("examples", "count"), [(None, None), ([0, 1, 2, 3], 4), ([5, 5, 22, 22], 24)]
)
@pytest.mark.parametrize("name", MODELS)
def test_a_pass_is_that_of_weights_which_were_moved(
    name: str, examples: Sequence[int] | None, count: int | None, scales: tuple[float, ...]
) -> None:
    model = MODELS[name]()
    view, _ = view_of(model)
    forwards = [view._forwards.of(leaf) for leaf in view.leaves]
    assert sum(isinstance(x, ExpertsForward) for x in forwards) == 2
    expected = row_by_row(model, None, Z, scales, INPUT, examples, count)
    expected = expected.view(len(scales), ROWS * WIDTH, -1)[:, POSITIONS].flatten(0, 1)
    with view.probe(Z, *scales, examples=count):
        found = view.logits(INPUT, POSITIONS, examples=examples)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with view.plain():
        still = view.logits(INPUT, POSITIONS).repeat(len(scales), 1)
    assert (still - expected).abs().max() > 100 * (found - expected).abs().max()


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_low_precision_rounds_products_and_not_the_perturbation(
    name: str, compute: torch.dtype
) -> None:
    """What both signs differ by, on the average, is what it is in float32."""
    model = MODELS[name]()
    layer = model.model.layers[0].mlp.experts
    for parameter in model.parameters():
        parameter.data = parameter.data.to(compute).float()
    view, _ = view_of(model, None, compute)
    [leaf] = [leaf for leaf in view.leaves if leaf.module is layer]
    x = torch.randn(2 * 40, 32, generator=torch.Generator().manual_seed(1)).to(compute)
    x[40:] = x[:40]
    index = torch.arange(2 * 40 * 2).view(80, 2) % 4
    index[40:] = index[:40]
    weights = torch.full((80, 2), 0.5).to(compute)
    scale = 1e-3
    both: list[Any] = [moved(model, None, Z, sign * scale) for sign in (1, -1)]
    twins = [twin.model.layers[0].mlp.experts for twin in both]
    with torch.no_grad():
        exact = [t(x[:40].float(), index[:40], weights[:40].float()) for t in twins]
        with view.probe(Z, scale, -scale):
            rows = assign_rows(2, (0, 0), (scale, -scale), torch.device("cpu"))
            with view.parameters.narrowed(rows):
                plus, minus = leaf.module(x, index, weights).float().chunk(2)
    assert plus.dtype == torch.float32
    wanted, got = exact[0] - exact[1], plus - minus
    assert (got * wanted).sum() / (wanted * wanted).sum() == pytest.approx(1, abs=0.1)


def test_a_probe_copies_no_experts() -> None:
    view, _ = view_of(qwen3_moe(experts=16))
    with view.probe(Z, EPSILON, -EPSILON, examples=ROWS):
        view.logits(INPUT, POSITIONS)
    of_one = 2 * 24 * 32 * 4
    assert view.parameters.probe.scratch._peak < 4 * of_one


def test_dense_directions_take_the_modules_own_forward() -> None:
    z, model = direction(5, 3, 2, "signs"), qwen3_moe()
    view, _ = view_of(model)
    with view.probe(z, EPSILON):
        found = view.logits(INPUT, POSITIONS)
    wanted = row_by_row(model, None, z, [EPSILON], INPUT)
    torch.testing.assert_close(found, wanted[POSITIONS], atol=1e-5, rtol=1e-5)


def test_every_expert_has_one_pair_of_vectors() -> None:
    z = values_of(Z, torch.empty(5, 18, 24), 9)
    for expert in z:
        assert torch.equal(expert, expert[:, :1] * expert[:1] * expert[0, 0])
    assert len({tuple((expert[0] * expert[0, 0]).tolist()) for expert in z}) == 5


def test_a_convolution_has_dense_directions() -> None:
    rank1 = Z.directions.structure
    assert structure_of(torch.empty(64, 1, 4), rank1) is not rank1
    assert structure_of(torch.empty(4, 24, 32), rank1) is rank1


def test_a_journal_says_that_experts_have_rank_1_directions() -> None:
    assert layout_of("rank1", [(8, 16, 32), (4,)]) == 2
    assert layout_of("rank1", [(8, 16), (64, 1, 4)]) == layout_of("dense", [(8, 16, 32)]) == 1
