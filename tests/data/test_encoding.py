from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from tokenizers import AddedToken, normalizers, processors

from zoft.data.encoding import Counts, Encoded, encode, shortened
from zoft.data.examples import Choice, Example, TextExample, length
from zoft.data.sources import Rows
from zoft.data.tokens import Tokens
from zoft.errors import DataError
from zoft.recipe.sections.data import DataSection

TOKENIZER = tiny.tokenizer()
CHAT = tiny.tokenizer(chat_template=tiny.CHAT_TEMPLATE)
MOVIES = {
    "format": "classification",
    "template": "{text} It was",
    "labels": {"0": "terrible", "1": "great"},
}


def encoded(
    rows: list[dict[str, Any]], tokenizer: Any = TOKENIZER, choice: bool = True, **section: Any
) -> Encoded:
    section = MOVIES | section if "format" not in section else section
    data = DataSection.model_validate({"train": {"path": "rows.jsonl"}, **section})
    return encode(Rows(rows), data, tokenizer, choice=choice)


def first(*args: Any, **more: Any) -> Any:
    return encoded(*args, **more).examples[0]


def failure(*args: Any, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        encoded(*args, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def marked(example: TextExample, tokenizer: Any = TOKENIZER) -> str:
    """The text with supervised stretches in «»."""
    parts = [
        f"«{tokenizer.decode([token])}»" if p in example.supervised else tokenizer.decode([token])
        for p, token in enumerate(example.ids)
    ]
    return "".join(parts).replace("»«", "")


# classification


def test_a_choice_is_a_prompt_and_every_label_word() -> None:
    example = first([{"text": "ok", "label": 1}])
    assert TOKENIZER.decode(example.prompt) == "<s>ok It was"
    assert [TOKENIZER.decode(option) for option in example.options] == [" terrible", " great"]
    assert list(map(len, example.options)) == [9, 1]
    assert example.label == 1


def test_the_right_word_as_a_text() -> None:
    example = first([{"text": "ok", "label": 0}], choice=False)
    assert marked(example) == "<s>ok It was« terrible»"


def test_no_blank_where_the_template_ends_in_one() -> None:
    example = first([{"text": "ok", "label": "0"}], template="{text}\n")
    assert TOKENIZER.decode(example.options[0]) == "terrible"


def test_tokens_that_span_prompt_and_word_belong_to_the_options() -> None:
    """Alone the prompt ends in the token of a blank; with `great` behind it, it does not."""
    example = first([{"text": "ok", "label": 1}], template="{text} It was ")
    assert TOKENIZER.decode(example.prompt) == "<s>ok It was"
    assert [TOKENIZER.decode(option) for option in example.options] == [" terrible", " great"]
    assert len(example.options[1]) == 1


@pytest.mark.parametrize("label", [1, "1", 1.0])
def test_label_values_are_compared_as_text(label: object) -> None:
    assert first([{"text": "ok", "label": label}]).label == 1
    assert first([{"text": "ok", "label": True}], labels={False: "bad", True: "good"}).label == 1


def test_columns_rename_roles() -> None:
    row = {"sentence": "ok", "gold": 1}
    example = first([row], columns={"text": "sentence", "label": "gold"})
    assert example == first([{"text": "ok", "label": 1}])
    assert first([row], columns={"label": "gold"}, template="{sentence} It was") == example


def test_a_wrong_row_is_shown_with_what_was_expected() -> None:
    good = {"text": "ok", "label": 1}
    message = failure([good, {"txt": "ok", "label": 1}])
    assert "row 2: expected a column 'text'" in message
    assert "found txt, label; the row: {'txt': 'ok', 'label': 1}" in message
    assert "row 2: expected a column 'label'" in failure([good, {"text": "ok", "label": None}])
    assert "row 1: label '2' is not in data.labels (0, 1)" in failure([{**good, "label": 2}])
    assert "data.template '{text.x} It'" in failure([good], template="{text.x} It")
    assert len(failure([{"txt": "x" * 5000}])) < 400


def test_a_word_without_tokens_is_refused() -> None:
    deaf = tiny.tokenizer()
    deaf.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    labels = {0: "x", 1: "a"}
    message = failure([{"text": "ok", "label": 1}], deaf, template="{text}\n", labels=labels)
    assert "no token for the word 'x'" in message


# prompt-completion and text


def test_completion_and_eos_are_learnt() -> None:
    example = first([{"prompt": "2+2=", "completion": 4}], format="prompt-completion")
    assert marked(example) == "<s>2+2=«4</s>»"
    spanning = first([{"prompt": "It was ", "completion": "great"}], format="prompt-completion")
    assert marked(spanning) == "<s>It was« great</s>»"


def test_eos_stands_once() -> None:
    example = first([{"prompt": "a", "completion": "b</s>"}], format="prompt-completion")
    assert marked(example) == "<s>a«b</s>»"


def test_a_text_is_learnt_whole() -> None:
    assert marked(first([{"text": "It was"}], format="text")) == "<s>«It was</s>»"
    bare = tiny.tokenizer(bos=False)
    assert marked(first([{"text": "It was"}], bare, format="text"), bare) == "I«t was</s>»"


def test_rows_without_a_trained_token_are_dropped_and_counted() -> None:
    rows = [{"prompt": "a", "completion": c} for c in ("b", "", "c")]
    result = encoded(rows, format="prompt-completion")
    assert [marked(e) for e in result.examples if isinstance(e, TextExample)] == [
        "<s>a«b</s>»",
        "<s>a«c</s>»",
    ]
    assert result.counts == Counts(read=3, kept=2, truncated=0, too_long=0, untrained=1)
    assert encoded([{"text": ""}, {"text": "a"}], format="text").counts.untrained == 1
    message = failure([{"text": ""}] * 3, format="text")
    assert message.startswith("none of 3 rows can be used: 0 longer")
    assert "3 without a token to learn" in message


def test_values_that_are_no_text_are_refused() -> None:
    assert "row 1: text is no text" in failure([{"text": ["a"]}], format="text")


# special tokens


def test_bos_stands_once() -> None:
    assert first([{"text": "<s>ok", "label": 1}]) == first([{"text": "ok", "label": 1}])
    assert first([{"text": "<s>ok"}], format="text") == first([{"text": "ok"}], format="text")


def test_a_tokenizer_that_ends_texts_does_not_do_so_in_the_middle() -> None:
    closing = tiny.tokenizer()
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A </s>", special_tokens=[("</s>", tiny.EOS_ID)]
    )  # OPT's BOS is its EOS, too
    assert Tokens.of(closing).start == (tiny.EOS_ID,)
    row = {"prompt": "a", "completion": "b"}
    assert marked(first([row], closing, format="prompt-completion")) == "</s>a«b</s>»"


# messages


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


TALK = [turn("user", "hi"), turn("assistant", "hello"), turn("user", "x"), turn("assistant", "y")]


def test_the_assistants_turns_are_learnt_with_their_end() -> None:
    example = first([{"messages": TALK}], CHAT, format="messages")
    assert marked(example) == "<s>[user]hi</s>[assistant]«hello</s>»[user]x</s>[assistant]«y</s>»"


def test_a_chat_may_open_with_the_assistant() -> None:
    example = first([{"messages": TALK[1:]}], CHAT, format="messages")
    assert marked(example) == "<s>[assistant]«hello</s>»[user]x</s>[assistant]«y</s>»"


def test_a_template_that_drops_earlier_thoughts() -> None:
    """As Qwen3's: a turn is spelt differently once others follow it."""
    thinking = tiny.tokenizer(
        chat_template="{% for m in messages %}[{{ m['role'] }}]{% if loop.last and m['role'] =="
        " 'assistant' %}(hm){% endif %}{{ m['content'] }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    example = first([{"messages": TALK}], thinking, format="messages")
    assert marked(example) == (
        "<s>[user]hi</s>\n[assistant]«hello</s>»\n[user]x</s>\n[assistant]«(hm)y</s>»\n"
    )


BOUNDARIES: dict[str, tuple[str, str]] = {  # template, and what is learnt of the reply "great"
    "a blank in the request": (
        "{% for m in messages %}{% if m.role == 'user' %}U: {{ m.content }}{% else %}A: "
        "{{ m.content }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}",
        "U: hiA:« great</s>»",
    ),
    "a blank behind the question": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST] {% else %}"
        "{{ m.content }}</s>{% endif %}{% endfor %}",
        "[INST] hi [/INST]« great</s>»",
    ),
    "a blank before the reply": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}"
        "{{ ' ' + m.content }}</s>{% endif %}{% endfor %}",
        "[INST]hi[/INST]« great</s>»",
    ),
    "a request that opens thoughts": (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]ground: {% endif %}",
        "[user]hi</s>[assistant]«great</s>»",
    ),
    "what is learnt is marked by the template": (
        "{% for m in messages %}{% if m.role == 'user' %}U: {{ m.content }}{% else %}A: "
        "{% generation %}{{ m.content }}</s>{% endgeneration %}{% endif %}{% endfor %}",
        "U: hiA:« great</s>»",
    ),
}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_the_first_token_of_a_reply_is_learnt(name: str) -> None:
    """Where a token spans the template's own blank and the reply's first letter, it is learnt."""
    template, expected = BOUNDARIES[name]
    talk = [turn("user", "hi"), turn("assistant", "great")]
    example = first([{"messages": talk}], tiny.tokenizer(chat_template=template), format="messages")
    assert marked(example) == f"<s>{expected}"


