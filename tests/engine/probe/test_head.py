"""Losses over chunks of the vocabulary, and what stands in for the model's head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.directions import direction
from support.twins import row_by_row, view_of
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from zoft.engine.probe import head
from zoft.recipe.sections.tune import TuneSection

WORDS = 2500  # chunks of 1024 words: two whole ones and a part
ROWS, WIDTH = 3, 8
INPUT = torch.arange(ROWS * WIDTH).view(ROWS, WIDTH) * 97 % WORDS
POSITIONS = torch.tensor([2, 7, 8, 13, 23])
TARGETS = torch.tensor([0, 1023, 1024, 2047, 2499])  # at the borders
CLOSE: dict[str, Any] = {"atol": 4e-6, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_LOGITS", 1)


def model(kind: str) -> Any:
    """`tied`, `own`, or with a `bias` on a head of its own or on a tied one."""
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, tie_word_embeddings=kind == "tied",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built: Any = LlamaForCausalLM(config)
        if "bias" in kind:
            built.lm_head = nn.Linear(16, WORDS)
            built.lm_head.bias.data.normal_()
        if kind == "tied bias":
            built.lm_head.weight = built.model.embed_tokens.weight
        built.lm_head.weight.data.mul_(5)
    return built.eval().requires_grad_(False)


DIRECTIONS = {
    "plain": (None, (0.0,), None),
    "dense": (direction(5, 3, 2), (2e-2, -2e-2), None),
    "gaussian": (direction(5, 3, 2, "gaussian"), (2e-2,), None),
    "rank1": (direction(5, 3, 2, "rank1"), (2e-2, -2e-2), None),
    "example": (direction(5, 3, 2, "rank1"), (2e-2, -2e-2), ROWS),
}


@pytest.mark.parametrize("kind", ["tied", "own", "bias", "tied bias"])
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_chunks_of_the_vocabulary_give_the_loss_of_all_of_it(kind: str, directions: str) -> None:
    twin = model(kind)
    view, _ = view_of(twin)
    direction, scales, count = DIRECTIONS[directions]
    with view.probe(direction, *scales, examples=count):
        logits = view.logits(INPUT, POSITIONS)
        losses = view.token_losses(INPUT, POSITIONS, TARGETS)
    whole = cross_entropy(logits, TARGETS.repeat(len(scales)), reduction="none")
    torch.testing.assert_close(losses, whole, **CLOSE)
    if direction is None:
        with torch.no_grad():
            exact = twin(input_ids=INPUT).logits
    else:
        examples = range(ROWS) if count else None
        exact = row_by_row(twin, None, direction, scales, INPUT, examples, count)
    exact = exact.view(len(scales), ROWS * WIDTH, WORDS)[:, POSITIONS].flatten(0, 1)
    torch.testing.assert_close(logits, exact, **CLOSE)


@pytest.mark.parametrize("kind", ["tied", "own", "bias"])
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_chunks_in_low_precision(kind: str, directions: str) -> None:
    view, _ = view_of(model(kind), compute=torch.bfloat16)
    direction, scales, count = DIRECTIONS[directions]
    with view.probe(direction, *scales, examples=count):
        logits = view.logits(INPUT, POSITIONS)
        losses = view.token_losses(INPUT, POSITIONS, TARGETS)
    assert (logits.dtype, losses.dtype) == (torch.bfloat16, torch.float32)
    whole = cross_entropy(logits.float(), TARGETS.repeat(len(scales)), reduction="none")
    torch.testing.assert_close(losses, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["own", "bias"])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_chunks_of_a_frozen_head(kind: str, compute: torch.dtype) -> None:
    view, _ = view_of(model(kind), TuneSection(exclude=["lm_head*"]), compute)
    direction, scales, count = DIRECTIONS["example"]
    with view.probe(direction, *scales, examples=count):
        logits = view.logits(INPUT, POSITIONS).float()
        losses = view.token_losses(INPUT, POSITIONS, TARGETS)
        few = view.logits(INPUT, POSITIONS, TARGETS)
    whole = cross_entropy(logits, TARGETS.repeat(2), reduction="none")
    torch.testing.assert_close(losses, whole, atol=1e-5, rtol=1e-5)
    close = CLOSE if compute == torch.float32 else {"atol": 3e-2, "rtol": 1e-2}
    torch.testing.assert_close(few, logits[:, TARGETS], **close)


def test_no_more_logits_than_a_chunk_stand_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    view, _ = view_of(model("own"))
    sizes, part = [], head.HeadForward._part

    def watched(self: head.HeadForward, hidden: torch.Tensor, columns: slice) -> torch.Tensor:
        logits = part(self, hidden, columns)
        sizes.append(logits.shape)
        return logits

    monkeypatch.setattr(head.HeadForward, "_part", watched)
    for limit, expected in (
        (1, [1024, 1024, 452]),
        (2 * 1024 * len(TARGETS), [2048, 452]),
        (1 << 25, [2500]),
    ):
        sizes.clear()
        monkeypatch.setattr(head, "CHUNK_LOGITS", limit)
        with view.plain():
            view.token_losses(INPUT, POSITIONS, TARGETS)
        assert sizes == [(len(TARGETS), words) for words in expected]


def test_a_word_that_is_impossible_costs_infinitely_much_and_spoils_no_other() -> None:
    built = model("bias")
    built.lm_head.bias.data[:1024] = -torch.inf  # a whole chunk
    view, _ = view_of(built)
    with view.plain():
        losses = view.token_losses(INPUT, POSITIONS, TARGETS)
        logits = view.logits(INPUT, POSITIONS)
    torch.testing.assert_close(losses, cross_entropy(logits, TARGETS, reduction="none"), **CLOSE)
    assert losses.isinf().tolist() == [True, True, False, False, False]
