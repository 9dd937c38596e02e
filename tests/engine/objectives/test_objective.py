from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import tiny
from support.directions import direction
from torch import Tensor

from zoft.data.examples import Choice, Example, TextExample
from zoft.engine.objectives.objective import batch_losses, batch_score, micro_batches, objective_for
from zoft.engine.objectives.score import Score
from zoft.engine.probe.view import ProbedModel

CPU = torch.device("cpu")
SEQUENCES = [TextExample((0, *range(9, 9 + n)), (n - 1, n)) for n in (5, 2, 9, 3, 7)]
CHOICES = [Choice(x.ids, ((40,), (50, 51)), i % 2) for i, x in enumerate(SEQUENCES)]


@pytest.fixture(scope="module")
def view() -> ProbedModel:
    model = tiny.llama()
    model.lm_head.weight.mul_(30)
    return ProbedModel(model, {}, {}, torch.float32, torch.tensor([[1, 2, 3, 4]]))


@pytest.mark.parametrize(("name", "examples"), [("lm", SEQUENCES), ("choice", CHOICES)])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_score_as_the_whole(
    view: ProbedModel, name: Any, examples: list[Example], size: int
) -> None:
    objective = objective_for(name)
    [whole] = micro_batches(objective, examples, len(examples), CPU)
    parts = micro_batches(objective, examples, size, CPU)
    assert [batch.examples for batch in parts] == {
        1: [1] * 5, 2: [2, 2, 1], 4: [4, 1]
    }[size]  # fmt: skip
    # Rows are as wide as in the whole: a width changes the last bits of a forward pass.
    assert {batch.input_ids.shape[1] for batch in parts} == {whole.input_ids.shape[1]}
    # And each knows where its examples stand in the whole.
    assert [n for batch in parts for n in batch.example_of_row] == whole.example_of_row
    with view.plain():
        once = batch_losses(objective, view, [whole])
        joined = batch_losses(objective, view, parts)
        score = batch_score(objective, view, whole)
        scores = [batch_score(objective, view, part) for part in parts]
    torch.testing.assert_close(joined.sums, once.sums, rtol=1e-5, atol=0)
    assert joined.sums.shape == (1, 5)
    assert torch.equal(joined.weights, once.weights)
    summed = sum(scores[1:], scores[0])
    assert summed.loss == pytest.approx(score.loss, rel=1e-5)
    assert score.loss == pytest.approx(once.sums.sum().item(), rel=1e-12)
    assert (summed.weight, summed.hits) == (score.weight, score.hits)


@pytest.mark.parametrize(("name", "examples"), [("lm", SEQUENCES), ("choice", CHOICES)])
def test_every_copy_has_losses_of_its_own(
    view: ProbedModel, name: Any, examples: list[Example]
) -> None:
    objective = objective_for(name)
    parts = micro_batches(objective, examples, 2, CPU)
    z = direction(1, 1, 0)
    with view.probe(z, 1.0, -1.0):  # of a view that tunes nothing
        copies = batch_losses(objective, view, parts).sums
    with view.plain():
        plain = batch_losses(objective, view, parts).sums
    assert copies.shape == (2, 5)
    torch.testing.assert_close(copies, plain.expand(2, -1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["lm", "choice"])
def test_a_loss_that_is_not_finite_is_scored_as_such(name: Any) -> None:
    objective = objective_for(name)
    [batch] = micro_batches(objective, SEQUENCES if name == "lm" else CHOICES, 5, CPU)
    lost = torch.full(batch.targets.shape, torch.nan)
    broken = SimpleNamespace(token_losses=lambda *_: lost, masked=False)
    assert math.isnan(batch_score(objective, broken, batch).loss)


@pytest.mark.parametrize("masked", [False, True])
def test_a_mask_is_given_where_it_is_needed(masked: bool) -> None:
    masks: list[Tensor | None] = []

    def token_losses(
        ids: Tensor, positions: Tensor, targets: Tensor, mask: Tensor | None, examples: list[int]
    ) -> Tensor:
        assert len(ids) == len(examples)
        assert positions.shape == targets.shape
        masks.append(mask)
        return torch.zeros(len(positions))

    objective = objective_for("lm")
    batches = micro_batches(objective, SEQUENCES, 3, CPU)
    batch_losses(objective, SimpleNamespace(token_losses=token_losses, masked=masked), batches)
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
