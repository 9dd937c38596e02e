from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from support import tiny

from zoft.cli.main import main
from zoft.data import preview as module
from zoft.data.examples import Choice, TextExample
from zoft.data.preview import escaped, parts

TALK = [
    {"role": "user", "content": "a\x1b[31m\nb"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "no"},
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    tiny.llama().save_pretrained(folder / "model")
    tiny.tokenizer(chat_template=tiny.CHAT_TEMPLATE).save_pretrained(folder / "model")
    reviews = [{"text": "x" * n, "label": n % 2} for n in range(1, 11)]
    chats = [{"messages": TALK}, {"messages": TALK[:1]}, {"messages": TALK[:2]}]
    for name, rows in (("reviews", reviews), ("chats", chats)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "r.yaml"
    path.write_text(
        f"model: {{name: {folder}/model}}\ndata:\n  train: {{path: {folder}/reviews.jsonl}}\n"
        '  template: "{text} It was"\n  labels: {0: terrible, 1: great}\n'
    )
    return path


def shown(capsys: pytest.CaptureFixture[str], recipe: Path, *arguments: str) -> str:
    assert main(["data", "preview", str(recipe), *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return str(out)


def test_classification(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drop = ["data.max_length=20", "data.on_overflow=drop"]
    out = shown(capsys, recipe, *drop, "-n", "1")
    for line in (
        "format  classification",
        f"train  {recipe.parent}/reviews.jsonl",
        "rows    8 of 10 kept, 0 of them truncated",
        "        dropped: 2 too long, 0 without a trained token",
        "tokens  p50 17, p90 20, p99 20, longest 20 (max_length 20)",
        "BOS     1 in every row",
        "EOS     not trained: words are compared",
        "labels  0 → ' terrible', ids ",
        "        1 → ' great', ids 268; 4 rows",
        "<s>x It was⟦ great⟧",
        "against ' terrible'",
    ):
        assert line in out
    assert out.count("example ") == 1


def test_a_chat(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"data.train.path={recipe.parent}/chats.jsonl"
    out = shown(capsys, recipe, path, "~data.template", "~data.labels")
    assert "format  messages, by the columns" in out
    assert "dropped: 0 too long, 1 without a trained token" in out
    assert "<s>[user]a\\x1b[31m\\n\nb</s>[assistant]⟦yes</s>⟧[user]c</s>[assistant]⟦no</s>⟧" in out
    assert "EOS     '</s>' trained at the end of 2 of 2 rows" in out


def test_on_a_terminal_what_is_learnt_is_styled(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "Console", lambda **_: Console(force_terminal=True, width=80, highlight=False)
    )
    out = shown(capsys, recipe, "-n", "1")
    assert "⟦" not in out
    assert "\x1b[1;4;32m great\x1b[0m" in out


def test_a_preview_needs_no_weights_of_a_hub_model(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def snapshot(_name: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.extend(allow_patterns)
        return str(recipe.parent / "model")

    monkeypatch.setattr("zoft.models.storage.fetch.snapshot_download", snapshot)
    assert "<s>x It was" in shown(capsys, recipe, "model.name=owner/model")
    assert asked
    assert not [pattern for pattern in asked if "safetensors" in pattern or "bin" in pattern]


def test_stretches_keep_their_blanks() -> None:
    tokenizer = tiny.tokenizer()
    ids = tuple(tokenizer("ä It was great")["input_ids"])
    example = TextExample(ids, (len(ids) - 2, len(ids) - 1))
    assert parts(example, tokenizer) == [("<s>ä It", False), (" was great", True)]
    choice = Choice(ids[:-1], (ids[-1:], ids[:1]), 0)
    assert parts(choice, tokenizer) == [("<s>ä It was", False), (" great", True)]


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert escaped("a\tb\r\x1b]0;x\x07\u202e ä漢") == r"a\tb\r\x1b]0;x\x07\u202e ä漢"
    assert escaped("x" * 700) == f"{'x' * 300} … 100 characters … {'x' * 300}"


def test_templates_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "templates"]) == 0
    out = capsys.readouterr().out
    assert "sst2      sentiment of a sentence (glue, sst2)\n          | {text} It was\n" in out
    assert "options entities" in out


def test_words_that_part_within_a_character_are_shown_whole() -> None:
    """ä and ö begin with the same byte, which is then the prompt's."""
    tokenizer = tiny.tokenizer()
    prompt, options = tuple(tokenizer("It was ä")["input_ids"]), tokenizer("ö")["input_ids"][-1:]
    choice = Choice(prompt[:-1], (prompt[-1:], tuple(options)), 0)
    assert parts(choice, tokenizer) == [("<s>It was ", False), ("ä", True)]
