from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import tiny
from transformers import PreTrainedModel

from zoft.data.examples import TextExample
from zoft.engine.objectives.lm import LMObjective
from zoft.engine.objectives.objective import batch_score
from zoft.engine.objectives.score import Score
from zoft.engine.probe.head import HeadForward
from zoft.engine.probe.view import ProbedModel

LM = LMObjective()
ROWS = [
    TextExample((0, 30, 31, 32, 33, 34, 1), (4, 5, 6)),
    TextExample((0, 90, 91, 1), (1, 2, 3)),
    TextExample((0, 71, 72, 73, 74), (2, 4)),  # a gap: two turns of a chat
]


@pytest.fixture(scope="module")
def view() -> ProbedModel:
    return view_of(sharp(tiny.llama()))


def sharp(model: PreTrainedModel) -> PreTrainedModel:
    """With logits of about +-4; a fresh tiny model finds all tokens equally likely."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head.weight.mul_(30)
    return model


def view_of(model: PreTrainedModel) -> ProbedModel:
    return ProbedModel(model, {}, {}, torch.float32, torch.tensor([[1, 2, 3, 4]]))


def scored(view: ProbedModel, rows: list[TextExample]) -> Score:
    with view.plain():
        return batch_score(LM, view, LM.collate(rows, LM.width(rows)))


@pytest.mark.parametrize("build", [tiny.llama, tiny.opt, tiny.gpt2, tiny.qwen2])
def test_the_loss_of_transformers(build: Callable[[], PreTrainedModel]) -> None:
    model = sharp(build())
    batch = LM.collate(ROWS, LM.width(ROWS))
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


def test_only_supervised_positions_count(view: ProbedModel) -> None:
    whole = scored(view, ROWS)
    single = [scored(view, [TextExample(row.ids, (p,))]) for row in ROWS for p in row.supervised]
    assert whole.loss == pytest.approx(sum(x.loss for x in single), rel=1e-5)
    assert whole.weight == len(single)
    # What follows the last supervised token is neither a target nor seen by one.
    short, long = TextExample((0, 9, 8, 7), (2,)), TextExample((0, 9, 8, 99), (2,))
    assert scored(view, [short]) == scored(view, [long])


def test_only_supervised_positions_go_through_the_head(
    view: ProbedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, seen = LM.collate(ROWS, 9), []
    inner = HeadForward._total_and_wanted

    def total_and_wanted(
        self: HeadForward, hidden: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(hidden.shape)
        return inner(self, hidden, targets)

    monkeypatch.setattr(HeadForward, "_total_and_wanted", total_and_wanted)
    with view.plain():
        assert view.logits(batch.input_ids, batch.positions).shape == (8, tiny.VOCABULARY)
        LM.losses(view, batch, None)
    assert seen == [(8, 48)]


def test_losses_stand_by_example(view: ProbedModel) -> None:
    batch = LM.collate(ROWS, LM.width(ROWS))
    with view.plain():
        found, hits = LM.losses(view, batch, None)
        single = [LM.losses(view, LM.collate([row], 7), None)[0].sums[0] for row in ROWS]
    assert hits is None
    assert found.weights.tolist() == [3.0, 3.0, 2.0]
    assert found.sums.dtype == torch.float64
    torch.testing.assert_close(found.sums[0], torch.cat(single), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_loss_is_float32_whatever_the_logits_are(dtype: torch.dtype) -> None:
    view = ProbedModel(sharp(tiny.llama(dtype=dtype)), {}, {}, dtype, torch.tensor([[1, 2, 3, 4]]))
    batch = LM.collate(ROWS, LM.width(ROWS))
    with view.plain():
        logits = view.logits(batch.input_ids, batch.positions)
        losses = view.token_losses(batch.input_ids, batch.positions, batch.targets)
    assert (logits.dtype, losses.dtype) == (dtype, torch.float32)
    exact = -logits.double().log_softmax(dim=-1).gather(1, batch.targets[:, None])[:, 0]
    torch.testing.assert_close(losses.double(), exact, rtol=0, atol=5e-6)
