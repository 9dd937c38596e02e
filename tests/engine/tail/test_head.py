"""The head's rows by their exact gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support import tiny
from torch import nn

from zoft.engine.tail.head import FOLDS, STRENGTHS, HeadRows, _Problem, head_of, score


def problem(rows: int = 200, width: int = 12, words: int = 3, seed: int = 0) -> _Problem:
    """Labels that a linear map of the hidden states says, but for a tenth of them."""
    drawn = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=drawn, dtype=torch.float64) * 3
    true = torch.randn(words, width, generator=drawn, dtype=torch.float64)
    labels = (hidden @ true.T).argmax(1)
    labels[::10] = torch.randint(words, (len(labels[::10]),), generator=drawn)
    start = torch.randn(words, width, generator=drawn, dtype=torch.float64)
    return _Problem.of(hidden, labels, start, 0.0)


def objective(found: _Problem, rows: torch.Tensor, strength: float) -> torch.Tensor:
    pull = strength * found.hidden.var(0).mean() * (rows - found.start).square().sum()
    loss: torch.Tensor = nn.functional.cross_entropy(found.hidden @ rows.T, found.labels) + pull
    return loss


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_gradient_is_zero_where_the_rows_end(strength: float) -> None:
    found = problem()
    rows = found.solve(strength).requires_grad_()
    [gradient] = torch.autograd.grad(objective(found, rows, strength), rows)
    start = found.start.clone().requires_grad_()
    [at_start] = torch.autograd.grad(objective(found, start, strength), start)
    assert gradient.norm() < 1e-4 * at_start.norm()


def test_a_path_of_strengths_ends_where_a_single_one_does() -> None:
    found = problem()
    torch.testing.assert_close(found.solve(3.0, 0.3, 0.03), found.solve(0.03), rtol=0, atol=1e-4)


def test_the_strength_is_the_one_that_is_best_on_rows_left_out() -> None:
    found = problem(rows=60)
    strength, (loss, hits) = found.best_strength()
    fold = torch.arange(60) % FOLDS

    def left_out(strength: float) -> float:
        logits = torch.empty(60, 3, dtype=torch.float64)
        for number in range(FOLDS):
            inside, out = fold != number, fold == number
            part = _Problem.of(found.hidden[inside], found.labels[inside], found.start, 0.0)
            part = replace(part, variance=found.variance)
            logits[out] = found.hidden[out] @ part.solve(strength).T
        return score(logits, found.labels)[0]

    by_hand = [left_out(x) for x in STRENGTHS]
    assert strength == STRENGTHS[by_hand.index(min(by_hand))]
    assert loss == pytest.approx(min(by_hand), rel=1e-3)
    assert hits > score(found.logits, found.labels)[1]


@pytest.mark.parametrize("build", [tiny.llama, tiny.qwen2, tiny.opt, tiny.gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_reach_the_head_and_nothing_else(
    build: Any, dtype: torch.dtype, tmp_path: Any
) -> None:
    model = build(dtype=dtype)
    before = {name: p.clone() for name, p in model.named_parameters()}
    weight: Any = head_of(model).weight
    words, values = torch.tensor([5, 9]), torch.full((2, weight.shape[1]), 0.3)
    HeadRows(words, values).write(tmp_path)
    HeadRows.read(tmp_path).put(model)
    assert torch.equal(weight[words], values.to(dtype))
    for name, parameter in model.named_parameters():
        if parameter is weight:
            others = [i for i in range(len(weight)) if i not in words]
            assert torch.equal(parameter[others], before[name][others])
        else:
            assert torch.equal(parameter, before[name])
