"""Every kind of adapter: its loss is peft's own, and a probe equals weights that were really moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from support import tiny
from support.directions import direction
from support.twins import moved, row_by_row, view_of

from zoft.models.adapters import attach_adapter, virtual_tokens
from zoft.models.prefix import begin_with_activations
from zoft.recipe.sections.tune import TuneSection

MODELS: dict[str, Callable[..., Any]] = {"opt": tiny.opt, "llama": tiny.llama, "gpt2": tiny.gpt2}
TUNES = {
    "ia3": TuneSection(method="ia3"),
    "prefix": TuneSection(method="prefix"),
    "prompt": TuneSection(method="prompt"),
    "all-linear": TuneSection(method="lora", target_modules="all-linear", r=4),
}
CASES = [(model, tune) for model in MODELS for tune in TUNES]
TABLE = TuneSection(method="lora", target_modules=["embed_tokens", "v_proj"], r=4)
Z = direction(5, 3, 1)
INPUT = torch.arange(24).view(3, 8) * 7 % tiny.VOCABULARY
MASK = torch.ones_like(INPUT)
MASK[0, 5:] = MASK[2, 7:] = 0
POSITIONS = torch.tensor([3, 7, 12, 22])


def adapted(name: str, tune: TuneSection, dtype: torch.dtype = torch.float32) -> PeftModel:
    model = attach_adapter(MODELS[name](dtype=dtype), tune, seed=1)
    if tune.method == "prefix":
        begin_with_activations(model, seed=1)
    return model


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_loss_is_pefts_own(name: str, kind: str, masked: bool) -> None:
    model = adapted(name, TUNES[kind])
    view, _ = view_of(model, TUNES[kind])
    mask = MASK if masked else torch.ones_like(MASK)
    targets = INPUT[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    labels = torch.cat([torch.full((3, 1), -100), targets], 1)
    expected = model(input_ids=INPUT, attention_mask=MASK if masked else None, labels=labels).loss
    rows, places = torch.nonzero(labels != -100, as_tuple=True)
    with view.plain():
        losses = view.token_losses(
            INPUT, rows * 8 + places - 1, INPUT[rows, places], MASK if masked else None
        )
    torch.testing.assert_close(losses.mean(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scales", [(0.1,), (0.1, -0.1)])
@pytest.mark.parametrize(("name", "kind"), [*CASES, ("llama", "table")])
def test_a_probe_equals_the_moved_model(name: str, kind: str, scales: tuple[float, ...]) -> None:
    tune = TUNES.get(kind, TABLE)
    model = adapted(name, tune)
    before = {key: p.clone() for key, p in model.named_parameters()}
    view, _ = view_of(model, tune)
    with torch.no_grad():
        still = model(input_ids=INPUT, attention_mask=MASK).logits[:, -8:].flatten(0, 1)[POSITIONS]
        expected = torch.cat(
            [
                moved(model, tune, Z, scale)(input_ids=INPUT, attention_mask=MASK)
                .logits[:, -8:]
                .flatten(0, 1)[POSITIONS]
                for scale in scales
            ]
        )
    with view.probe(Z, *scales):
        logits = view.logits(INPUT, POSITIONS, attention_mask=MASK)
    torch.testing.assert_close(logits, expected, atol=5e-6, rtol=1e-5)
    assert (expected[: len(still)] - still).abs().max() > 1e-4  # it does move something
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


@pytest.mark.parametrize("rank1", [False, True])
@pytest.mark.parametrize("kind", TUNES)
def test_examples_have_directions_of_their_own(kind: str, rank1: bool) -> None:
    tune = TUNES[kind]
    model = adapted("llama", tune)
    view, _ = view_of(model, tune)
    z = direction(5, 3, 0, "rank1" if rank1 else "signs")
    expected = row_by_row(model, tune, z, (0.1, -0.1), INPUT, [0, 1, 2], 3)
    with view.probe(z, 0.1, -0.1, examples=3):
        logits = view.logits(INPUT, torch.arange(24))
    expected = expected.view(6, -1, expected.shape[-1])[:, -8:].flatten(0, 1)
    torch.testing.assert_close(logits, expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", TUNES)
def test_low_precision_passes_deliver_the_perturbation(kind: str) -> None:
    tune = TUNES[kind]

    def change(dtype: torch.dtype) -> torch.Tensor:
        view, _ = view_of(adapted("llama", tune, dtype), tune, compute=dtype)
        passes = []
        for scale in (0.05, -0.05):
            with view.probe(Z, scale):
                passes.append(view.logits(INPUT, POSITIONS).float())
        if kind == "ia3":  # in bfloat16, 1 +- 1e-3 would round back to 1
            assert set(view.delivered.values()) == {torch.float32}
        return (passes[0] - passes[1]).flatten()

    cosine = torch.nn.functional.cosine_similarity(
        change(torch.bfloat16), change(torch.float32), dim=0
    )
    assert cosine > 0.97


def test_a_prefix_begins_as_real_tokens_before_the_text() -> None:
    for name, build in MODELS.items():
        model = adapted(name, TUNES["prefix"])
        draw = torch.Generator().manual_seed(1)
        tokens = torch.randint(0, tiny.VOCABULARY, (1, 5), generator=draw)
        with torch.no_grad():
            ours = model(input_ids=INPUT).logits
            before = torch.cat([tokens.expand(3, -1), INPUT], 1)
            expected = build()(input_ids=before).logits[:, 5:]
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
        assert virtual_tokens(model) == 5
