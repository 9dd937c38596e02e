"""Scores of a whole data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from math import fsum
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from zoft.data.examples import Example
from zoft.data.sets import metric_of
from zoft.engine.objectives.answers import answers_of, best_f1, exact_match, prompt_of
from zoft.engine.objectives.objective import Objective, batch_score, micro_batches, objective_for
from zoft.engine.objectives.score import Score
from zoft.engine.probe.view import ProbedModel
from zoft.errors import DataError
from zoft.inference.generation import Decoding, completions, require_room
from zoft.models.adapters import virtual_tokens
from zoft.recipe.schema import GENERATED, EvalSection

LOOKED_AT = 64  # positions at which a pass with an attention mask is compared with one without

Told = Callable[[str, int, int], None]  # what is done with the rows, with how many, of how many


def evaluate_set(
    view: ProbedModel,
    objective: Objective,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    settings: EvalSection,
    *,
    device: torch.device,
    between: Callable[[], None] = lambda: None,
    told: Told = lambda *_: None,
) -> dict[str, Any]:
    """What the set scores at the current weights: loss, accuracy where rows have options, f1 and
    exact_match where `settings` ask for one of them (the metric first), then rows and seconds.

    `between` is called after each batch, and after each token that is written; `told` after each batch.
    Raises DataError, RecipeError if the rows have not what the metric needs.
    """

    def counted(what: str) -> Callable[[int], None]:
        told(what, 0, len(examples))
        return lambda done: told(what, done, len(examples))

    begun, metric = time.perf_counter(), metric_of(settings, examples)
    found: dict[str, float | None] = {}
    how: dict[str, Any] = {"device": device, "between": between}
    if metric in GENERATED:  # first: it says at once what does not fit
        how["counted"] = counted("writing")
        found |= written_scores(view, examples, tokenizer, settings, **how)
    how |= {"batch_size": settings.batch_size, "counted": counted("scoring")}
    result = score(view, objective, examples, **how)
    if result.hits is None and metric == "accuracy":
        how["counted"] = counted("choosing")
        found["accuracy"] = score(view, objective_for("choice"), examples, **how).accuracy
    elif result.hits is not None:
        found["accuracy"] = result.accuracy
    found["loss"] = result.mean
    seconds = round(time.perf_counter() - begun, 3)
    return {metric: found.pop(metric), **found, "rows": len(examples), "seconds": seconds}


def written_scores(
    view: ProbedModel,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    settings: EvalSection,
    *,
    device: torch.device,
    between: Callable[[], None] = lambda: None,
    counted: Callable[[int], None] = lambda _: None,
) -> dict[str, float]:
    """f1 and exact_match, 0 to 1, of what the model writes behind each row's prompt, greedily.

    A line's end ends an answer, unless answers of the set have several lines.
    """
    prompts = [prompt_of(example) for example in examples]
    answers = [answers_of(example, tokenizer) for example in examples]
    tokens = settings.max_new_tokens
    advice = f"lower eval.max_new_tokens ({tokens}) or data.max_length"
    require_room(view, prompts, tokens, advice)
    one_line = not any("\n" in answer.strip() for those in answers for answer in those)
    texts = completions(
        view,
        tokenizer,
        prompts,
        Decoding(tokens, one_line),
        batch_size=settings.batch_size,
        device=device,
        between=between,
        counted=counted,
    )
    pairs = list(zip(texts, answers, strict=True))
    return {
        "f1": fsum(best_f1(text, those) for text, those in pairs) / len(pairs),
        "exact_match": sum(exact_match(text, those) for text, those in pairs) / len(pairs),
    }


def score(
    view: ProbedModel,
    objective: Objective,
    examples: Sequence[Example],
    *,
    batch_size: int,
    device: torch.device,
    between: Callable[[], None] = lambda: None,
    counted: Callable[[int], None] = lambda _: None,
) -> Score:
    """The score of all examples at the current weights, batched by length to spare the padding.

    After each batch, `between` is called, to stop by raising, and `counted` with the rows so far.
    """
    ordered = sorted(examples, key=lambda example: objective.width([example]))
    total: Score | None = None
    with view.plain():
        for i in range(0, len(ordered), batch_size):
            [batch] = micro_batches(objective, ordered[i : i + batch_size], batch_size, device)
            part = batch_score(objective, view, batch)
            total = part if total is None else total + part
            between()
            counted(min(i + batch_size, len(ordered)))
    assert total is not None  # data.encode leaves no set empty
    return total


def require_fits(
    model: nn.Module,
    examples: Sequence[Example],
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Raise DataError if an example is longer than the model has positions, or has unknown tokens."""
    config: Any = model.config
    positions = getattr(config, "max_position_embeddings", None)
    longest, virtual = objective.width(examples), virtual_tokens(model)
    if positions is not None and longest + virtual > positions:
        before = f" and {virtual} virtual ones before it" if virtual else ""
        raise DataError(
            f"the longest example has {longest} tokens{before}, the model has {positions} positions: "
            f"set data.max_length={positions - virtual} and data.on_overflow=truncate (or drop)"
        )
    require_known(
        model, (int(objective.collate([x], longest).input_ids.max()) for x in examples), tokenizer
    )


def require_known(
    model: nn.Module, tokens: Iterable[int], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise DataError for a token that the model's table of words has no row for."""
    rows, largest = model.get_input_embeddings().weight.shape[0], max(tokens)  # type: ignore[operator]
    if largest >= rows:
        text = tokenizer.convert_ids_to_tokens(largest)
        raise DataError(
            f"the tokenizer writes {text!r} as token {largest}, and the model knows tokens 0 to "
            f"{rows - 1:,}: take the tokenizer that belongs to the model, or give the model room with "
            f"transformers' model.resize_token_embeddings({max(len(tokenizer), largest + 1)}) and "
            "save it"
        )


def needs_mask(
    view: ProbedModel, objective: Objective, examples: Sequence[Example], device: torch.device
) -> bool:
    """Whether this model needs an attention mask over right padding (docs/methods.md#attention-mask).

    With causal attention no scored position can see a pad, so both passes agree up to rounding;
    looked at on a first batch instead of believed.
    """
    by_length = sorted(examples, key=lambda example: objective.width([example]))
    pair = [by_length[0], by_length[-1]]
    width = objective.width(pair)
    if objective.width(pair[:1]) == width:  # as long as each other: pad both
        config = getattr(view.model, "config", None)
        virtual = virtual_tokens(view.model)
        most = getattr(config, "max_position_embeddings", width + 1 + virtual) - virtual
        width = min(width + 1, most)
    batch = objective.collate(pair, width).to(device)
    # Of all words: every position of two long texts would take gigabytes.
    some = batch.positions[:: 1 + len(batch.positions) // LOOKED_AT]
    with view.plain():
        bare, masked = (
            view.logits(batch.input_ids, some, batch.vocab, mask).float()
            for mask in (None, batch.attention_mask())
        )
    tolerance = 1e-3 if view.compute_dtype == torch.float32 else 5e-2
    difference = (bare - masked).abs().max()
    return bool(difference > tolerance * masked.abs().max())
