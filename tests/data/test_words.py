"""Words and completions behind a template, labels as they are written, and files read as one row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from zoft.data.columns import place_of
from zoft.data.encoding import encode
from zoft.data.examples import Choice, TextExample
from zoft.data.files import read_file
from zoft.data.formats.table import detect
from zoft.data.sources import Rows
from zoft.errors import DataError, RecipeError
from zoft.recipe.load import load_recipe
from zoft.recipe.sections.data import DataSection

TOKENIZER: Any = tiny.tokenizer()
ROW = {"text": "ok", "label": 1, "q": "ok"}


def encoded(row: dict[str, Any], choice: bool = True, **fields: Any) -> Any:
    data = DataSection.model_validate({"train": {"path": "a.jsonl"}, **fields})
    return encode(Rows([row]), data, TOKENIZER, choice=choice).examples[0]


def failure(row: dict[str, Any], **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        encoded(row, **fields)
    return str(caught.value)


@pytest.mark.parametrize("template", ["{text} It was", "{text} It was "])
@pytest.mark.parametrize("blank", ["", " "])
def test_one_blank_stands_before_a_word(template: str, blank: str) -> None:
    labels = {0: f"{blank}bad", 1: f"{blank}great"}
    fields: dict[str, Any] = {"format": "classification", "template": template, "labels": labels}
    example = encoded(ROW, **fields)
    assert isinstance(example, Choice)
    assert TOKENIZER.decode(example.prompt) == "<s>ok It was"
    assert [TOKENIZER.decode(option) for option in example.options] == [" bad", " great"]
    text = encoded(ROW, choice=False, **fields)
    assert TOKENIZER.decode(text.ids) == "<s>ok It was great"


@pytest.mark.parametrize("blank", ["", " "])
def test_one_blank_stands_before_an_option_of_the_row(blank: str) -> None:
    row = {**ROW, "o": [f"{blank}bad", f"{blank}great"]}
    for options in ("o", ["{o[0]}", "{o[1]}"]):
        example = encoded(row, format="classification", template="{text}:", options=options)
        assert [TOKENIZER.decode(option) for option in example.options] == [" bad", " great"]


@pytest.mark.parametrize(
    ("template", "completion", "text"),
    [
        ("{q} It was", " great", "ok It was great"),
        ("{q} It was", "great", "ok It was great"),
        ("{q} It was ", " great\n", "ok It was great\n"),
        ("{q} It was\n", "great", "ok It was\ngreat"),
        ("{q} It was", "\ngreat", "ok It was\ngreat"),
    ],
)
def test_one_blank_stands_before_a_completion(template: str, completion: str, text: str) -> None:
    row = {"q": "ok", "completion": completion}
    example = encoded(row, format="prompt-completion", template=template)
    assert isinstance(example, TextExample)
    assert TOKENIZER.decode(example.ids) == f"<s>{text}</s>"


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_option_of_a_row_is_an_error(empty: str) -> None:
    row = {**ROW, "o": ["a", empty]}
    assert "row 1: option 1 is empty" in failure(
        row, format="classification", template="{text}", options="o"
    )


# recipes


def recipe(tmp_path: Path, lines: str, *overrides: str) -> Any:
    path = tmp_path / "r.yaml"
    path.write_text(f"model: {{name: m}}\ndata:\n  train: {{path: a.jsonl}}\n{lines}", "utf-8")
    return load_recipe(path, overrides).data


def refusal(tmp_path: Path, lines: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, lines, *overrides)
    return str(caught.value)


LABELS = "  labels: {0: bad, 1: great}\n"
TEMPLATE = '  template: "{text} It was"\n'


@pytest.mark.parametrize("empty", ['""', '"  "', '"\\n"'])
def test_an_empty_label_word_is_an_error(tmp_path: Path, empty: str) -> None:
    said = refusal(tmp_path, f"{TEMPLATE}  labels: {{0: {empty}, 1: great}}\n")
    assert "data.labels.0: an empty word" in said
    assert "data.labels.1: an empty" in refusal(
        tmp_path, TEMPLATE + LABELS, f"data.labels.1={empty}"
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("  template: {text} It was\n", ":4:20: not YAML: expected"),
        ("  template:\n    - {text} It was\n", ":5:14: not YAML: expected"),
        ("  template: {text}\n", "data.template: a text that begins with a brace is written in"),
        (
            "  template: [{text}, x]\n",
            "data.template: a text that begins with a brace is written in",
        ),
        (TEMPLATE + "  options: [{a}, {b}]\n", "data.options: a text that begins with a brace"),
        ('  template: "{text}" It was\n', "quotes go around the whole text"),
        ("  template: Review: {text}\n", "is written in quotes"),
        ("  template: @user {text}\n", "is written in quotes"),
        ("  template: `{text}`\n", "is written in quotes"),
        ("  template: “{text} It was”\n", ":4:13: “ is no quote to YAML"),
        ("  template: \u2018{text}\u2019\n", ":4:13: \u2018 is no quote to YAML"),
        (TEMPLATE + "  labels: {0: “bad”, 1: great}\n", ":5:15: “ is no quote to YAML"),
        ('  template: "{text} \\ud83d"\n', "data.template: half a character"),
        (TEMPLATE + '  labels: {0: "\\ud83d", 1: great}\n', "data.labels.0: half a character"),
    ],
)
def test_a_text_that_yaml_reads_otherwise_is_told_to_be_quoted(
    tmp_path: Path, lines: str, said: str
) -> None:
    message = refusal(tmp_path, lines + ("" if "labels" in lines or "options" in lines else LABELS))
    assert said in message
    if "not YAML: expected" in said:
        assert "a text that begins with a brace or bracket is written in quotes" in message


def test_an_override_with_typographic_quotes_is_refused(tmp_path: Path) -> None:
    for override in ("data.template=“{text} It”", "data.labels={0: “bad”, 1: good}"):
        assert "“ is no quote" in refusal(tmp_path, TEMPLATE + LABELS, override)
    # In quotes of YAML's own they are meant.
    data = recipe(tmp_path, "  template: '“{text}” It was'\n" + LABELS)
    assert data.template == "“{text}” It was"


@pytest.mark.parametrize("key", ["TRUE", "true", "True", "01", "1.10", "1e3", "0x1", "null", "~"])
def test_label_keys_are_taken_as_they_are_written(tmp_path: Path, key: str) -> None:
    data = recipe(tmp_path, f"{TEMPLATE}  labels: {{{key}: bad, b: great}}\n")
    assert list(data.labels) == [key, "b"]
    data = recipe(tmp_path, TEMPLATE + LABELS, f"data.labels={{b: bad, {key}: great}}")
    assert list(data.labels) == ["b", key]


def test_anchors_are_merged_as_before(tmp_path: Path) -> None:
    data = recipe(tmp_path, f"{TEMPLATE}  labels: &l {{0: bad, 1: great}}\n  columns: {{}}\n")
    assert data.labels == {"0": "bad", "1": "great"}
    merged = "  columns: &c {text: a}\n  eval: {path: b}\n  labels: {<<: {01: bad}, 1: great}\n"
    assert recipe(tmp_path, TEMPLATE + merged).labels == {"01": "bad", "1": "great"}


@pytest.mark.parametrize(
    ("value", "known", "place"),
    [
        ("01", ["1", "01"], 1),
        ("01", ["1", "2"], None),
        (1, ["0", "1"], 1),
        (1.0, ["0", "1"], 1),
        (1, ["00", "01"], 1),
        (True, ["false", "true"], 1),
        (True, ["False", "True"], 1),
        (True, ["TRUE", "FALSE"], 0),
        (False, ["0", "1"], 0),
        ("TRUE", ["false", "true"], 1),
        (1, ["1.0", "01"], None),
        ("1.0", ["0", "1"], None),
        (float("nan"), ["nan.", "1"], None),
    ],
)
def test_a_label_is_found_as_written_or_by_its_value(
    value: Any, known: list[str], place: int | None
) -> None:
    assert place_of(value, known) == place


# files


def test_numbers_of_json_are_written_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": 1.10, "label": 1.10, "n": 1e3, "half": 0.5}')
    (row,) = read_file(path)
    assert [str(row[name]) for name in ("text", "n", "half")] == ["1.10", "1e3", "0.5"]
    assert row["n"] == 1000
    example = encoded(row, format="classification", template="{text} It was",
                      labels={"1.1": "bad", "1.10": "great"})  # fmt: skip
    assert TOKENIZER.decode(example.prompt) == "<s>1.10 It was"
    assert example.label == 1


@pytest.mark.parametrize("value", [True, False])
def test_truth_is_no_text(value: bool) -> None:
    message = failure({"prompt": "Is it?", "completion": value}, format="prompt-completion")
    assert f"completion is no text ({str(value).lower()} is no text; write it in quotes)" in message


NESTED = {"version": 1, "data": [{"text": "a", "label": 0}]}


@pytest.mark.parametrize("indent", [None, 1])
def test_rows_under_a_key_are_found_there(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "nested.json"
    path.write_text(json.dumps(NESTED, indent=indent))
    rows = read_file(path)
    said = "one object with version, data; rows stand under data, write them as a list"
    labels = {0: "bad", 1: "great"}
    assert failure(rows[0], format="classification", template="{text} It", labels=labels) == said
    chats = {"train": [{"messages": []}], "n": 1}
    for row in (rows[0], chats):
        with pytest.raises(DataError, match=r"one object with .*; rows stand under (data|train)"):
            detect([row], DataSection.model_validate({"train": {"path": "a"}}))


def test_one_row_over_several_lines_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROW, indent=2))
    assert read_file(tmp_path / "a.json") == [ROW]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{\n "text": "a"\n}\n{\n "text": "b"\n}\n', "each on a line of its own"),
        ("a.jsonl", '{"text": "a"},\n{"text": "b"}\n', "each on a line of its own"),
        ("a.jsonl", '{“text”: “a”}\n', "typographic quotes are no quotes"),
        ("a.json", '{\n "text": "a",\n', "a.json:3: not valid JSON"),
        ("a.csv", "text;label\na b;0\nc, d;1\n", "a.csv:1: the header is one column, 'text;label'"),
        ("a.csv", "text\tlabel\na\t0\n", "the header is one column, 'text\\tlabel'"),
    ],
)  # fmt: skip
def test_files_of_another_form_are_told_so(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(DataError) as caught:
        read_file(tmp_path / name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