def test_line_breaks_that_merge_are_learnt_with_the_reply() -> None:
    merging = tiny.tokenizer(
        chat_template=BOUNDARIES["a blank in the request"][0].replace(": ", ":\n")
    )
    merging.add_tokens(["\n\n"])
    talk = [turn("user", "hi"), turn("assistant", "\ngreat")]
    example = first([{"messages": talk}], merging, format="messages")
    assert marked(example, merging) == "<s>U:\nhiA:«\n\ngreat</s>»"


def test_a_header_that_takes_up_blanks_is_not_learnt() -> None:
    """Phi-3's tokens swallow the blanks behind them, those of the reply included."""
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    greedy = tiny.tokenizer(chat_template=template)
    greedy.add_tokens([AddedToken("<|assistant|>", rstrip=True, special=True)])
    talk = [turn("user", "hi"), turn("assistant", " great")]
    example = first([{"messages": talk}], greedy, format="messages")
    assert marked(example, greedy) == "<s><|user|>\nhi</s><|assistant|>«great</s>»"


def test_a_template_that_hides_earlier_turns_is_refused() -> None:
    last = tiny.tokenizer(chat_template="{{ messages[-1]['role'] }}:{{ messages[-1]['content'] }}")
    for talk in (TALK, [TALK[0], turn("assistant", ""), TALK[0]]):
        message = failure([{"messages": talk}], last, format="messages")
        assert "row 1: the chat template rewrites turn 2" in message


