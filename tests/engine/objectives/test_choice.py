from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from torch import nn
from transformers import PreTrainedModel

from zoft.data.examples import Choice
from zoft.engine.objectives.batch import Batch
from zoft.engine.objectives.choice import ChoiceObjective
from zoft.engine.objectives.objective import batch_score
from zoft.engine.objectives.score import Score
from zoft.engine.probe.view import ProbedModel

CHOICE = ChoiceObjective()
PROMPTS = ((0, 71), (0, 30, 31, 32, 33, 34), (0, 90, 91), (0, 12, 13, 14, 15), (0, 200))
SINGLE = ((40,), (50,), (60,))
SEVERAL = ((40, 41, 42), (50,), (60, 61))


def examples(options: tuple[tuple[int, ...], ...], shift: int = 0) -> list[Choice]:
    return [Choice(p, options, (i + shift) % len(options)) for i, p in enumerate(PROMPTS)]


def sharp(model: PreTrainedModel) -> PreTrainedModel:
    """With logits of about +-4; a fresh tiny model finds all tokens equally likely."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head.weight.mul_(30)
    return model


def view_of(model: PreTrainedModel) -> ProbedModel:
    return ProbedModel(model, {}, {}, torch.float32, torch.tensor([[1, 2, 3, 4]]))


@pytest.fixture(scope="module")
def view() -> ProbedModel:
    return view_of(sharp(tiny.llama()))


def collated(items: list[Choice]) -> Batch:
    return CHOICE.collate(items, CHOICE.width(items))


def outputs_of(view: ProbedModel, items: list[Choice]) -> torch.Tensor:
    """What the forward pass gives: a line of logits per example, or -log p of each token."""
    batch = collated(items)
    with view.plain():
        if batch.vocab is not None:
            return view.logits(batch.input_ids, batch.positions, batch.vocab)
        return view.token_losses(batch.input_ids, batch.positions, batch.targets)


def scored(view: ProbedModel, items: list[Choice]) -> Score:
    with view.plain():
        return batch_score(CHOICE, view, collated(items))


@torch.no_grad()
def by_hand(model: nn.Module, item: Choice) -> list[float]:
    """Mean log-probability of each option's tokens, from the full logits of a row of its own."""
    means = []
    for option in item.options:
        logits = model(torch.tensor([[*item.prompt, *option]])).logits[0].double()
        logs = logits.log_softmax(dim=-1)
        first = len(item.prompt)
        parts = [logs[first + i - 1, token].item() for i, token in enumerate(option)]
        means.append(sum(parts) / len(parts))
    return means


@pytest.mark.parametrize("build", [tiny.llama, tiny.opt])
@pytest.mark.parametrize("options", [SINGLE, SEVERAL], ids=["single", "several"])
def test_cross_entropy_over_mean_log_probabilities(
    build: Callable[[], PreTrainedModel], options: tuple[tuple[int, ...], ...]
) -> None:
    model, items = sharp(build()), examples(options)
    loss, hits = 0.0, 0
    for item in items:
        means = by_hand(model, item)
        loss += math.log(sum(map(math.exp, means))) - means[item.label]
        hits += means.index(max(means)) == item.label
    found = scored(view_of(model), items)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert (found.weight, found.hits) == (len(items), hits)
    assert abs(loss / len(items) - math.log(3)) > 0.1  # else any scores would pass


def test_examples_may_have_different_numbers_of_options(view: ProbedModel) -> None:
    """A batch is scored as its examples are alone."""
    items = [
        Choice(PROMPTS[1], SEVERAL, 2),
        Choice(PROMPTS[0], ((40,), (50,)), 1),
        Choice(PROMPTS[2], (*SEVERAL, (70, 71)), 0),
    ]
    alone = [scored(view, [item]) for item in items]
    together = scored(view, items)
    assert together.loss == pytest.approx(sum(one.loss for one in alone), rel=1e-5)
    assert together.hits == sum(one.hits or 0 for one in alone)
    assert together.weight == len(items)


def test_single_tokens_need_one_row_and_their_own_logits(view: ProbedModel) -> None:
    items = examples(SINGLE)
    batch = CHOICE.collate(items, CHOICE.width(items))
    assert len(batch.input_ids) == batch.examples == len(items)
    assert outputs_of(view, items).shape == (len(items), 3)
    several = CHOICE.collate(examples(SEVERAL), 9)
    assert len(several.input_ids) == 3 * len(items)
    assert several.examples == len(items)
    assert several.vocab is None


def test_single_tokens_that_differ_between_examples_get_rows_of_their_own(
    view: ProbedModel,
) -> None:
    items = [*examples(SINGLE), Choice((0, 5), ((70,), (80,), (90,)), 2)]
    assert len(CHOICE.collate(items, 8).input_ids) == 3 * len(items)
    apart = scored(view, items[:-1]) + scored(view, items[-1:])
    together = scored(view, items)
    assert together.loss == pytest.approx(apart.loss, rel=1e-5)
    assert (together.weight, together.hits) == (apart.weight, apart.hits)


@pytest.mark.parametrize("options", [SINGLE, SEVERAL], ids=["single", "several"])
def test_the_label_does_not_leak_into_the_scores(
    view: ProbedModel, options: tuple[tuple[int, ...], ...]
) -> None:
    assert torch.equal(outputs_of(view, examples(options)), outputs_of(view, examples(options, 1)))
    assert scored(view, examples(options)).loss != scored(view, examples(options, 1)).loss


@pytest.mark.parametrize("options", [SINGLE, SEVERAL], ids=["single", "several"])
def test_accuracy(view: ProbedModel, options: tuple[tuple[int, ...], ...]) -> None:
    best = []
    for item in examples(options):
        means = by_hand(view.model, item)
        best.append(means.index(max(means)))
    right = [Choice(p, options, label) for p, label in zip(PROMPTS, best, strict=True)]
    wrong = [Choice(x.prompt, options, (x.label + 1) % 3) for x in right]
    assert scored(view, right).accuracy == 1.0
    assert scored(view, wrong).accuracy == 0.0
    assert scored(view, [*right, *wrong[:2]]).accuracy == pytest.approx(5 / 7)


@pytest.mark.parametrize("options", [SINGLE, SEVERAL], ids=["single", "several"])
@given(cuts=st.sets(st.integers(1, len(PROMPTS) - 1)))
def test_parts_add_up_in_float64(
    view: ProbedModel, options: tuple[tuple[int, ...], ...], cuts: set[int]
) -> None:
    """Of the same outputs: what the forward pass makes of other batch sizes is not scored here."""
    items = examples(options)
    outputs = outputs_of(view, items)
    lines = len(outputs) // len(items)  # of outputs per example

    def score(begin: int, end: int) -> Score:
        part = outputs[begin * lines : end * lines]
        fixed = SimpleNamespace(logits=lambda *_: part, token_losses=lambda *_: part, masked=False)
        batch = CHOICE.collate(items[begin:end], CHOICE.width(items))
        return batch_score(CHOICE, fixed, batch)

    total = Score(0.0, 0.0, 0)
    for begin, end in pairwise([0, *sorted(cuts), len(items)]):
        total += score(begin, end)
    whole = score(0, len(items))
    assert total.loss == pytest.approx(whole.loss, rel=1e-14)
    assert (total.weight, total.hits) == (whole.weight, whole.hits)
