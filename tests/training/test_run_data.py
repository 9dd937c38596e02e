"""Whole runs on data with more to it than a file: several sources, templates, options of a row's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import small

from zoft.cli.main import main
from zoft.recipe.load import load_recipe


def test_sources_templates_and_options_train_and_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small.write(tmp_path)
    for name, count, rows in (("few", 2, 9), ("many", 3, 21)):
        lines = [
            {"q": f"{i}", "o": ["great", "bad", "xy"][:count], "label": i % count}
            for i in range(rows)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    few, many = f"{{path: {tmp_path}/few.jsonl", f"{{path: {tmp_path}/many.jsonl"
    changes = [
        "~data.labels", "data.options=o", 'data.template=["{q} It was", "It was {q}:"]',
        f"data.train=[{few}, weight: 2}}, {many}, weight: 1}}]", f"data.eval={few}}}",
        "eval.every=0",
    ]  # fmt: skip
    assert main(["train", str(recipe), *changes, "train.steps=3"]) == 0
    out = capsys.readouterr().out
    assert "train: 30 of 30 rows" in out
    assert "train: 30 by weight" in out
    resolved = load_recipe(tmp_path / "run" / "resolved.yaml")
    assert resolved.data.format == "classification"
    assert isinstance(resolved.data.train, list)
    assert [source.weight for source in resolved.data.train] == [2, 1]
    # The same rows again, or the run would not go on.
    assert main(["train", str(recipe), *changes, "train.steps=5", "--resume", "auto"]) == 0
    assert "resuming at step 3" in capsys.readouterr().out


def test_a_detected_format_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small.write(tmp_path)
    (tmp_path / "texts.jsonl").write_text('{"text": "abcabc"}\n{"text": "xyz"}\n')
    texts = f"{tmp_path}/texts.jsonl"
    changes = [
        "~data.labels", "~data.template", f"data.train.path={texts}", f"data.eval.path={texts}",
        "train.steps=2", "eval.every=0",
    ]  # fmt: skip
    assert main(["train", str(recipe), *changes]) == 0
    assert "train: 2 of 2 rows; format text, by its columns" in capsys.readouterr().out
    assert load_recipe(tmp_path / "run" / "resolved.yaml").data.format == "text"
    assert main(["train", str(recipe), *changes, "--resume", "auto"]) == 0
    assert main(["eval", str(tmp_path / "run"), str(recipe), *changes]) == 0
    assert "(2 rows)" in capsys.readouterr().out
