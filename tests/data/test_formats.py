"""Formats by their columns, tasks by name, options of a row's own, several templates."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from support import tiny

from zoft.data.encoding import Encoded, TemplateSeed, encode
from zoft.data.examples import Choice, TextExample
from zoft.data.formats.table import FORMATS, detect
from zoft.data.sources import Rows
from zoft.errors import DataError, RecipeError
from zoft.recipe.sections.data import ROLES, TEMPLATED, DataSection, FormatName, with_task
from zoft.recipe.sections.tasks import TASKS
from zoft.recipe.sections.template import problem_of, render

TOKENIZER: Any = tiny.tokenizer()
CHAT = tiny.tokenizer(chat_template=tiny.CHAT_TEMPLATE)


def section(**fields: Any) -> DataSection:
    return with_task(DataSection.model_validate({"train": {"path": "rows.jsonl"}, **fields}))


def encoded(
    rows: list[dict[str, Any]],
    tokenizer: Any = TOKENIZER,
    seed: TemplateSeed | None = None,
    **fields: Any,
) -> Encoded:
    data = section(**fields)
    if data.format == "auto":
        data = data.model_copy(update={"format": detect(rows, data)})
    choice = data.format == "classification"
    return encode(Rows(rows), data, tokenizer, choice=choice, seed=seed)


def marked(example: Any, tokenizer: Any = TOKENIZER) -> str:
    assert isinstance(example, TextExample)
    cut = example.supervised[0]
    return f"{tokenizer.decode(example.ids[:cut])}«{tokenizer.decode(example.ids[cut:])}»"


def words(example: Any) -> tuple[str, list[str], int]:
    assert isinstance(example, Choice)
    options = [TOKENIZER.decode(option) for option in example.options]
    return TOKENIZER.decode(example.prompt).removeprefix("<s>"), options, example.label


# detection


@pytest.mark.parametrize(
    ("row", "columns", "form"),
    [
        ({"messages": [], "text": "x"}, {}, "messages"),
        ({"conversations": [], "system": ""}, {}, "sharegpt"),
        ({"prompt": "a", "completion": "b", "text": "ab"}, {}, "prompt-completion"),
        ({"question": "a", "answer": "b"}, {"prompt": "question", "completion": "answer"},
         "prompt-completion"),
        ({"instruction": "a", "input": "", "output": "b", "text": "all"}, {}, "alpaca"),
        ({"text": "x", "source": "web"}, {}, "text"),
        ({"content": "x"}, {"text": "content"}, "text"),
    ],
)  # fmt: skip
def test_columns_say_the_format(row: dict[str, Any], columns: dict[str, str], form: str) -> None:
    assert detect([row], section(columns=columns)) == form


def test_the_table_and_the_recipes_schema_know_the_same_formats() -> None:
    assert sorted(form.name for form in FORMATS) == sorted(get_args(FormatName))
    assert {form.name for form in FORMATS if form.template_replaces} == set(TEMPLATED)
    assert {role for form in FORMATS for role in form.reads} <= set(ROLES)


def test_what_the_columns_do_not_say() -> None:
    with pytest.raises(DataError, match=r"found: review, n; expected .*row 1: \{'review': 'x'"):
        detect([{"review": "x", "n": 1}], section())
    with pytest.raises(RecipeError, match=r"text and label look like classification.*data\.labels"):
        detect([{"text": "x", "label": 1}], section())
    assert section(template="{text} It", labels={0: "a", 1: "b"}).format == "classification"


# alpaca and sharegpt


def test_alpaca() -> None:
    row = {"instruction": "Add.", "input": "1+1", "output": "2"}
    text = marked(encoded([row]).examples[0])
    assert text.startswith("<s>Below is an instruction that describes a task, paired with an input")
    assert text.endswith(
        "request.\n\n### Instruction:\nAdd.\n\n### Input:\n1+1\n\n### Response:\n«2</s>»"
    )
    text = marked(encoded([{**row, "input": "", "system": "Be short."}]).examples[0])
    assert text == "<s>Be short.\n\n### Instruction:\nAdd.\n\n### Response:\n«2</s>»"
    without = marked(encoded([{**row, "input": None}]).examples[0])
    assert "describes a task. Write a response" in without


def test_sharegpt_is_a_chat() -> None:
    said = [("human", "hi"), ("gpt", "hello")]
    turns = [{"from": speaker, "value": value} for speaker, value in said]
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ]
    shared = encoded([{"conversations": turns, "system": "Be kind."}], CHAT)
    assert shared.examples == encoded([{"messages": messages}], CHAT).examples
    assert marked(shared.examples[0], CHAT).endswith("[user]hi</s>[assistant]«hello</s>»")


# templates


def test_a_template_may_stand_before_a_completion() -> None:
    row = {"q": "1+1?", "a": "2"}
    fields: dict[str, Any] = {"format": "prompt-completion", "columns": {"completion": "a"}}
    example = encoded([row], template="Q: {q}\nA:", **fields).examples[0]
    assert marked(example) == "<s>Q: 1+1?\nA:« 2</s>»"
    assert isinstance(example, TextExample)
    assert example.answers == ("2",)


def test_each_training_row_takes_one_of_several_templates() -> None:
    rows = [{"text": f"{i}", "label": 1} for i in range(300)]
    fields: dict[str, Any] = {
        "template": ["A {text}", "B {text}", "C {text}"],
        "labels": {0: "bad", 1: "great"},
    }
    drawn = encoded(rows, seed=TemplateSeed(7), **fields)
    begins = [words(example)[0][0] for example in drawn.examples]
    assert all(70 < begins.count(letter) < 130 for letter in "ABC")
    assert encoded(rows, seed=TemplateSeed(7), **fields) == drawn
    # A function of the row's number: fewer rows, the same templates.
    assert encoded(rows[:50], seed=TemplateSeed(7), **fields).examples == drawn.examples[:50]
    others = [
        encoded(rows, seed=seed, **fields) for seed in (TemplateSeed(8), TemplateSeed(7, source=1))
    ]
    assert drawn not in others
    scored = encoded(rows, **fields)
    assert {words(example)[0][0] for example in scored.examples} == {"A"}


def test_what_a_template_can_do_to_a_column() -> None:
    row = {"a": " It rained. ", "b": "The street", "c": "I ran", "q": "cause", "d": {"x": ["y"]}}
    assert render("{a:no-period}|{b:uncapital}|{c:uncapital}", row) == "It rained|the street|I ran"
    assert render("{q:effect=so,cause=because} {d[x][0]} {{}}", row) == "because y {}"
    with pytest.raises(ValueError, match="'cause' is none of a, b"):
        render("{q:a=1,b=2}", row)
    for value in (None, float("nan"), ["x"], {"x": 1}, "\ud83d"):
        with pytest.raises((KeyError, ValueError)):
            render("{v}", {"v": value})


# options of a row's own, and tasks


def test_options_from_a_column_by_number_or_text() -> None:
    row = {"text": "Pick", "o": ["one", "two", "three"]}
    fields: dict[str, Any] = {"template": "{text}:", "options": "o"}
    for label in (1, "1", "two", ["no", "two"]):
        found = encoded([{**row, "label": label}], **fields).examples[0]
        assert words(found) == ("Pick:", [" one", " two", " three"], 1)


SUPERGLUE: dict[str, tuple[dict[str, Any], str, list[str], int]] = {
    "sst2": ({"sentence": "fine", "label": 1}, "fine It was", [" terrible", " great"], 1),
    "rte": (
        {"premise": "A.", "hypothesis": "B.", "label": 0},
        'A.\nDoes this mean that "B." is true? Yes or No?\n', ["Yes", "No"], 0,
    ),
    "boolq": (
        {"passage": "P.", "question": "is it", "label": True}, "P. is it?\n", ["No", "Yes"], 1),
    "copa": (
        {"premise": "My body cast a shadow.", "choice1": "The sun rose.", "choice2": "I ran.",
         "question": "cause", "label": 0},
        "My body cast a shadow because", [" the sun rose.", " I ran."], 0,
    ),
    "record": (
        {"passage": "P", "query": "@placeholder won", "entities": ["A", "B"], "answers": ["B"]},
        'P\n@placeholder won\nQuestion: What is the "@placeholder"?\nAnswer:', [" A", " B"], 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SUPERGLUE)
def test_tasks_by_name(name: str) -> None:
    row, *expected = SUPERGLUE[name]
    assert list(words(encoded([row], template=name).examples[0])) == expected


@pytest.mark.parametrize("answers", [{"text": ["Denver", "in Denver"]}, {"spans": ["Denver"]}])
def test_questions_keep_all_answers(answers: dict[str, list[str]]) -> None:
    name, column = ("squad", "answers") if "text" in answers else ("drop", "answers_spans")
    row = {"title": "T", "context": "C", "passage": "P", "question": "Where?", column: answers}
    example = encoded([row], template=name).examples[0]
    assert marked(example).endswith("\nQuestion: Where?\nAnswer:« Denver</s>»")
    assert isinstance(example, TextExample)
    assert example.answers == next(map(tuple, answers.values()))
    unanswered = [{**row, column: {"text": []}}, row]
    assert encoded(unanswered, template=name).counts.untrained == 1


def test_the_recipe_wins_over_the_task() -> None:
    row = {"review": "fine", "label": "pos"}
    fields: dict[str, Any] = {
        "columns": {"text": "review"},
        "labels": {"neg": "bad", "pos": "great"},
    }
    assert words(encoded([row], template="sst2", **fields).examples[0]) == (
        "fine It was", [" bad", " great"], 1
    )  # fmt: skip
    data = section(template="sst2")
    assert with_task(data) == data
    assert data.template == "{text} It was"


def test_every_task_is_a_whole_recipe_section() -> None:
    for name, task in TASKS.items():
        assert problem_of(task.template) is None
        spelt = section(template=name)
        assert DataSection.model_validate(spelt.model_dump()) == spelt


def test_bos_stands_once_however_often_the_text_has_it() -> None:
    once = encoded([{"text": "ok"}]).examples
    assert encoded([{"text": "<s><s><s>ok"}]).examples == once
    doubling = tiny.tokenizer(chat_template="<s>" + tiny.CHAT_TEMPLATE)
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    text = marked(encoded([{"messages": talk}], doubling).examples[0], doubling)
    assert text == "<s>[user]hi</s>[assistant]«yo</s>»"
