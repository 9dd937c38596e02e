"""Rows and templates as users of other tools reported them: learnt as they are meant, or refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from support import tiny

from zoft.data.encoding import Encoded, encode, endings
from zoft.data.formats.table import detect
from zoft.data.preview import parts
from zoft.data.sets import prepare
from zoft.data.sources import Rows, load_rows
from zoft.errors import DataError
from zoft.recipe.load import load_recipe
from zoft.recipe.sections.data import DataSection, DataSource

Row = dict[str, Any]
ASKED, SAID = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "great"}
TALK = [ASKED, SAID]
LABELS = {"0": "bad", "1": "great"}
WORDS: Row = {"template": "{text} It was", "labels": LABELS, "format": "classification"}
HEAD = "{{ bos_token }}{% for m in messages %}"
TAIL = "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
TURN = "[{{ m.role }}]{{ m.content }}{{ eos_token }}"
ALL = HEAD + TURN + TAIL


def read(path: Path, **source: Any) -> list[Row]:
    return load_rows(DataSource.model_validate({"path": str(path), **source})).rows


def encoded(rows: list[Row], chat: str = ALL, **section: Any) -> Encoded:
    data = DataSection.model_validate({"train": {"path": "a.jsonl"}, **section})
    if data.format == "auto":
        data = data.model_copy(update={"format": detect(rows, data)})
    return encode(Rows(rows), data, tiny.tokenizer(chat_template=chat), choice=True)


def marked(row: Row, chat: str = ALL, **section: Any) -> str:
    (example,) = encoded([row], chat, **section).examples
    shown = parts(example, tiny.tokenizer())
    return "".join(f"«{text}»" if learnt else text for text, learnt in shown)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Files

LINE = b'{"text": "a", "label": 1}'
FILES = {
    "UTF-16 of an editor": ("a.jsonl", LINE.decode().encode("utf-16"), "it is UTF-16: convert it"),
    "a gzip under another name": ("a.jsonl", gzip.compress(LINE), "unpack it with gunzip"),
    "a zstd under another name": ("a.csv", b"\x28\xb5\x2f\xfd\x00\xff", "unpack it with unzstd"),
    "a workbook named CSV": ("a.csv", b"PK\x03\x04\xff", "save it as CSV"),
    "Parquet named JSONL": ("a.jsonl", b"PAR1\x15\x04\x8c", "name it .parquet"),
    "a packed file": ("a.jsonl.gz", gzip.compress(LINE), "unpack it"),
    "zero bytes after a crash": ("a.jsonl", LINE + b"\n\0\0\0\0\n", ":2: not valid JSON"),
    "zero bytes in a cell": ("a.jsonl", LINE + b"\n" + b"\0" * 9, "zero bytes"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_text_are_named_with_the_way_out(name: str, tmp_path: Path) -> None:
    file, content, said = FILES[name]
    (tmp_path / file).write_bytes(content)
    assert said in refused(lambda: read(tmp_path / file))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_may_end_as_any_system_ends_them(end: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        end.join([LINE, b'{"text": "\xe2\x80\xa8", "label": 0}', b""])
    )
    assert [row["text"] for row in read(tmp_path / "a.jsonl")] == ["a", "\u2028"]


def test_tables_are_read_by_what_they_mean(tmp_path: Path) -> None:
    talk = [[list(turn.items()) for turn in TALK]]
    table = pyarrow.table(
        {
            "text": pyarrow.array(["a"], pyarrow.large_string()).dictionary_encode(),
            "price": pyarrow.array([Decimal("1.50")]),
            "label": pyarrow.array([Decimal("1.0")]),
            "messages": pyarrow.array(
                talk, pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string()))
            ),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (row,) = read(tmp_path / "a.parquet")
    assert marked(row, format="messages") == "<s>[user]hi</s>[assistant]«great</s>»"
    priced = marked(row, template="{text} {price} It was", labels=LABELS, format="classification")
    assert priced == "<s>a 1.50 It was« great»"


def folder(name: str, *files: str) -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        for file in files:
            (at / name / file).parent.mkdir(parents=True, exist_ok=True)
            (at / name / file).write_bytes(LINE)
        return at / name

    return make


def link(at: Path) -> Path:
    (at / "gone.jsonl").symlink_to("nowhere.jsonl")
    return at / "gone.jsonl"


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "the same split twice": (folder("d", "train.json", "train.jsonl"), "name one: train.json, train"),
    "a split of shards twice": (folder("d", "a-0.json", "a-1.csv"), "several kinds of files"),
    "save_to_disk": (folder("d", "dataset_info.json", "state.json"), "to_parquet"),
    "save_to_disk of splits": (folder("d", "dataset_dict.json", "train/state.json"), "to_parquet"),
    "a folder of folders": (folder("d", "en/train.jsonl", "de/train.jsonl"), "in it: de, en"),
    "a pattern": (lambda at: folder("d", "a.jsonl")(at) / "*.jsonl", "a folder stands for its files"),
    "a link to nowhere": (link, "a link to nowhere.jsonl, where there is nothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_places_without_one_reading_are_refused(name: str, tmp_path: Path) -> None:
    make, said = PLACES[name]
    assert said in refused(lambda: read(make(tmp_path)))


def test_a_variable_of_the_shell_is_told_how_it_is_written() -> None:
    assert "${env:NAME}" in refused(lambda: read(Path("$HOME/a.jsonl")))


def test_blanks_in_a_header_are_seen() -> None:
    message = refused(lambda: encoded([{"text": "a", " label": "1"}], **WORDS))
    assert "expected a column 'label'" in message
    assert "found text, ' label'" in message


@pytest.mark.parametrize("label", [1, 1.0, True, "1", Decimal(1)])
def test_a_label_is_found_whatever_its_column_is_of(label: object) -> None:
    row = {"text": "a", "label": label}
    assert marked(row, **WORDS).endswith("« great»")


@pytest.mark.parametrize("label", ["1.0", " 1", -1, [1], 10**400, float("nan"), float("inf")])
def test_a_label_that_is_none_is_named(label: object) -> None:
    row = {"text": "a", "label": label}
    message = refused(lambda: marked(row, **WORDS))
    assert "is not in data.labels (0, 1)" in message
    assert len(message) < 600


# Columns

CALL = '{"name": "f", "arguments": {"a": 1}}'
CALLS = (
    HEAD + "[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<{{ c.function.name }}:{{ c.function.arguments | tojson }}>{% endfor %}{{ eos_token }}" + TAIL
)
THINKING = "{% if enable_thinking is false %}/no {% endif %}" + ALL
DOCUMENTS = "{% for d in documents or [] %}({{ d.title }}){% endfor %}" + ALL


def shared(*turns: tuple[str, str]) -> list[Row]:
    return [{"from": role, "value": value} for role, value in turns]


GOOD: dict[str, tuple[Row, str, str]] = {
    "a chat as JSON text": (
        {"messages": json.dumps(TALK)}, ALL, "<s>[user]hi</s>[assistant]«great</s>»"),
    "turns of sharegpt as JSON text": (
        {"conversations": json.dumps(shared(("human", "hi"), ("gpt", "great")))}, ALL,
        "<s>[user]hi</s>[assistant]«great</s>»"),
    "a column system beside messages": (
        {"messages": TALK, "system": "be"}, ALL,
        "<s>[system]be</s>[user]hi</s>[assistant]«great</s>»"),
    "a call and what it found": (
        {"conversations": shared(("human", "hi"), ("function_call", CALL), ("observation", "7"),
                                 ("gpt", "great"))}, CALLS,
        '<s>[user]hi</s>[assistant]«<f:{"a": 1}></s>»[tool]7</s>[assistant]«great</s>»'),
    "two calls at once": (
        {"conversations": shared(("human", "hi"), ("function_call", f"[{CALL}, {CALL}]"))}, CALLS,
        '<s>[user]hi</s>[assistant]«<f:{"a": 1}><f:{"a": 1}></s>»'),
    "documents": (
        {"messages": TALK, "documents": [{"title": "t", "text": "x"}]}, DOCUMENTS,
        "(t)<s>[user]hi</s>[assistant]«great</s>»"),
    "no documents": (
        {"messages": TALK, "documents": []}, ALL, "<s>[user]hi</s>[assistant]«great</s>»"),
    "a switch of the template": (
        {"messages": TALK, "chat_template_kwargs": {"enable_thinking": False}}, THINKING,
        "/no <s>[user]hi</s>[assistant]«great</s>»"),
    "a switch as JSON text": (
        {"messages": TALK, "chat_template_kwargs": '{"enable_thinking": false}'}, THINKING,
        "/no <s>[user]hi</s>[assistant]«great</s>»"),
    "alpaca without history": (
        {"instruction": "hi", "output": "great", "history": []}, ALL, "«great</s>»"),
    "JSON in JSON that is not ASCII": (
        {"conversations": shared(("human", "hi"), ("function_call", CALL.replace("1", '"zäh"')))},
        CALLS, '<s>[user]hi</s>[assistant]«<f:{"a": "zäh"}></s>»'),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_rows_are_learnt_as_they_are_meant(name: str) -> None:
    row, template, said = GOOD[name]
    assert marked(row, template).endswith(said)


BAD: dict[str, tuple[Row, str, str]] = {
    "documents that the template leaves out": (
        {"messages": TALK, "documents": [{"text": "x"}]}, ALL, "leaves out the documents"),
    "documents that are texts": ({"messages": TALK, "documents": ["x"]}, ALL, "list documents"),
    "a switch that the template lacks": (
        {"messages": TALK, "chat_template_kwargs": {"enable_thinking": False}}, ALL,
        "leaves out enable_thinking"),
    "a switch of the caller": (
        {"messages": TALK, "chat_template_kwargs": {"tokenize": True}}, ALL, "cannot set tokenize"),
    "switches that are a list": (
        {"messages": TALK, "chat_template_kwargs": ["x"]}, ALL, "to be an object"),
    "two system prompts": (
        {"messages": [{"role": "system", "content": "be"}, *TALK], "system": "do"}, ALL,
        "both are a system prompt"),
    "alpaca with history": (
        {"instruction": "a", "output": "b", "history": [["c", "d"]]}, ALL, "write the row as messages"),
    "a call that is no JSON": (
        {"conversations": shared(("human", "a"), ("function_call", "f(1)"))}, CALLS,
        "the value of turn 2 is text that is not JSON"),
    "a call without arguments": (
        {"conversations": shared(("human", "a"), ("function_call", '{"name": "f"}'))}, CALLS,
        "turn 2: expected a call"),
    "calls that the template leaves out": (
        {"conversations": shared(("human", "a"), ("function_call", CALL))}, ALL,
        "leaves out tool_calls of turn 2"),
    "a chat in Python's notation": ({"messages": repr(TALK)}, ALL, "write it with json.dumps"),
    "roles under conversations": (
        {"conversations": TALK}, ALL, "data.format=messages data.columns.messages=conversations"),
    "speakers under messages": (
        {"messages": shared(("human", "a"), ("gpt", "b"))}, ALL,
        "data.format=sharegpt data.columns.conversations=messages"),
    "a completion of messages": (
        {"prompt": [ASKED], "completion": [SAID]}, ALL, "as one list in a column messages"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_rows_that_cannot_be_meant_are_refused(name: str) -> None:
    row, template, said = BAD[name]
    message = refused(lambda: marked(row, template))
    assert said in message
    assert message.startswith("row 1: ")


@pytest.mark.parametrize("role", ["system", "tool", "developer", "user"])
def test_a_template_that_leaves_out_a_turn_is_refused(role: str) -> None:
    left_out = HEAD + f"{{% if m.role != {role!r} %}}" + TURN + "{% endif %}" + TAIL
    row = {"messages": [{"role": role, "content": "be so kind"}, *TALK]}
    assert f"leaves out the content of turn 1 ({role})" in refused(lambda: marked(row, left_out))
    marked(row, HEAD + "{{ m.content | tojson }}" + TURN + TAIL)


def test_a_template_that_refuses_the_roles_names_them() -> None:
    strict = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + ALL
    )
    row = {"messages": [{"role": "system", "content": "be"}, *TALK]}
    message = refused(lambda: marked(row, strict))
    assert "fails (no system); the row's turns are system, user, assistant" in message
    assert "template is not valid" in refused(lambda: marked(row, "{% for m in messages %}"))


@pytest.mark.parametrize("call", ["strftime_now('%d %b %Y')", 'strftime_now("%d %b %Y")'])
def test_todays_date_is_the_same_on_every_day(call: str) -> None:
    """So that a run which goes on tomorrow has the rows that it began with."""
    dated = "{{ " + call + " }}" + ALL
    assert marked({"messages": TALK}, dated).startswith("<s>26 Jul 2024<s>[user]")


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (ALL, {"</s>": 1}),
        (HEAD + "[{{ m.role }}]{{ m.content }}<pad>" + TAIL, {"<pad>": 1}),
        (
            HEAD + "[{{ m.role }}]{{ m.content }}" + TAIL,
            {},
        ),  # as GLM: the next turn's header ends it
        (HEAD + "[{{ m.role }}]{{ m.content }}<|im_end|>" + TAIL, {}),  # letters to this tokenizer
    ],
)
def test_a_run_that_does_not_learn_to_stop_warns(
    template: str, found: dict[str, int], tmp_path: Path
) -> None:
    tokenizer = tiny.tokenizer(chat_template=template)
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [*TALK, *TALK]}))
    (tmp_path / "r.yaml").write_text(
        f"model: {{name: x}}\noutput_dir: y\ndata: {{train: {{path: {tmp_path}/a.jsonl}}}}\n"
    )
    said: list[str] = []
    _, sets = prepare(load_recipe(str(tmp_path / "r.yaml")), tokenizer, say=said.append)
    assert endings(sets["train"].examples, tokenizer) == found
    assert any("does not learn to stop" in line for line in said) == (not found)
