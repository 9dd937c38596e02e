"""Data that cannot be trained on: one line that names the place, an exit code, and no run folder."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from support import tiny

from zoft.cli.main import main

GOOD = {"text": "a fine film", "label": 1}
HI, HELLO = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
CLASSES = ["data.template={text} It was", "data.labels={0: bad, 1: great}"]
RECIPE = """\
model: {{name: {model}, compute_dtype: float32}}
device: cpu
output_dir: run
data:
  train: {{path: {path}}}
  max_length: 64
train: {{steps: 1, batch_size: 2}}
"""


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(*rows: dict[str, Any], cut: int | None = None) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), stream)
    return stream.getvalue()[:cut]


def columns_twice() -> bytes:
    stream = io.BytesIO()
    table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, stream)
    return stream.getvalue()


def chat(**turn: Any) -> bytes:
    return lines({"messages": [HI, turn, HELLO]})


# name: file, its bytes (None: there is none), overrides, exit code, what the line says.
Case = tuple[str, bytes | None, list[str], int, tuple[str, ...]]
CASES: dict[str, Case] = {
    "wrong columns": (
        "a.jsonl", lines(GOOD, {"review": "x", "label": 1}), CLASSES, 3,
        ("a.jsonl: row 2", "column 'text'", "reads text, label", "found review, label", "'x'"),
    ),
    "columns of no format": (
        "a.jsonl", lines({"review": "x", "stars": 4}), [], 3,
        ("a.jsonl", "found: review, stars", "alpaca: instruction, output", "{'review': 'x'"),
    ),
    "classification without a template": (
        "a.jsonl", lines(GOOD), [], 2, ("a.jsonl", "data.template", "data.labels")),
    "no file": ("b.jsonl", None, CLASSES, 3, ("b.jsonl: no such file",)),
    "empty file": ("a.jsonl", b"", CLASSES, 3, ("a.jsonl: holds no rows",)),
    "blank lines": ("a.jsonl", b"\n  \n", CLASSES, 3, ("a.jsonl: holds no rows",)),
    "empty array": ("a.json", b"[]", CLASSES, 3, ("a.json: holds no rows",)),
    "header alone": ("a.csv", b"text,label\n", CLASSES, 3, ("a.csv: holds no rows",)),
    "empty object": ("a.jsonl", b"{}\n", CLASSES, 3, ("row 1", "found none")),
    "all too long": (
        "a.jsonl", lines({"text": "x" * 99, "label": 1}), [*CLASSES, "data.on_overflow=drop"], 3,
        ("a.jsonl: none of 1 rows", "1 longer than data.max_length (64)"),
    ),
    "one too long": (
        "a.jsonl", lines(GOOD, {"text": "x" * 99, "label": 1}), CLASSES, 3,
        ("a.jsonl: row 2: 103 tokens", "data.on_overflow"),
    ),
    "a huge row": (
        "a.jsonl", lines({"text": "x" * 50_000}), ["data.format=text"], 3, ("row 1: 50002 tok",)),
    "invalid UTF-8": ("a.jsonl", b'{"text": "\xff"}', CLASSES, 3, ("a.jsonl:1: not UTF-8",)),
    "invalid UTF-8 in CSV": ("a.csv", b"text\na\n\xe4\n", CLASSES, 3, ("a.csv:3: not UTF-8",)),
    "cut JSON": ("a.jsonl", lines(GOOD)[:-9], CLASSES, 3, ("a.jsonl:1: not valid JSON", "cut")),
    "a number": ("a.jsonl", b"7\n", CLASSES, 3, ("a.jsonl:1: expected an object, found 7",)),
    "endless brackets": ("a.jsonl", b"[" * 200_000, CLASSES, 3, ("a.jsonl:1:",)),
    "endless digits": ("a.jsonl", b'{"label": %s}' % (b"9" * 5000), CLASSES, 3, ("a.jsonl:1:",)),
    "null text": ("a.jsonl", lines(GOOD, {**GOOD, "text": None}), CLASSES, 3, ("row 2", "'text'")),
    "null label": ("a.jsonl", lines({**GOOD, "label": None}), CLASSES, 3, ("column 'label'",)),
    "all null": ("a.parquet", parquet({"text": None}), [], 3, ("found: none",)),
    "NaN text": ("a.jsonl", b'{"text": NaN}', ["data.format=text"], 3, ("row 1: text is no text",)),
    "NaN in a prompt": ("a.jsonl", b'{"text": NaN, "label": 1}', CLASSES, 3, ("row 1", "no text")),
    "nested text": ("a.jsonl", lines({"text": {"en": "x"}}), [], 3, ("row 1: text is no text",)),
    "nested in a prompt": (
        "a.jsonl", lines({"text": ["x"], "label": 1}), CLASSES, 3, ("row 1", "list is no text")),
    "half a character": (
        "a.jsonl", b'{"text": "\\ud83d"}', ["data.format=text"], 3, ("row 1", "surrogate")),
    "mixed types": ("a.jsonl", lines({"text": "a"}, {"text": [1]}), [], 3, ("row 2: text is no",)),
    "unknown label": (
        "a.jsonl", lines({**GOOD, "label": 2}), CLASSES, 3,
        ("a.jsonl: row 1: label '2' is not in data.labels (0, 1)",),
    ),
    "an empty word": (
        "a.jsonl", lines(GOOD), ["data.template={text}\n", "data.labels={0: '', 1: a}"], 2,
        ("data.labels.0: an empty word",),
    ),
    "ragged CSV": ("a.csv", b"text,label\na,1\nb,1,2\n", CLASSES, 3, ("a.csv:3: 3 values for 2",)),
    "open quote": ("a.csv", b'text,label\n"a,1\n', CLASSES, 3, ("a.csv:2: not valid CSV",)),
    "a column twice": ("a.csv", b"text,text\na,b\n", CLASSES, 3, ("a.csv:1: a column name stands",)),
    "a key twice": (
        "a.jsonl", b'{"text": "a", "text": "b"}', CLASSES, 3, ("a.jsonl:1:", "'text' stands twice")),
    "columns twice": ("a.parquet", columns_twice(), CLASSES, 3, ("a column name stands twice",)),
    "truncated Parquet": ("a.parquet", parquet(GOOD, cut=-40), CLASSES, 3, ("not a valid Parquet",)),
    "wrong suffix": ("a.txt", b"hello", CLASSES, 3, ("a.txt: expected a file that ends in",)),
    "CSV called Parquet": ("a.parquet", b"text\na\n", CLASSES, 3, ("a.parquet: not a valid Parq",)),
    "a folder without files": ("folder/a.txt", b"", CLASSES, 3, ("folder: holds no file",)),
    "a folder of two splits": ("both/a.jsonl", lines(GOOD), CLASSES, 3, ("choose one of a, b",)),
    "missing split": (
        "both/a.jsonl", lines(GOOD), [*CLASSES, "data.train.split=dev"], 3,
        ("no split 'dev'; there are a, b",),
    ),
    "a split of a file": (
        "a.jsonl", lines(GOOD), [*CLASSES, "data.train.split=dev"], 3, ("has no `split`",)),
    "a stream of a file": (
        "a.jsonl", lines(GOOD), [*CLASSES, "data.train.streaming=true"], 3, ("is for sets on the H",)),
    "no completion": (
        "a.jsonl", lines({"prompt": "a", "completion": ""}), [], 3,
        ("none of 1 rows", "1 without a token to learn"),
    ),
    "messages without roles": ("a.jsonl", chat(content="x"), [], 3, ("row 1", "turn 2 has no role")),
    "messages without content": ("a.jsonl", chat(role="user"), [], 3, ("turn 2 has no content",)),
    "messages that are text": ("a.jsonl", lines({"messages": "hi"}), [], 3, ("expected a list of",)),
    "empty conversation": ("a.jsonl", lines({"messages": []}), [], 3, ("row 1: expected a list of",)),
    "unknown role": ("a.jsonl", chat(role="asistant", content="x"), [], 3, ("role 'asistant'",)),
    "unknown speaker": (
        "a.jsonl", lines({"conversations": [{"from": "robot", "value": "x"}]}), [], 3,
        ("turn 1 has the role 'robot'; the roles are system, human",),
    ),
    "a turn without value": (
        "a.jsonl", lines({"conversations": [{"from": "human"}]}), [], 3, ("turn 1 is {'from'",)),
    "nobody replies": ("a.jsonl", lines({"messages": [HI]}), [], 3, ("1 without a token to learn",)),
    "one option": (
        "a.jsonl", lines({"text": "a", "label": 0, "o": ["x"]}),
        ["data.template={text}", "data.options=o"], 3, ("row 1: o must list two options",),
    ),
    "no such option": (
        "a.jsonl", lines({"text": "a", "label": 5, "o": ["x", "y"]}),
        ["data.template={text}", "data.options=o"], 3, ("label '5' is not in its 2 options",),
    ),
    "the second source": (
        "both/b.jsonl", lines({"x": 1}),
        [*CLASSES, "data.train=[{path: both/a.jsonl}, {path: both/b.jsonl}]"], 3,
        ("both/b.jsonl: row 1: expected a column 'text'",),
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template, saved once."""
    folder = tmp_path_factory.mktemp("broken") / "model"
    tiny.llama().save_pretrained(folder)
    tiny.tokenizer(chat_template=tiny.CHAT_TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture
def run(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str]]:
    monkeypatch.chdir(tmp_path)

    def run(path: str, *overrides: str, verb: str = "train") -> tuple[int, str]:
        Path("r.yaml").write_text(RECIPE.format(model=model, path=path))
        code = main([*verb.split(), "r.yaml", *overrides])
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("name", CASES)
def test_broken_data(name: str, run: Callable[..., tuple[int, str]]) -> None:
    file, content, overrides, expected, said = CASES[name]
    path = Path(file)
    if path.parent != Path():
        path.parent.mkdir()
        for other in ("a.jsonl", "b.jsonl") if path.parent.name == "both" else ():
            (path.parent / other).write_bytes(lines(GOOD))
    if content is not None:
        path.write_bytes(content)
    code, err = run(str(path if path.parent == Path() else path.parent), *overrides)
    assert (code, err.count("\n")) == (expected, 1), err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert len(err) < 900
    for part in said:
        assert part in err
    assert not Path("run").exists()


def test_a_tokenizer_without_template_is_told_its_choices(
    tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    tiny.llama().save_pretrained(tmp_path / "bare")
    tiny.tokenizer().save_pretrained(tmp_path / "bare")
    Path("a.jsonl").write_bytes(lines({"messages": [HI, HELLO]}))
    code, err = run("a.jsonl", f"model.name={tmp_path / 'bare'}")
    assert code == 3
    assert "messages needs a chat template" in err
    assert "format prompt-completion or alpaca" in err
