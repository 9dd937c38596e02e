"""Whether two models compute the same: their logits on a few prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zoft.data.examples import Choice, Example
from zoft.data.sets import prepare
from zoft.errors import ZoftError
from zoft.recipe.schema import Recipe
from zoft.recipe.sections.data import listed

BOUND = 1e-4  # largest difference of two logits, in float32, that rounding may explain
PROMPTS, TOKENS = 4, 64  # so many prompts are compared, each cut to so many tokens
TEXTS = (
    "The film was over two hours long, and I would have stayed for two more.",
    "Question: what is the capital of France?\nAnswer:",
    "def add(a, b):\n    return a +",
    "It was the best of times, it was the worst of times",
)


@dataclass(frozen=True)
class Merged:
    """A whole model in float32 on the CPU; the ids of the `prompts`, where these are from, and the
    logits that base and adapter gave for each, (tokens, vocabulary). `exact` are those of passes in
    float64, if there was room: none of their differences is the passes' own rounding."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: list[list[int]]
    prompts_of: str
    expected: list[Tensor]
    exact: list[Tensor] | None = None


def prompts_for(
    recipe: Recipe | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[list[int]], str]:
    """Token ids to compare logits on, and where they are from: the run's own data if it is there."""
    if recipe is not None:
        name = "eval" if recipe.data.eval else "train"
        source = listed(getattr(recipe.data, name))[0]
        few = source.model_copy(update={"limit": min(PROMPTS, source.limit or PROMPTS)})
        data = recipe.data.model_copy(update={name: few})
        try:
            _, sets = prepare(recipe.model_copy(update={"data": data}), tokenizer, names=(name,))
            return [_ids(example)[:TOKENS] for example in sets[name].examples], f"data.{name}"
        except ZoftError:  # moved or deleted since: any text will do
            pass
    return [tokenizer(text)["input_ids"][:TOKENS] for text in TEXTS], "a fixed list"


def _ids(example: Example) -> list[int]:
    if isinstance(example, Choice):
        return [*example.prompt, *example.options[example.label]]
    return list(example.ids)


@torch.inference_mode()
def logits(model: Any, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """One pass each, float32, on the CPU."""
    return [
        model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()
        for ids in prompts
    ]


@torch.inference_mode()
def in_float64(model: Any, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """The same in float64; the model is float32 again afterwards, bit for bit."""
    model.double()
    try:
        return [
            model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0] for ids in prompts
        ]
    finally:
        model.float()


def apart(model: PreTrainedModel, merged: Merged) -> float:
    """The largest difference of a logit; NaN if one is not a number."""
    return largest(logits(model, merged.prompts), merged.expected)


def largest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def require_close(difference: float, target: str) -> None:
    """Raise ZoftError if rounding alone does not explain the difference."""
    if not difference <= BOUND:
        raise ZoftError(
            f"the files of {target} would not compute what it computes: the logits are "
            f"{difference:.2g} apart, {BOUND:g} is allowed; nothing was kept"
        )
