"""A run on chats that is judged by what it writes, and then asked."""

from __future__ import annotations

import io
import json
import signal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support import small, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from zoft.cli.main import main
from zoft.inference import chat as chat_module
from zoft.inference.evaluate import evaluate
from zoft.inference.locate import recipe_of
from zoft.inference.prompts import is_chat, recipe_for
from zoft.system.silence import quiet
from zoft.training.run import train

METRIC = "exact_match"
SETTINGS = [
    "data.format=messages", "~data.template", "~data.labels", "train.steps=6", "eval.every=3",
    "checkpoint.every=3", f"eval.metric={METRIC}", "eval.max_new_tokens=3", "optimizer.lr=1e-2",
]  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are large enough that it writes this after that, and a run."""
    folder = tmp_path_factory.mktemp("asked")
    path = small.write(folder)
    model: Any = tiny.llama()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(8)
    model.generation_config.update(do_sample=True, temperature=2.0, repetition_penalty=3.0)
    model.save_pretrained(folder / "model")
    tiny.tokenizer(chat_template=tiny.CHAT_TEMPLATE).save_pretrained(folder / "model")
    tiny.llama().save_pretrained(folder / "bare")
    tiny.tokenizer().save_pretrained(folder / "bare")
    for name, rows in (("train", 16), ("eval", 6)):
        chats = [
            [{"role": "user", "content": "ab"[i % 2] * (1 + i % 5)},
             {"role": "assistant", "content": "great" if i % 2 else "bad"}]
            for i in range(rows)
        ]  # fmt: skip
        lines = "".join(json.dumps({"messages": turns}) + "\n" for turns in chats)
        (folder / f"{name}.jsonl").write_text(lines)
    train(str(path), SETTINGS)
    return path


@pytest.fixture
def run(recipe: Path) -> str:
    return str(recipe.parent / "run")


def events(run: str, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    return [event for event in lines if event["event"] == kind]


@cache
def whole(final: Path) -> tuple[Any, Any]:
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(final, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(final)


def by_transformers(recipe: Path, texts: list[str], tokens: int) -> list[str]:
    """The slow twin: one by one, transformers alone, greedily."""
    model, tokenizer = whole(recipe.parent / "run" / "final")
    found = []
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        for _ in range(tokens):
            with torch.no_grad():
                following = model(input_ids=ids).logits[0, -1].argmax()
            if following == tiny.EOS_ID:
                break
            ids = torch.cat([ids, following.view(1, 1)], dim=1)
        start = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        found.append(tokenizer.decode(ids[0, start:], skip_special_tokens=True))
    return found


def chat_of(question: str) -> str:
    return f"{tiny.BOS}[user]{question}{tiny.EOS}[assistant]"


def test_a_run_is_scored_by_what_it_writes_from_its_first_step_on(recipe: Path, run: str) -> None:
    evals = events(run, "eval")
    assert [event["step"] for event in evals] == [0, 3, 6]
    for event in [*evals, *events(run, "final")]:
        assert {"f1", "loss", "rows"} < set(event)
        assert 0 <= event[METRIC] <= event["f1"] <= 1
    manifest = json.loads((Path(run) / "run.json").read_text())
    checkpoints = [e for e in evals if e["step"] == 3]
    assert manifest["best_checkpoint"] == f"checkpoint-00000{checkpoints[0]['step']}"
    # The last score, by transformers alone.
    rows = [json.loads(line) for line in (recipe.parent / "eval.jsonl").read_text().splitlines()]
    asked = [chat_of(row["messages"][0]["content"]) for row in rows]
    right = [row["messages"][1]["content"] for row in rows]
    written = [text.strip().split("\n")[0].strip() for text in by_transformers(recipe, asked, 3)]
    hits = sum(text.lower() == answer for text, answer in zip(written, right, strict=True))
    assert evals[-1][METRIC] == pytest.approx(hits / len(rows))


@pytest.mark.parametrize("changes", [["eval.batch_size=1"], ["model.residency=disk"]])
def test_eval_finds_the_runs_score_at_any_batch_size_and_streamed(
    recipe: Path, run: str, changes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(run, str(recipe), [*SETTINGS, *changes])["eval"]
    last = events(run, "eval")[-1]
    assert next(iter(found)) == METRIC
    assert (found[METRIC], found["f1"]) == (last[METRIC], last["f1"])
    assert found["loss"] == pytest.approx(last["loss"], abs=1e-5)
    assert "eval: exact match " in capsys.readouterr().out


def test_generate_prints_the_completion_alone(
    recipe: Path, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    [expected] = by_transformers(recipe, [f"{tiny.BOS}abc"], 9)
    assert main(["generate", run, "--raw", "--prompt", "abc", "--max-new-tokens", "9"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"{expected}\n", "")
    assert expected


def test_prompts_of_a_run_on_chats_are_turns_of_a_chat(
    recipe: Path,
    run: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = by_transformers(recipe, [chat_of("ab"), chat_of("xyz")], 5)
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\n\nxyz\n"))
    assert main(["generate", f"{run}/final", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == f"> ab\n{expected[0]}\n\n> xyz\n{expected[1]}\n"


def test_drawn_completions_follow_the_seed(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(recipe.parent / "model")

    def drawn(seed: str) -> str:
        drawing = ["--temperature", "9", "--seed", seed, "--max-new-tokens", "8"]
        assert main(["generate", base, "--prompt", "ab", *drawing]) == 0
        return capsys.readouterr().out

    assert drawn("1") == drawn("1") != drawn("2")


def test_settings_are_those_of_the_run(recipe: Path, run: str) -> None:
    sizes = {"rows": 1, "longest": 9, "max_new_tokens": 4}
    asked = recipe_for(f"{run}/checkpoint-000003", **sizes)
    was = recipe_of(run)
    assert was is not None
    assert (asked.model.dtype, asked.model.compute_dtype) == ("float32", "float32")
    assert (asked.model.residency, was.model.residency) == ("auto", "device")
    assert is_chat(run)
    assert is_chat(f"{run}/final")
    base = str(recipe.parent / "model")
    assert not is_chat(base)
    assert recipe_of(base) is None
    assert recipe_for(base, **sizes).model.name == base


def test_chat_remembers_until_reset(
    recipe: Path,
    run: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [first] = by_transformers(recipe, [chat_of("ab")], 4)
    longer = (
        f"{tiny.BOS}[user]ab{tiny.EOS}[assistant]{first}{tiny.EOS}[user]ab{tiny.EOS}[assistant]"
    )
    [second] = by_transformers(recipe, [longer], 4)
    assert first != second
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\nab\n/reset\n\nab\n/exit\nab\n"))
    assert main(["chat", run, "--max-new-tokens", "4"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"{first}\n{second}\n{first}\n", "")


def test_a_signal_ends_an_answer_and_the_chat_goes_on(
    recipe: Path,
    run: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [whole] = by_transformers(recipe, [chat_of("ab")], 8)
    write, pieces = chat_module._write, []

    def interrupted(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 2:
            signal.raise_signal(signal.SIGINT)
        write(text)

    monkeypatch.setattr(chat_module, "_write", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\n/reset\nab\n"))
    assert main(["chat", run, "--max-new-tokens", "8"]) == 0
    cut, again = capsys.readouterr().out.rstrip("\n").split("\n", 1)
    assert again == whole
    assert whole.startswith(cut)
    assert len(cut) < len(whole)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["generate", "{model}", "--prompt", "a" * 300], 3, "256 positions; shorten it"),
        (["generate", "{model}", "--prompt", "a", "--max-new-tokens", "256"], 3, "256 positions"),
        (["generate", "nowhere/model.gguf", "--prompt", "a"], 4, "nowhere/model.gguf"),
        (["chat", "{bare}"], 2, "has no chat template: use zoft generate"),
        (["generate", "{model}"], 2, "stdin has no line"),
        (["generate", "{model}", "--temperature", "-1"], 2, "temperature"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    recipe: Path,
    arguments: list[str],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    names = {"model": recipe.parent / "model", "bare": recipe.parent / "bare"}
    assert main([argument.format(**names) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
