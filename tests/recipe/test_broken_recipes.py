"""Recipes that people get wrong: each is answered by lines with places, and leaves nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import zoft
from zoft.cli.main import main

GOOD = """\
model:
  name: some/model
data:
  train: {path: t.jsonl}
  template: "{text} It was"
  labels: {1: great, 0: terrible}
optimizer:
  lr: 1e-6
train:
  steps: 10
"""
BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefg", "bcdefgh", strict=True)
)
MERGES = BOMB.replace("[x, x, x]", "{x: 1}").replace("[*", "{<<: [*").replace("]\n", "]}\n")


def at(old: str, new: str) -> str:
    """The good recipe with one place changed."""
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


# What is written, and how each line of the answer must begin and go on.
TEXTS: dict[str, tuple[str | bytes, list[tuple[str, str]]]] = {
    "typo in a section": (at("train:\n", "trian:\n"), [(":9:1: trian: ", "did you mean train?")]),
    "typo in a key": (at("lr:", "lrr:"), [(":8:3: optimizer.lrr: ", "did you mean optimizer.lr?")]),
    "typo two levels down": (
        at("{path:", "{split: a, pth:"),
        [(":4:3: data.train.path: missing", ""), (":4:21: data.train.pth: ", "data.train.path?")],
    ),
    "a number in quotes": (
        at("lr: 1e-6", 'lr: "1e-6"'),
        [(":8:3: optimizer.lr: found '1e-6'", "expected a finite number or auto, without quotes")],
    ),
    "steps in quotes": (
        at("steps: 10", "steps: '10'"),
        [(":10:3: train.steps: found '10'", "a whole number, without quotes")],
    ),
    "words for a number": (
        at("lr: 1e-6", "lr: nan%"), [(":8:3: optimizer.lr: found 'nan%'", "finite number or auto")]
    ),
    "a variable of the shell": (
        at("{path: t.jsonl}", "{path: ${HOME}/t.jsonl}"), [(":4:", 'write "${env:NAME}" in quotes')]
    ),
    "a tab": (at("  lr: 1e-6", "\tlr: 1e-6"), [(":8:1: not YAML", "not with tabs")]),
    "a no-break space": (
        at("optimizer:\n  lr: 1e-6", "optimizer:\u00a0{name: mezo, lr: 1e-6}"),
        [(":7:", "no-break space, write a plain one")],
    ),
    "typo in a choice": (
        at("lr: 1e-6", "name: mezzo"),
        [(":8:3: optimizer.name: found 'mezzo'", "r-adazo or mezo")],
    ),
    "betas for mezo": (
        at("lr: 1e-6", "name: mezo\n  betas: [0.9, 0.99]"),
        [(":9:3: optimizer.betas: no key of mezo, only of r-adazo", "optimizer.name: r-adazo")],
    ),
    "eps for mezo": (
        at("lr: 1e-6", "name: mezo\n  eps: 1e-8"),
        [(":9:3: optimizer.eps: no key of mezo, only of r-adazo", "optimizer.name: r-adazo")],
    ),
    "moments for mezo": (
        at("lr: 1e-6", "name: mezo\n  moments: full"),
        [(":9:3: optimizer.moments: no key of mezo, only of r-adazo", "optimizer.name: r-adazo")],
    ),
    "window for mezo": (
        at("lr: 1e-6", "name: mezo\n  window: 3"),
        [(":9:3: optimizer.window: no key of mezo, only of r-adazo", "optimizer.name: r-adazo")],
    ),
    "fold_momentum for mezo": (
        at("lr: 1e-6", "name: mezo\n  fold_momentum: false"),
        [(":9:3: optimizer.fold_momentum: no key of mezo, only of r-adazo", "optimizer.name: r-adazo")],
    ),
    "bias_correction for mezo": (
        at("lr: 1e-6", "name: mezo\n  bias_correction: none"),
        [(":9:3: optimizer.bias_correction: no key of mezo, only of r-adazo", "name: r-adazo")],
    ),
    "typo in a label's section": (at("labels", "lables"), [
        (":5:3: data.template: ", "needs data.labels"),
        (":6:3: data.lables: ", "did you mean data.labels?")]),
    "case matters": (at("steps", "Steps"), [(":10:3: train.Steps: ", "did you mean train.steps?")]),
    "key in another section": (at("lr: 1e-6", "steps: 3"), [(":8:3: optimizer.steps: ", "train.steps")]),
    "key at the top": (at("train:\n", "lr: 3\ntrain:\n"), [(":9:1: lr: ", "optimizer.lr")]),
    "key of transformers": (at("steps: 10", "num_train_epochs: 3"),
        [(":10:3: train.num_train_epochs: ", "zoft calls it train.steps")]),
    "key of axolotl": (at("train:\n", "base_model: x\ntrain:\n"),
        [(":9:1: base_model: ", "model.name")]),
    "key of LLaMA-Factory": (at("train:\n", "cutoff_len: 9\ntrain:\n"),
        [(":9:1: cutoff_len: ", "data.max_length")]),
    "key without equivalent": (at("steps: 10", "gradient_checkpointing: true"),
        [(":10:3: train.gradient_checkpointing: ", "backward pass")]),
    "unlike any key": (at("steps: 10", "qqqqqqqq: 1"), [(":10:3: train.qqqqqqqq: ", "expected one of")]),
    "number as text": (at("10", "'10'"), [(":10:3: train.steps: found '10'", "a whole number")]),
    "fraction for a number": (at("10", "1.5"), [(":10:3: train.steps: ", "a whole number")]),
    "text for a number": (at("1e-6", "fast"), [(":8:3: optimizer.lr: found 'fast'", "number or auto")]),
    "below the bound": (at("10", "0"), [(":10:3: train.steps: found 0", "at least 1")]),
    "above the bound": (at("10", "99999999999"), [(":10:3: train.steps: ", "less than")]),
    "not finite": (at("1e-6", ".inf"), [(":8:3: optimizer.lr: ", "a finite number")]),
    "no number": (at("1e-6", ".nan"), [(":8:3: optimizer.lr: ", "")]),
    "bool for a number": (at("10", "true"), [(":10:3: train.steps: found true", "a whole number")]),
    "yes is no bool": (at("lr: 1e-6", "paired: yes"), [(":8:3: optimizer.paired: found 'yes'", "true")]),
    "nothing for a number": (at(" 10", ""), [(":10:3: train.steps: found nothing", "a whole number")]),
    "number for text": (at("some/model", "7"), [(":2:3: model.name: found 7", "quotes")]),
    "empty text": (at("some/model", "''"), [(":2:3: model.name: ", "some text")]),
    "list for text": (at("some/model", "[a, b]"), [(":2:3: model.name: ", "text")]),
    "text for a list": (at("train:\n", "tune: {include: x}\ntrain:\n"),
        [(":9:8: tune.include: ", "a list")]),
    "text for a section": (at("{path: t.jsonl}", "t.jsonl"), [(":4:3: data.train: ", "a section")]),
    "list for a section": (at("  steps: 10", "  - steps: 10"), [(":9:1: train: ", "a section")]),
    "text for a mapping": (at("{1: great, 0: terrible}", "great"), [(":6:3: data.labels: ", "mapping")]),
    "list too short": (at("lr: 1e-6", "betas: [0.9]"), [(":8:3: optimizer.betas", "")]),
    "list too long": (at("lr: 1e-6", "betas: [0.9, 0.9, 0.9]"), [(":8:3: optimizer.betas", "two")]),
    "size without a unit": (at("train:\n", "memory: {device_budget: 8}\ntrain:\n"),
        [(":9:10: memory.device_budget: ", "8GiB")]),
    "one label": (at(", 0: terrible", ""), [(":6:3: data.labels: ", "two")]),
    "two labels with one word": (at("terrible", "great"), [(":6:3: data.labels: ", "same word")]),
    "template without a column": (at("{text} It", "It"), [(":5:3: data.template: ", "column")]),
    "template with an open brace": (at("{text} It", "{text It"), [(":5:3: data.template: ", "brace")]),
    "settings that exclude each other": (at("lr: 1e-6", "{structure: dense, scope: example}"),
        [(":8:22: optimizer.scope: ", "rank1")]),
    "duplicate key": (at("lr: 1e-6", "lr: 1\n  lr: 2"),
        [(":9:3: optimizer.lr: written twice", "line 8")]),
    "duplicate section": (GOOD + "data: {}\n", [(":11:1: data: written twice", "line 3")]),
    "key is missing": (at("  name: some/model\n", ""), [(":1:1: model.name: missing", "Hub id")]),
    "section is missing": (GOOD[GOOD.index("data") :], [(":1:1: model: missing", "")]),
    "several at once": (at("1e-6", "-1") + "tune: {rank: 3}\nfoo: 1\n",
        [(":8:3: optimizer.lr: ", "more than 0"), (":11:8: tune.rank: ", ""), (":12:1: foo: ", "")]),
    "unset variable": (at("1e-6", "${env:ZOFT_UNSET}"),
        [(":8:3: optimizer.lr: ", "ZOFT_UNSET is not set")]),
    "cut off reference": (at("some/model", "${env:X"), [(":2:3: model.name: ", "${env:NAME}")]),
    "token in a recipe": (at("some/model", "x${env:HF_TOKEN}"), [(":2:3: model.name: ", "secret")]),
    "reference between braces": (at("t.jsonl", "${env:X}"), [(":4:18: not YAML", "in quotes")]),
    "empty file": ("", [(": empty", "model.name")]),
    "only comments": ("# nothing\n", [(": empty", "")]),
    "list instead of sections": ("- model\n", [(":1:1: expected sections", "not a list")]),
    "text instead of sections": ("model\n", [(":1:1: expected sections", "not a single value")]),
    "tab": (at("  steps", "\tsteps"), [(":10:1: not YAML", "\\t")]),
    "wrong indentation": (at("  steps", " steps: 1\n  steps"), [(":11:8: not YAML", "")]),
    "open bracket": (at("10", "[10"), [(":11:1: not YAML", "")]),
    "open quote": (at("some/model", "'some"), [(":", "not YAML")]),
    "two documents": (GOOD + "---\n" + GOOD, [(":11:1: not YAML", "another document")]),
    "unknown anchor": (at("10", "*ten"), [(":10:10: not YAML", "ten")]),
    "python object": (at("10", "!!python/name:os.system x"), [(":10:10: not YAML", "")]),
    "anchor in itself": (at("lr: 1e-6", "&a\n  lr: *a"), [(":8:3: an anchor that holds itself", "")]),
    "anchors that multiply": (BOMB, [(":", "anchors repeat")]),
    "merges that multiply": (MERGES, [(":", "anchors repeat")]),
    "list as a key": ("? [a, b]\n: 1\n", [(":1:3: a key must be a name", "")]),
    "a thousand deep": ("a: " + "[" * 1000, [(":1:35: nested", "")]),
    "not UTF-8": (b"model:\n  name: \xff\xfe\n", [(":2: not UTF-8", "")]),
    "zeros": (b"\0" * 5000, [(": not YAML", "")]),
    "a megabyte of lines": ("junk: more\n" * 95_000, [(": 1,045,000 bytes", "no recipe")]),
    "a megabyte of bytes": (bytes(range(256)) * 4096, [(": 1,048,576 bytes", "")]),
    "100 KB of brackets": ("[" * 100_000, [(":1:33: nested", "")]),
}  # fmt: skip

OVERRIDES = {
    "no value": ("train.steps", "expected section.key=value"),
    "no key": ("=3", "expected section.key=value"),
    "empty part": ("train..steps=3", "expected section.key=value"),
    "typo": ("train.step=3", "train.step: no such key; did you mean train.steps?"),
    "wrong section": ("train.lr=3", "it belongs at optimizer.lr"),
    "wrong type": ("train.steps=many", "train.steps: found 'many'; expected a whole number"),
    "below a value": ("train.steps.x=1", "train.steps has no keys"),
    "deleting what is not set": ("~train.batch_size", "does not set train.batch_size"),
    "deleting what must be": ("~model.name", "model.name: missing"),
    "a section's value": ("train=3", "train: found 3; expected a section"),
    "unset variable": ("train.steps=${env:ZOFT_UNSET}", "ZOFT_UNSET is not set"),
    "two settings that do not go together": ("optimizer.directions=1025", "at most 1024"),
    "spaces": ("train.steps = 3", "train.steps : no such key"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOFT_UNSET", raising=False)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> list[str]:
    """The lines of the answer."""
    before = sorted(folder.rglob("*"))
    assert main(["train", *arguments]) == 2
    assert sorted(folder.rglob("*")) == before, "something was left behind"
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert all(line.startswith("error: ") and len(line) < 500 for line in lines), lines
    return [line.removeprefix("error: ") for line in lines]


@pytest.mark.parametrize("what", TEXTS)
def test_texts(what: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, expected = TEXTS[what]
    Path("r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    lines = refused(capsys, here, "r.yaml")
    assert len(lines) == len(expected), lines
    for line, (begin, words) in zip(lines, expected, strict=True):
        assert line.startswith(f"r.yaml{begin}"), line
        assert words in line


@pytest.mark.parametrize("what", OVERRIDES)
def test_overrides(what: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    override, words = OVERRIDES[what]
    Path("r.yaml").write_text(GOOD)
    (line,) = refused(capsys, here, "r.yaml", override)
    assert line.startswith(f"override {override!r}: ")
    assert words in line


def test_dashes_before_an_override(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text(GOOD)
    lines = refused(capsys, here, "r.yaml", "--train.steps", "3")
    assert lines == ["overrides have no dashes: write train.steps=3"]


def test_files_that_are_no_recipes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text(GOOD)
    assert "did you mean recipes/mine.yaml?" in refused(capsys, here, "recipes/mein.yaml")[0]
    assert "is a folder" in refused(capsys, here, "recipes")[0]
    assert "no such file" in refused(capsys, here, "/dev/null")[0]


def test_many_problems_end_somewhere(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text("".join(f"learning_rat{i}: 1\n" for i in range(2000)))
    lines = refused(capsys, here, "r.yaml")
    assert len(lines) == 51
    assert lines[-1] == "r.yaml: and more problems"


@pytest.mark.parametrize("what", ["several at once", "a megabyte of lines"])
def test_the_installed_command(what: str, here: Path) -> None:
    """Under a second on an idle machine; here, that it is not the ten of importing torch."""
    text, expected = TEXTS[what]
    assert isinstance(text, str)
    Path("r.yaml").write_text(text)
    root = Path(zoft.__file__).parents[1]
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "zoft", "train", here / "r.yaml"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - begun < 5
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == len(expected)
    assert "Traceback" not in done.stderr
    assert [path.name for path in here.iterdir()] == ["r.yaml"]
