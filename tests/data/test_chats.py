"""What of a conversation is learnt, under the templates of model families; and what is not left out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from support import tiny
from support.families import FAMILIES, bare

from zoft.data.encoding import encode
from zoft.data.examples import TextExample
from zoft.data.files import read_file
from zoft.data.sources import Rows
from zoft.data.tokens import Tokens
from zoft.errors import DataError
from zoft.recipe.sections.data import DataSection

Turns = list[dict[str, Any]]


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


HI, GREAT = turn("user", "hi"), turn("assistant", "great")
PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALKS: dict[str, Turns] = {
    "one reply": [HI, GREAT],
    "two replies": [HI, GREAT, turn("user", "was it?"), turn("assistant", "It was bad")],
    "blanks around": [HI, turn("assistant", " great \n"), HI, turn("assistant", "\n\nbad ")],
    "a reply twice": [HI, GREAT, HI, GREAT],
    "the question again": [HI, turn("assistant", "hi"), turn("user", "<"), turn("assistant", "<")],
    "thoughts": [HI, turn("assistant", "<think>\nhm\n</think>\n\ngreat"), HI,
                 turn("assistant", "<think>\nso\n</think>\n\nbad")],
}  # fmt: skip


def learnt(row: dict[str, Any], tokenizer: Any, **section: Any) -> TextExample:
    values = {"train": {"path": "a.jsonl"}, "format": "messages", **section}
    data = DataSection.model_validate(values)
    (example,) = encode(Rows([row]), data, tokenizer, choice=False).examples
    assert isinstance(example, TextExample)
    return example


def marked(row: dict[str, Any], template: Any, **section: Any) -> str:
    """What the template makes of a row, with what is learnt between « and »."""
    tokenizer = tiny.tokenizer(chat_template=template)
    example = learnt(row, tokenizer, **section)
    texts = [str(tokenizer.decode([one])) for one in example.ids]
    marks = [f"«{t}»" if p in example.supervised else t for p, t in enumerate(texts)]
    return "".join(marks).replace("»«", "").removeprefix("<s>")


def failure(row: dict[str, Any], template: Any, **section: Any) -> str:
    with pytest.raises(DataError) as caught:
        marked(row, template, **section)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", ["marked", "bare"])
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_learnt_is_what_the_library_masks(family: str, talk: str, form: str) -> None:
    """The same tokens, whether the template marks its replies or zoft has to find them."""
    turns = TALKS[talk]
    reference: Any = tiny.tokenizer(chat_template=FAMILIES[family]).apply_chat_template(
        turns, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = reference["input_ids"], reference["assistant_masks"]
    template = FAMILIES[family] if form == "marked" else bare(FAMILIES[family])
    tokenizer = tiny.tokenizer(chat_template=template)
    example = learnt({"messages": turns}, tokenizer)
    behind = len(example.ids) - len(ids)  # BOS, where the template does not write it
    assert 0 <= behind <= len(Tokens.of(tokenizer).start)
    assert list(example.ids[behind:]) == ids
    assert [p - behind for p in example.supervised] == [p for p, one in enumerate(mask) if one]


# tools, calls and thoughts

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"city": {"type": "string"}}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"city": "Rome"}}}
CALLS = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}({{ m.reasoning_content }})"
    "{% endif %}{% if m.tool_calls %}{% for c in m.tool_calls %}<{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}>{% endfor %}{% endif %}{{ m.content or '' }}</s>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])], ids=["list", "text"])
def test_functions_stand_in_the_prompt(tools: Any) -> None:
    row = {"tools": tools, "messages": [HI, GREAT]}
    expected = f"{json.dumps(TOOL)}[user]hi</s>[assistant]«great</s>»"
    assert marked(row, CALLS) == expected
    renamed = {"functions": tools, "messages": [HI, GREAT]}
    assert marked(renamed, CALLS, columns={"tools": "functions"}) == expected
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "great"}]
    assert marked({"tools": tools, "conversations": talk}, CALLS, format="sharegpt") == expected


def test_without_functions_there_are_none() -> None:
    nothing: tuple[Any, ...] = (None, [], "", "[]")
    for tools in nothing:
        row = {"tools": tools, "messages": [HI, GREAT]}
        assert marked(row, CALLS) == "[user]hi</s>[assistant]«great</s>»"
    wrong: tuple[Any, ...] = ("f(x)", ["f"], 7, {"f": 1})
    for tools in wrong:
        assert "row 1: " in failure({"tools": tools, "messages": [HI, GREAT]}, CALLS)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tools": [TOOL], "messages": [HI, GREAT]}, "the functions of the column tools"),
        ({"messages": [HI, turn("assistant", "", tool_calls=[CALL])]}, "tool_calls of turn 2"),
        ({"messages": [HI, turn("assistant", "yes", tool_calls=[CALL]), GREAT]}, "of turn 2"),
        ({"messages": [HI, turn("assistant", "4", reasoning_content="2+2")]}, "reasoning_content"),
        ({"messages": [HI, turn("assistant", "4", thinking="2+2")]}, "thinking of turn 2"),
        ({"messages": [turn("system", "x", tools=[TOOL]), HI, GREAT]}, "tools of turn 1"),
    ],
)
def test_what_a_template_leaves_out_is_refused(row: dict[str, Any], said: str) -> None:
    message = failure(row, PLAIN)
    assert f"row 1: the chat template leaves out {said}" in message or said in message
    assert "leaves out" in message


def test_a_template_that_writes_no_reply_is_refused() -> None:
    hiding = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'user' %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    assert "leaves out the content of turn 2" in failure({"messages": [HI, GREAT]}, hiding)


def test_calls_and_thoughts_are_learnt() -> None:
    talk = [
        HI,
        turn("assistant", None, tool_calls=[CALL], reasoning="hm"),
        turn("tool", "12"),
        GREAT,
    ]
    assert marked({"messages": talk}, CALLS) == (
        '[user]hi</s>[assistant]«(hm)<f {"city": "Rome"}></s>»[tool]12</s>[assistant]«great</s>»'
    )


def test_earlier_thoughts_may_be_dropped() -> None:
    """A template that drops them once others follow does write them at the end."""
    last = CALLS.replace(
        "{% if m.reasoning_content %}", "{% if m.reasoning_content and loop.last %}"
    )
    talk = [HI, turn("assistant", "great", reasoning_content="hm"), HI, turn("assistant", "bad")]
    assert marked({"messages": talk}, last) == (
        "[user]hi</s>[assistant]«great</s>»[user]hi</s>[assistant]«bad</s>»"
    )


def test_arguments_come_in_the_form_that_the_template_reads() -> None:
    """OpenAI's are JSON in a text; a template that writes JSON would quote them twice."""
    text = {"type": "function", "function": {"name": "f", "arguments": '{"city": "Rome"}'}}
    raw = CALLS.replace("arguments | tojson", "arguments")
    for call, template in ((text, CALLS), (CALL, CALLS), (text, raw)):
        row = {"messages": [HI, turn("assistant", None, tool_calls=[call])]}
        assert marked(row, template) == '[user]hi</s>[assistant]«<f {"city": "Rome"}></s>»'


