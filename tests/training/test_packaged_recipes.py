"""Every packaged recipe, taken through a whole run: its settings as they are, a tiny model of its
family and a few rows with the columns of its data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from transformers import PreTrainedModel

from zoft.cli.main import main
from zoft.recipe import packaged
from zoft.recipe.load import load_recipe

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
LONGER: dict[str, Any] = {"max_position_embeddings": 512}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "facebook/opt": lambda: tiny.opt(**LONGER),
    "./opt": lambda: tiny.opt(**LONGER),
    "meta-llama/": lambda: tiny.llama(
        hidden_size=64, intermediate_size=128, head_dim=16, **LONGER
    ),  # nf4 takes multiples of 64
    "Qwen/": lambda: tiny.qwen2(**LONGER),
    ".demo/": lambda: tiny.llama(**LONGER),
}
SETS: dict[str, Callable[[int], dict[str, Any]]] = {
    "stanfordnlp/sst2": lambda i: {"idx": i, "sentence": "a fine film" * i, "label": i % 2},
    "google/boolq": lambda i: {"question": "is it so", "answer": i % 2 == 0, "passage": "It is."},
    "nyu-mll/glue": lambda i: {"sentence1": "It rains.", "sentence2": "Wet.", "label": i % 2},
    "rajpurkar/squad": lambda i: {
        "title": "Rain" * i, "context": "It rains in May.", "question": "When?",
        "answers": {"text": ["May", "in May"], "answer_start": [12, 9]},
    },
    "HuggingFaceH4/no_robots": lambda i: {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes" * i}]
    },
    ".demo/": lambda i: {"text": "a fine film" * i, "label": i % 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A model of the family that a name begins with, or a data set; each is made once."""
    root = tmp_path_factory.mktemp("hub")

    def place(kind: str, name: str) -> Path:
        table = FAMILIES if kind == "model" else SETS
        key = next(key for key in table if name.startswith(key))
        path = root / f"{kind}-{list(table).index(key)}"
        if kind == "data":
            path = path.with_suffix(".jsonl")
            if not path.exists():
                path.write_text("".join(json.dumps(SETS[key](i)) + "\n" for i in range(1, 7)))
        elif not path.exists():
            FAMILIES[key]().save_pretrained(path)
            tiny.tokenizer(chat_template=TEMPLATE).save_pretrained(path)
        return path

    return place


@pytest.mark.parametrize("name", packaged.names())
def test_a_packaged_recipe_runs(
    name: str,
    places: Callable[[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    sets = [
        f"data.{part}={{path: {places('data', source.path)}}}"
        for part in ("train", "eval", "test")
        if (source := getattr(recipe.data, part)) is not None
    ]
    small = [
        f"model.name={places('model', recipe.model.name)}", *sets, "device=cpu",
        "train.steps=2", "train.batch_size=4", "train.micro_batch_size=auto",
        "optimizer.warmup_steps=0", "eval.every=0", "eval.max_new_tokens=3", "checkpoint.every=1",
    ]  # fmt: skip
    if recipe.tune.tail == "head":  # words of which the tiny tokenizer makes one token each
        keys, behind_a_line = recipe.data.labels or (0, 1), "-rte-" in name or "-boolq-" in name
        pair = ("b", "g") if behind_a_line else ("bad", "great")
        words = ", ".join(f"{k}: {w}" for k, w in zip(keys, pair, strict=True))
        small.append(f"data.labels={{{words}}}")
    assert main(["validate", name, *small]) == 0, capsys.readouterr().err
    assert main(["train", name, *small]) == 0, capsys.readouterr().err
    run = json.loads(Path(f"runs/{name}/run.json").read_text())
    assert (run["status"], run["final"]["step"], run["skipped"]) == ("finished", 2, 0)
    if recipe.eval.metric != "auto":
        assert recipe.eval.metric in run["final"]


@pytest.mark.parametrize("name", packaged.names())
def test_a_packaged_recipe_teaches(name: str) -> None:
    """It says what it is, how it is run, and why its values are what they are."""
    path = packaged.path_of(name)
    assert path is not None
    text = path.read_text()
    assert f"zoft train {name}" in text or f"zoft train {name.removesuffix('-lora')}" in text
    assert text.count("#") >= 6
    assert max(map(len, text.splitlines())) <= 120