def test_a_chat_without_reply_is_untrained() -> None:
    rows = [{"messages": TALK}, {"messages": TALK[:1]}]
    assert encoded(rows, CHAT, format="messages").counts.untrained == 1


def test_messages_need_a_template_and_messages() -> None:
    assert "prompt-completion" in failure([{"messages": TALK}], format="messages")
    for wrong in ([], "hi", ["hi"], [{"content": "hi"}]):
        assert "row 1: expected a list of" in failure(
            [{"messages": wrong}], CHAT, format="messages"
        )
    strict = tiny.tokenizer(chat_template="{{ raise_exception('roles must alternate') }}")
    assert "roles must alternate" in failure([{"messages": TALK}], strict, format="messages")


# length

LONG = {"text": "abcdefghij", "label": 1}  # 1 + 10 + 2 tokens, and 9 of " terrible"
SHORT = {"text": "ok", "label": 1}


def test_a_long_row_stops_the_run_and_says_the_choices() -> None:
    message = failure([SHORT, LONG], max_length=16)
    assert "row 2: 22 tokens, data.max_length is 16" in message
    assert "drop or truncate" in message


def test_long_rows_can_be_dropped() -> None:
    result = encoded([LONG, SHORT], max_length=16, on_overflow="drop")
    assert result.examples == encoded([SHORT]).examples
    assert result.counts == Counts(read=2, kept=1, truncated=0, too_long=1, untrained=0)
    assert "1 longer than data.max_length (16)" in failure(
        [LONG], max_length=16, on_overflow="drop"
    )


