from __future__ import annotations

import pytest
from support import tiny

from zoft.data.examples import Choice, TextExample
from zoft.engine.objectives.answers import (
    answers_of,
    best_f1,
    exact_match,
    f1,
    normalised,
    prompt_of,
)

TOKENIZER = tiny.tokenizer()


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def test_case_punctuation_articles_and_space_do_not_count() -> None:
    assert normalised("  The Well-Known, 'an'  A\tapple. ") == "wellknown apple"
    assert normalised("another theme") == "another theme"
    assert normalised("1,000.5 %") == "10005"


@pytest.mark.parametrize(
    ("text", "answer", "value"),
    [
        ("the Eiffel Tower", "Eiffel tower!", 1.0),
        ("in Paris", "Paris", 2 / 3),
        ("Paris Paris", "Paris", 2 / 3),  # a bag: each word once for each time it is there
        ("x y z", "z y w v", 2 * 2 / 7),
        ("London", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("the", "a", 1.0),  # nothing is left of either
    ],
)
def test_f1(text: str, answer: str, value: float) -> None:
    assert f1(text, answer) == pytest.approx(value)
    assert f1(answer, text) == pytest.approx(value)


def test_the_best_of_several_answers_counts() -> None:
    assert best_f1("in Paris", ("London", "Paris", "in Paris, France")) == pytest.approx(4 / 5)
    assert exact_match("the Paris.", ("London", "paris"))
    assert not exact_match("in Paris", ("London", "paris"))


def test_what_is_asked_and_what_is_right() -> None:
    prompt, great, bad = ids_of("xyz It was"), ids_of(" great"), ids_of(" bad")
    text = TextExample((*prompt, *great, tiny.EOS_ID), tuple(range(len(prompt), len(prompt) + 2)))
    assert prompt_of(text) == prompt
    assert answers_of(text, TOKENIZER) == (" great",)
    named = TextExample(text.ids, text.supervised, ("good", "great"))
    assert answers_of(named, TOKENIZER) == ("good", "great")
    choice = Choice(prompt, (bad, great), 1)
    assert prompt_of(choice) == prompt
    assert answers_of(choice, TOKENIZER) == (" great",)


def test_of_a_chat_the_first_reply_is_asked_for() -> None:
    chat = TextExample(
        (0, *ids_of("ab"), *ids_of("cd"), *ids_of("ef"), *ids_of("gh")), (3, 4, 7, 8)
    )
    assert prompt_of(chat) == (0, *ids_of("ab"))
    assert answers_of(chat, TOKENIZER) == ("cd",)
