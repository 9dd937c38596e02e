"""The last blocks' gradients, taken block by block, beside autograd's through the whole model."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support import tiny
from support.decoders.probes import EXAMPLES
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

from zoft.engine.estimator import Estimator
from zoft.engine.objectives.objective import batch_losses, micro_batches, objective_for
from zoft.engine.probe.directions import Directions
from zoft.engine.probe.structures.table import STRUCTURES
from zoft.engine.probe.view import ProbedModel
from zoft.engine.tail.blocks import LastBlocks
from zoft.models.blocks import find_blocks
from zoft.models.trainable import parameter_ids, tail_parameters, tuned_parameters
from zoft.recipe.sections.tune import TuneSection

SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def gemma2() -> Any:
    """Logits are capped behind the head."""
    config = Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=3.0)
    return Gemma2ForCausalLM(config)


def cohere() -> Any:
    """Logits are scaled behind the head."""
    return CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.3, pad_token_id=0))


MODELS = [tiny.llama, tiny.gpt2, tiny.opt, tiny.qwen2, gemma2, cohere]


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("task", EXAMPLES)
@pytest.mark.parametrize(
    ("structure", "paired", "size"), [("rank1", True, 3), ("dense", False, 2)],
    ids=["paired", "micro-batches"],
)  # fmt: skip
def test_gradients_are_autograds(
    build: Any, task: str, structure: str, paired: bool, size: int
) -> None:
    number = min(2, len(find_blocks(build()).modules) - 1)
    check_gradients(build, task, f"blocks:{number}", structure, paired, size)


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("task", EXAMPLES)
@pytest.mark.parametrize("tail", ["norm", "blocks:all"])
def test_gradients_of_the_norm_alone_and_of_all_blocks_are_autograds(
    build: Any, task: str, tail: str
) -> None:
    tail = tail.replace("all", str(len(find_blocks(build()).modules)))
    check_gradients(build, task, tail, "rank1", True, 2)


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("tail", ["norm", "blocks:1"])
def test_weights_that_are_cast_have_their_gradient(build: Any, tail: str) -> None:
    """Stored in float32 and computed with in bfloat16, the norm between blocks and head included."""
    found, exact = gradients(build, "lm", tail, "rank1", True, 2, torch.bfloat16)
    assert found.keys() == exact.keys()
    for name, gradient in exact.items():
        if gradient.norm() > 1e-3 * max(g.norm() for g in exact.values()):
            assert torch.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0) > 0.98


def check_gradients(
    build: Any, task: str, named: str, structure: str, paired: bool, size: int
) -> None:
    found, exact = gradients(build, task, named, structure, paired, size, torch.float32)
    assert found.keys() == exact.keys()
    largest = max(float(g.abs().max()) for g in exact.values())
    for name, gradient in exact.items():
        torch.testing.assert_close(found[name], gradient, rtol=2e-5, atol=2e-6 * largest)


def gradients(
    build: Any, task: str, named: str, structure: str, paired: bool, size: int, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Of the tail by name: taken from probes that compute in `dtype`, and autograd's in float32."""
    torch.manual_seed(0)
    model = build().requires_grad_(False).eval()
    model.config.use_cache = False
    stack, tune = find_blocks(model).modules, TuneSection(tail=named)
    number = tune.tail_blocks
    assert number is not None
    tuned, tail = tuned_parameters(model, tune), tail_parameters(model, tune)
    assert not {*tuned} & {*tail}
    assert bool(tuned) == (number < len(stack))
    example = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    view = ProbedModel(model, tuned, parameter_ids(tuned), dtype, example)
    assert view.probed == bool(tuned)
    objective, examples = objective_for(task.split()[0]), EXAMPLES[task]
    batches = micro_batches(objective, examples, size, torch.device("cpu"))
    losses = partial(batch_losses, objective, view, batches)
    estimator = Estimator(
        view, Directions(5, False, STRUCTURES[structure]), perturbation=1e-7, paired=paired,
        examples=len(examples) if structure == "rank1" else None,
    )  # fmt: skip
    blocks = LastBlocks(view, stack, number, tail)
    with blocks.recording():
        measured = estimator.measure(1, losses)
    assert len(measured.projected_grad) == (len(examples) if structure == "rank1" else 1)
    found: dict[str, torch.Tensor] = {}
    blocks.step(
        objective, batches, lambda name, _, gradient: found.update({name: gradient.clone()})
    )

    for parameter in tail.values():
        parameter.requires_grad_(True)
    plain = ProbedModel(model, {}, {}, torch.float32, example)
    with plain.plain(), plain.with_graph():
        whole = batch_losses(objective, plain, batches)
    torch.autograd.backward(whole.sums.sum() / whole.weights.sum())
    exact = {name: p.grad for name, p in tail.items() if p.grad is not None}
    assert exact.keys() == tail.keys()
    return found, exact


def test_the_tail_is_the_last_blocks_and_the_norm_behind_them() -> None:
    norms: dict[Any, str] = {
        tiny.llama: "model.norm.weight",
        tiny.gpt2: "transformer.ln_f.weight",
        tiny.opt: "model.decoder.final_layer_norm.weight",
    }
    for build, norm in norms.items():
        model = build()
        found = set(tail_parameters(model, TuneSection(tail="blocks:1")))
        [last] = [f"{find_blocks(model).name}.{len(find_blocks(model).modules) - 1}."]
        outside = {name for name in found if not name.startswith(last)}
        assert norm in outside
        assert all("norm" in name or "ln_f" in name for name in outside)
        assert len(found) > len(outside)