@pytest.mark.parametrize(
    "code", ["{{ 1 // 0 }}", "{{ messages[9].role }}", "{% for i in range(10 ** 9) %}{% endfor %}"]
)
def test_what_a_template_cannot_do_is_an_error_of_the_row(code: str) -> None:
    assert "row 1: the chat template fails" in failure({"messages": [HI, GREAT]}, code)


# parts

PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{% if p.type == 'text' %}"
    "{{ p.text }}{% endif %}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize("template", [PLAIN, PARTS, PLAIN.replace("m.content", "m.content + ''")])
def test_parts_of_text_and_text_are_the_same(template: str) -> None:
    parts = turn("assistant", [{"type": "text", "text": "gre"}, {"type": "text", "text": "at"}])
    for reply in (GREAT, parts):
        assert marked({"messages": [HI, reply]}, template) == "[user]hi</s>[assistant]«great</s>»"


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio"])
def test_what_is_no_text_is_refused(kind: str) -> None:
    parts = turn("user", [{"type": kind, kind: "a.png"}, {"type": "text", "text": "what?"}])
    assert f"row 1: turn 1 holds {kind}" in failure({"messages": [parts, GREAT]}, PARTS)


# flags


@pytest.mark.parametrize(
    "flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}]
)
def test_a_reply_may_be_left_unlearnt(flag: dict[str, Any]) -> None:
    talk = [HI, {**GREAT, **flag}, HI, {**turn("assistant", "bad"), "weight": 1}]
    expected = "[user]hi</s>[assistant]great</s>[user]hi</s>[assistant]«bad</s>»"
    assert marked({"messages": talk}, PLAIN) == expected
    marks = PLAIN.replace("{{ m.content }}</s>",
        "{% if m.role == 'user' %}{{ m.content }}</s>{% else %}{% generation %}{{ m.content }}</s>"
        "{% endgeneration %}{% endif %}")  # fmt: skip
    assert marked({"messages": talk}, marks) == expected
    shared = [
        {"from": "gpt" if one["role"] == "assistant" else "human", "value": one["content"],
         **{k: v for k, v in one.items() if k not in ("role", "content")}}
        for one in talk
    ]  # fmt: skip
    assert marked({"conversations": shared}, PLAIN, format="sharegpt") == expected


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        ([HI, {**GREAT, "weight": 0.5}], "turn 2: weight is 0.5"),
        ([HI, {**GREAT, "train": "no"}], "turn 2: train is 'no'"),
        ([{**HI, "train": True}, GREAT], "turn 1: train is True; only the assistant's"),
    ],
)
def test_flags_that_say_something_else_are_refused(talk: Turns, said: str) -> None:
    assert said in failure({"messages": talk}, PLAIN)