def test_truncation_keeps_bos_and_the_options() -> None:
    result = encoded([LONG], max_length=16, on_overflow="truncate")
    (example,) = result.examples
    assert isinstance(example, Choice)
    assert TOKENIZER.decode(list(example.prompt)) == "<s>ghij It was"
    assert example.options == first([LONG]).options
    assert result.counts.truncated == 1
    too_narrow = failure([LONG], max_length=9, on_overflow="truncate")
    assert "1 longer than" in too_narrow


def test_truncation_keeps_the_completion() -> None:
    row = {"prompt": "abcdefgh", "completion": "xyz"}

    section = {"format": "prompt-completion", "on_overflow": "truncate"}

    def cut(limit: int) -> str:
        return marked(first([row], max_length=limit, **section))

    assert cut(13) == "<s>abcdefgh«xyz</s>»"
    assert cut(8) == "<s>fgh«xyz</s>»"
    assert cut(5) == "<s>«xyz</s>»"
    assert "1 longer than data.max_length (4)" in failure([row], max_length=4, **section)


def test_truncation_of_a_chat_keeps_its_last_reply() -> None:
    def cut(limit: int, *texts: str) -> str:
        roles = ("user", "assistant") * len(texts)
        talk = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
        section = {"format": "messages", "on_overflow": "truncate", "max_length": limit}
        return marked(first([{"messages": talk}], CHAT, **section), CHAT)

    long = "u" * 40
    assert cut(40, long, "ab") == "<s>" + "u" * 24 + "</s>[assistant]«ab</s>»"
    # An earlier reply that loses its beginning is not learnt.
    assert cut(60, "a", "bcdefg", long, "z").endswith("u</s>[assistant]«z</s>»")
    assert cut(67, "a", "bcdefg", long, "z").startswith("<s>cdefg</s>[user]uuu")
    # What nobody answers goes first.
    assert cut(30, "a", "bc", long).endswith("[assistant]«bc</s>»")


@pytest.mark.parametrize("prompt", ["", "u"])
def test_a_reply_that_is_too_long_is_dropped(prompt: str) -> None:
    talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "x" * 50}]
    section = {"format": "messages", "on_overflow": "truncate", "max_length": 40}
    assert "1 longer than" in failure([{"messages": talk}], CHAT, **section)


sequences = st.builds(
    lambda n, first, start: (
        TextExample(
            (0,) * start + tuple(range(10, 10 + n)), tuple(range(max(first, 1), n + start))
        ),
        start,
    ),
    st.integers(2, 30),
    st.integers(1, 40),
    st.integers(0, 1),
).filter(lambda drawn: bool(drawn[0].supervised))
choices = st.builds(
    lambda n, options, start: (
        Choice((0,) * start + tuple(range(10, 10 + n)), tuple((7,) * k for k in options), 0),
        start,
    ),
    st.integers(1, 30),
    st.lists(st.integers(1, 5), min_size=2, max_size=3),
    st.integers(0, 1),
)


@given(drawn=sequences | choices, limit=st.integers(2, 40))
def test_what_is_shortened_fits_and_predicts_the_same_tokens(
    drawn: tuple[Example, int], limit: int
) -> None:
    example, start = drawn
    if length(example) <= limit:
        return
    short = shortened(example, limit, start)
    if short is None:
        learnt = example.options if isinstance(example, Choice) else [example.supervised]
        assert limit < max(start, 1) + max(map(len, learnt))
        return
    assert length(short) == limit
    match example, short:
        case TextExample(), TextExample():
            before = [example.ids[p] for p in example.supervised]
            after = [short.ids[p] for p in short.supervised]
            assert after
            prompted = example.supervised[0] > max(start, 1)
            assert after == (before if prompted else before[: len(after)])
            assert short.ids[:start] == example.ids[:start]
            assert short.supervised[0] >= 1
        case Choice(), Choice():
            assert (short.options, short.label) == (example.options, example.label)
            assert short.prompt[:start] == example.prompt[:start]
            assert example.prompt[-1] == short.prompt[-1] or short.prompt == example.prompt[:start]


def test_chunks_keep_the_order_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": str(i), "label": i % 2} for i in range(7)]
    whole = encoded(rows)
    monkeypatch.setattr("zoft.data.encoding.CHUNK", 3)
    assert encoded(rows) == whole
    assert "row 7" in failure([*rows[:6], {"text": "a", "label": 9}])
