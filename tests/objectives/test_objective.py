from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from zoft.data.examples import Choice, Example, Sequence
from zoft.objectives.objective import objective_for
from zoft.objectives.score import Score
from zoft.zo.probe import View

CPU = torch.device("cpu")
SEQUENCES = [Sequence((0, *range(9, 9 + n)), (n - 1, n)) for n in (5, 2, 9, 3, 7)]
CHOICES = [Choice(x.ids, ((40,), (50, 51)), i % 2) for i, x in enumerate(SEQUENCES)]


@pytest.fixture(scope="module")
def view() -> View:
    model = tiny.llama()
    model.get_output_embeddings().weight.mul_(30)
    return View(model, {}, {}, torch.float32, torch.tensor([[1, 2, 3, 4]]))


@pytest.mark.parametrize(("name", "examples"), [("lm", SEQUENCES), ("choice", CHOICES)])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_score_as_the_whole(
    view: View, name: Any, examples: list[Example], size: int
) -> None:
    objective = objective_for(name)
    [whole] = objective.batches(examples, len(examples), CPU)
    parts = objective.batches(examples, size, CPU)
    assert [batch.examples for batch in parts] == {
        1: [1] * 5, 2: [2, 2, 1], 4: [4, 1]
    }[size]  # fmt: skip
    # Rows are as wide as in the whole: a width changes the last bits of a forward pass.
    assert {batch.input_ids.shape[1] for batch in parts} == {whole.input_ids.shape[1]}
    with view.plain():
        once = objective.evaluate(view, [whole], masked=False)
        summed = objective.evaluate(view, parts, masked=False)
    assert summed.loss == pytest.approx(once.loss, rel=1e-5)
    assert (summed.weight, summed.hits) == (once.weight, once.hits)


@pytest.mark.parametrize("masked", [False, True])
def test_a_mask_is_given_where_it_is_needed(masked: bool) -> None:
    masks: list[Tensor | None] = []

    def logits(ids: Tensor, positions: Tensor, vocab: Tensor | None, mask: Tensor | None) -> Tensor:
        del ids, vocab
        masks.append(mask)
        return torch.zeros(len(positions), tiny.VOCABULARY)

    objective = objective_for("lm")
    batches = objective.batches(SEQUENCES, 3, CPU)
    objective.evaluate(SimpleNamespace(logits=logits), batches, masked=masked)  # type: ignore[arg-type]
    if masked:
        shown = [mask.sum().item() for mask in masks if mask is not None]
        assert shown == [6 + 3 + 10, 4 + 8]
    else:
        assert masks == [None, None]


def test_scores_add_up() -> None:
    total = Score(1.5, 2, 1) + Score(0.5, 3, 2)
    assert total == Score(2.0, 5, 3)
    assert (total.mean, total.accuracy) == (0.4, 0.6)
    assert (Score(1.0, 2) + Score(1.0, 2)).accuracy is None