# what tables do to rows, half characters, several templates


def parquet(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    path.write_bytes(stream.getvalue())
    return read_file(path)


def test_empty_keys_that_a_table_adds_are_not_written(tmp_path: Path) -> None:
    """One call has a city, another a day; in the table both have both, one of them empty."""
    calls = [CALL, {"type": "function", "function": {"name": "g", "arguments": {"day": "Monday"}}}]
    talk = [HI, *({"role": "assistant", "tool_calls": [call]} for call in calls), GREAT]
    rows = [{"messages": talk, "tools": [TOOL, {"type": "function", "function": {"name": "g"}}]}]
    (row,) = parquet(tmp_path / "a.parquet", rows)
    assert marked(row, CALLS) == marked(rows[0], CALLS)
    assert "null" not in marked(row, CALLS)


def test_empty_keys_of_parts_are_no_pictures() -> None:
    seeing = PARTS.replace("{% if p.type", "{% if 'image' in p %}<img>{% endif %}{% if p.type")
    said = [{"type": "text", "text": "hi", "image": None}]
    expected = "[user]hi</s>[assistant]«great</s>»"
    assert marked({"messages": [turn("user", said), GREAT]}, seeing) == expected


def test_an_empty_argument_that_a_file_of_json_writes_is_kept(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": {"limit": None}}}
    row = {"messages": [HI, turn("assistant", None, tool_calls=[call])]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (read,) = read_file(tmp_path / "a.jsonl")
    assert '<f {"limit": null}>' in marked(read, CALLS)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [HI, turn("assistant", "\ud83d")]},
        {"messages": [turn("user", [{"type": "text", "text": "\ud83d"}]), GREAT]},
        {"messages": [HI, turn("assistant", "x", reasoning_content="\ud83d")]},
        {"messages": [HI, turn("assistant", None, tool_calls=[{"function": {"name": "\udc00",
         "arguments": "{}"}}])]},
        {"messages": [HI, GREAT], "tools": [{"name": "\ud83d"}]},
    ],
)  # fmt: skip
def test_half_a_character_is_an_error_of_its_row(row: dict[str, Any]) -> None:
    message = failure(row, CALLS)
    assert message.startswith("row 1: ")
    assert "half a character" in message


def test_several_templates_are_chosen_as_the_library_does() -> None:
    both = {"default": PLAIN, "tool_use": CALLS}
    assert marked({"messages": [HI, GREAT]}, both) == "[user]hi</s>[assistant]«great</s>»"
    with_tools = marked({"messages": [HI, GREAT], "tools": [TOOL]}, both)
    assert with_tools.startswith(json.dumps(TOOL))
    message = failure({"messages": [HI, GREAT]}, {"rag": PLAIN, "tool_use": CALLS})
    assert "several chat templates (rag, tool_use) and none of the name default" in message


# turns that are spelt otherwise once others follow

DROPPING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}[{{ m.role }}]"
    "{% if m.reasoning_content and loop.index0 > ns.last %}({{ m.reasoning_content }}){% endif %}"
    "{% for c in m.tool_calls or [] %}<{{ c.function.name }}>{% endfor %}"
    "{{ m.content or '' }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_thoughts_between_calls_are_dropped_with_the_next_question() -> None:
    """As Qwen3 has it: until then a chat's beginning is no beginning of the whole."""
    call = turn("assistant", None, tool_calls=[CALL], reasoning_content="hm")
    last = turn("assistant", "great", reasoning_content="so")
    talk = [HI, call, turn("tool", "12"), last]
    assert marked({"messages": talk}, DROPPING) == (
        "[user]hi</s>[assistant]«(hm)<f></s>»[tool]12</s>[assistant]«(so)great</s>»"
    )
    said = "[user]hi</s>[assistant]«<f></s>»[tool]12</s>[assistant]«great</s>»"
    assert marked({"messages": [*talk, HI, turn("assistant", "bad")]}, DROPPING) == (
        said + "[user]hi</s>[assistant]«bad</s>»"
    )


def test_functions_that_stand_before_the_last_question() -> None:
    """As Mistral has it: the question before is spelt with them only while it is the last."""
    last = (
        "{% for m in messages %}{% if m.role == 'user' %}{% if tools and m == (messages | "
        "selectattr('role', 'equalto', 'user') | list)[-1] %}{{ tools | tojson }}{% endif %}"
        "[INST]{{ m.content }}[/INST]{% else %}{{ ' ' + m.content }}</s>{% endif %}{% endfor %}"
    )
    talk = [HI, GREAT, turn("user", "x"), turn("assistant", "bad")]
    assert marked({"messages": talk, "tools": [TOOL]}, last) == (
        f"[INST]hi[/INST]« great</s>»{json.dumps([TOOL])}[INST]x[/INST]« bad</s>»"
    )
