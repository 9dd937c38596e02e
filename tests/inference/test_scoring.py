from __future__ import annotations

from collections import abc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import tiny
from torch import Tensor, nn
from transformers import PreTrainedConfig

from zoft.data.examples import Choice, Example, TextExample
from zoft.engine.objectives.objective import objective_for
from zoft.engine.objectives.score import Score
from zoft.engine.probe.view import ProbedModel
from zoft.errors import DataError, Interrupted, RecipeError
from zoft.inference.generation import Decoding, completions
from zoft.inference.scoring import evaluate_set, needs_mask, require_fits, score
from zoft.models.adapters import attach_adapter
from zoft.recipe.schema import EvalSection
from zoft.recipe.sections.tune import TuneSection

CPU = torch.device("cpu")
SEQUENCES = [TextExample((0, *range(9, 9 + n)), (n - 1, n)) for n in (5, 2, 9, 3, 7, 4, 2)]
CHOICES = [Choice(x.ids, ((40,), (50, 51)), i % 2) for i, x in enumerate(SEQUENCES)]
SETS = [("lm", SEQUENCES), ("choice", CHOICES)]


class Bidirectional(nn.Module):
    """Logits that depend on the mean of the whole row, the padding too unless it is masked."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PreTrainedConfig()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding = nn.Embedding(tiny.VOCABULARY, 8)
            self.head = nn.Linear(8, tiny.VOCABULARY, bias=False)
        self.requires_grad_(False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False
    ) -> SimpleNamespace:
        del use_cache
        x = self.embedding(input_ids)
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mean = (x * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
        return SimpleNamespace(logits=self.head(x + mean[:, None]))


def view_of(model: nn.Module, dtype: torch.dtype = torch.float32) -> ProbedModel:
    return ProbedModel(model, {}, {}, dtype, torch.tensor([[1, 2, 3, 4]]))


@pytest.fixture(scope="module")
def view() -> ProbedModel:
    model = tiny.llama()
    model.lm_head.weight.mul_(30)
    return view_of(model)


def scored(
    view: ProbedModel, name: Any, examples: abc.Sequence[Example], size: int, masked: bool
) -> Score:
    view.masked = masked
    return score(view, objective_for(name), examples, batch_size=size, device=CPU)


@pytest.mark.parametrize(("name", "examples"), SETS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [2, 3, 64])
def test_batches_score_as_single_examples(
    view: ProbedModel, name: str, examples: abc.Sequence[Example], size: int, masked: bool
) -> None:
    single = scored(view, name, examples, 1, masked)
    batched = scored(view, name, examples, size, masked)
    assert batched.loss == pytest.approx(single.loss, rel=1e-5)
    assert (batched.weight, batched.hits) == (single.weight, single.hits)


def test_the_order_of_the_rows_does_not_matter(view: ProbedModel) -> None:
    there = scored(view, "lm", SEQUENCES, 3, False)
    back = scored(view, "lm", SEQUENCES[::-1], 3, False)
    assert back.loss == pytest.approx(there.loss, rel=1e-5)


def test_between_is_called_after_each_batch_and_may_stop(view: ProbedModel) -> None:
    calls: list[int] = []

    def stop_at_the_second() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted("enough", 130)

    settings: dict[str, Any] = {"batch_size": 3, "device": CPU}
    with pytest.raises(Interrupted):
        score(view, objective_for("lm"), SEQUENCES, between=stop_at_the_second, **settings)
    assert len(calls) == 2
    score(view, objective_for("lm"), SEQUENCES, between=lambda: calls.append(1), **settings)
    assert len(calls) == 2 + 3  # the probe was left: a whole evaluation ran


def evaluated(
    view: ProbedModel,
    name: Any,
    examples: abc.Sequence[Example],
    between: Any = lambda: None,
    **settings: Any,
) -> dict[str, Any]:
    section = EvalSection(batch_size=3, **settings)
    return evaluate_set(
        view, objective_for(name), examples, tiny.tokenizer(), section,
        device=CPU, between=between,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "examples", "metric", "keys"),
    [
        ("choice", CHOICES, "auto", ["accuracy", "loss"]),
        ("choice", CHOICES, "loss", ["loss", "accuracy"]),
        ("choice", CHOICES, "f1", ["f1", "exact_match", "accuracy", "loss"]),
        ("lm", CHOICES, "auto", ["accuracy", "loss"]),
        ("lm", CHOICES, "loss", ["loss"]),
        ("lm", SEQUENCES, "auto", ["loss"]),
        ("lm", SEQUENCES, "exact_match", ["exact_match", "f1", "loss"]),
    ],
)
def test_the_metric_comes_first(
    view: ProbedModel, name: str, examples: abc.Sequence[Example], metric: str, keys: list[str]
) -> None:
    found = evaluated(view, name, examples, metric=metric, max_new_tokens=3)
    assert list(found) == [*keys, "rows", "seconds"]
    assert found["rows"] == 7
    assert found["loss"] == pytest.approx(scored(view, name, examples, 3, False).mean)
    if "accuracy" in keys:  # a choice, whatever is minimised
        assert found["accuracy"] == scored(view, "choice", CHOICES, 3, False).accuracy


def test_every_part_of_an_evaluation_counts_its_rows(view: ProbedModel) -> None:
    told: list[tuple[str, int, int]] = []
    section = EvalSection(batch_size=3, metric="f1", max_new_tokens=3)
    evaluate_set(
        view, objective_for("lm"), SEQUENCES, tiny.tokenizer(), section,
        device=CPU, told=lambda *now: told.append(now),
    )  # fmt: skip
    assert told == [(what, done, 7) for what in ("writing", "scoring") for done in (0, 3, 6, 7)]


def test_lm_loss_of_a_choice_is_that_of_its_right_option(view: ProbedModel) -> None:
    texts = [
        TextExample(x.ids + c.options[c.label], ()) for x, c in zip(SEQUENCES, CHOICES, strict=True)
    ]
    texts = [
        TextExample(t.ids, tuple(range(len(x.ids), len(t.ids))))
        for x, t in zip(SEQUENCES, texts, strict=True)
    ]
    there = scored(view, "lm", CHOICES, 3, False)
    assert (there.loss, there.weight) == (scored(view, "lm", texts, 3, False).loss, 10)


def test_a_model_that_writes_the_answer_is_right(view: ProbedModel) -> None:
    """Rows whose gold answer is what the model says, and some of which it is not."""
    prompts = [x.ids for x in SEQUENCES]
    written = completions(view, tiny.tokenizer(), prompts, Decoding(4), batch_size=1, device=CPU)
    answers = [text if i % 7 else "something else" for i, text in enumerate(written)]
    rows: list[Example] = [
        TextExample((*ids, 40), (len(ids),), ("never", answer))
        for ids, answer in zip(prompts, answers, strict=True)
    ]
    found = evaluated(view, "lm", rows, metric="f1", max_new_tokens=4)
    assert found["exact_match"] == pytest.approx(6 / 7)
    assert 6 / 7 <= found["f1"] < 1


def test_written_answers_stop_between_tokens(view: ProbedModel) -> None:
    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise Interrupted("enough", 130)

    with pytest.raises(Interrupted):
        evaluated(view, "lm", SEQUENCES, stop, metric="f1", max_new_tokens=5)
    assert len(calls) == 4
    assert evaluated(view, "lm", SEQUENCES, metric="f1", max_new_tokens=2)["rows"] == 7


def test_what_a_metric_cannot_score_is_said(view: ProbedModel) -> None:
    with pytest.raises(RecipeError, match=r"eval.metric: accuracy needs rows with options"):
        evaluated(view, "lm", SEQUENCES, metric="accuracy")
    with pytest.raises(DataError, match=r"lower eval.max_new_tokens \(250\) or data.max_length"):
        evaluated(view, "lm", SEQUENCES, metric="f1", max_new_tokens=250)


@pytest.mark.parametrize("build", [tiny.llama, tiny.opt, tiny.gpt2, tiny.qwen2])
@pytest.mark.parametrize(("name", "examples"), SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_models_need_no_mask(
    build: Callable[[], nn.Module], name: Any, examples: abc.Sequence[Example], dtype: torch.dtype
) -> None:
    assert needs_mask(view_of(build(), dtype), objective_for(name), examples, CPU) is False


@pytest.mark.parametrize(("name", "examples"), SETS)
def test_a_model_that_sees_the_padding_needs_a_mask(
    name: Any, examples: abc.Sequence[Example]
) -> None:
    view = view_of(Bidirectional())
    assert needs_mask(view, objective_for(name), examples, CPU) is True
    # And with one, its batches score as single examples; without, they do not.
    single = scored(view, name, examples, 1, masked=True).loss
    assert scored(view, name, examples, 7, masked=True).loss == pytest.approx(single, rel=1e-5)
    assert scored(view, name, examples, 7, masked=False).loss != pytest.approx(single, rel=1e-3)


def test_rows_of_one_length_are_padded_to_see_what_padding_does() -> None:
    view, same = view_of(Bidirectional()), [TextExample((0, 9, n), (2,)) for n in (10, 20)]
    assert needs_mask(view, objective_for("lm"), same, CPU) is True
    assert needs_mask(view_of(tiny.llama()), objective_for("lm"), same, CPU) is False


def test_the_mask_is_looked_at_in_few_positions_of_long_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = [TextExample(tuple([7] * n), tuple(range(1, n))) for n in (90, 120)]
    view, seen = view_of(tiny.llama()), []
    logits = ProbedModel.logits

    def watched(self: ProbedModel, *arguments: Any) -> Tensor:
        found = logits(self, *arguments)
        seen.append(found.shape)
        return found

    monkeypatch.setattr(ProbedModel, "logits", watched)
    assert needs_mask(view, objective_for("lm"), long, CPU) is False
    assert all(32 <= positions <= 64 for positions, _ in seen)


def test_virtual_tokens_take_positions() -> None:
    """OPT has 128: a row that fills them has no room behind a prompt, and is not padded for a look."""
    objective = objective_for("lm")
    model = attach_adapter(tiny.opt(), TuneSection(method="prompt"), seed=0)
    full, fits = (TextExample(tuple(9 for _ in range(n)), (n - 1,)) for n in (128, 123))
    with pytest.raises(DataError, match=r"128 tokens and 5 virtual .*data\.max_length=123 "):
        require_fits(model, [full], objective, tiny.tokenizer())
    require_fits(model, [fits], objective, tiny.tokenizer())
    assert not needs_mask(view_of(model), objective, [fits, fits], CPU)
