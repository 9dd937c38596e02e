from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
from transformers import PreTrainedModel

from zoft.data.examples import Sequence
from zoft.objectives import lm
from zoft.objectives.score import Score
from zoft.zo.probe import View

ROWS = [
    Sequence((0, 30, 31, 32, 33, 34, 1), (4, 5, 6)),
    Sequence((0, 90, 91, 1), (1, 2, 3)),
    Sequence((0, 71, 72, 73, 74), (2, 4)),  # a gap: two turns of a chat
]


@pytest.fixture(scope="module")
def view() -> View:
    return view_of(sharp(tiny.llama()))


def sharp(model: PreTrainedModel) -> PreTrainedModel:
    """With logits of about +-4; a fresh tiny model finds all tokens equally likely."""
    model.get_output_embeddings().weight.mul_(30)
    return model


def view_of(model: PreTrainedModel) -> View:
    return View(model, {}, {}, torch.float32, torch.tensor([[1, 2, 3, 4]]))


def scored(view: View, rows: list[Sequence]) -> Score:
    batch = lm.collate(rows, lm.width(rows))
    with view.plain():
        return lm.score(view.logits(batch.input_ids, batch.positions), batch)


@pytest.mark.parametrize("build", [tiny.llama, tiny.opt, tiny.gpt2, tiny.qwen2])
def test_the_loss_of_transformers(build: Callable[[], PreTrainedModel]) -> None:
    model = sharp(build())
    batch = lm.collate(ROWS, lm.width(ROWS))
    labels = torch.full_like(batch.input_ids, -100)
    for i, row in enumerate(ROWS):
        for p in row.supervised:
            labels[i, p] = row.ids[p]
    with torch.no_grad():
        theirs = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask(), labels=labels
        ).loss.item()
    ours = scored(view_of(model), ROWS)
    assert ours.mean == pytest.approx(theirs, rel=1e-5)
    assert (ours.weight, ours.hits, ours.accuracy) == (8.0, None, None)


def test_only_supervised_positions_count(view: View) -> None:
    whole = scored(view, ROWS)
    single = [scored(view, [Sequence(row.ids, (p,))]) for row in ROWS for p in row.supervised]
    assert whole.loss == pytest.approx(sum(x.loss for x in single), rel=1e-5)
    assert whole.weight == len(single)
    # What follows the last supervised token is neither a target nor seen by one.
    short, long = Sequence((0, 9, 8, 7), (2,)), Sequence((0, 9, 8, 99), (2,))
    assert scored(view, [short]) == scored(view, [long])


def test_only_supervised_positions_go_through_the_head(view: View) -> None:
    batch = lm.collate(ROWS, 9)
    with view.plain():
        logits = view.logits(batch.input_ids, batch.positions)
    assert logits.shape == (8, tiny.VOCABULARY)


def test_slices_of_the_logits_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(50, 283, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(50)
    whole = lm.token_losses(logits, targets)
    monkeypatch.setattr(lm, "ROWS", 7)
    assert torch.equal(lm.token_losses(logits, targets), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_loss_is_float32_whatever_the_logits_are(dtype: torch.dtype) -> None:
    logits = 4 * torch.randn(20, 283, generator=torch.Generator().manual_seed(0))
    logits = logits.to(dtype)
    losses = lm.token_losses(logits, torch.arange(20))
    exact = -logits.double().log_softmax(dim=-1).diagonal()
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), exact, rtol=0, atol=5e-6)
