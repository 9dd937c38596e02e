"""Several sources as one set, and what `prepare` hands to train, eval and plan."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny

from zoft.data.examples import TextExample
from zoft.data.mixing import apportioned, taken
from zoft.data.sets import prepare
from zoft.errors import DataError, Interrupted
from zoft.recipe.resolved import with_defaults
from zoft.recipe.schema import Recipe

TOKENIZER: Any = tiny.tokenizer()


def write(path: Path, letter: str, rows: int) -> str:
    texts = [{"text": f"{letter}{i}"} for i in range(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return str(path)


def texts(recipe: Recipe, name: str = "train") -> list[str]:
    examples = prepare(recipe, TOKENIZER)[1][name].examples
    decoded = [TOKENIZER.decode(x.ids) for x in examples if isinstance(x, TextExample)]
    return [text.removeprefix("<s>").removesuffix("</s>") for text in decoded]


def recipe_of(train: Any, seed: int = 0, **data: Any) -> Recipe:
    values = {"model": {"name": "m"}, "seed": seed, "data": {"train": train, **data}}
    return with_defaults(Recipe.model_validate(values))


def test_sources_follow_each_other(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", "a", 3), write(tmp_path / "b.jsonl", "b", 2)
    both = recipe_of([{"path": a}, {"path": b}], eval=[{"path": b}, {"path": a, "limit": 1}])
    assert texts(both) == ["a0", "a1", "a2", "b0", "b1"]
    assert texts(both, "eval") == ["b0", "b1", "a0"]


def test_weights_are_shares(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", "a", 60), write(tmp_path / "b.jsonl", "b", 20)
    sources = [{"path": a, "weight": 1.0}, {"path": b, "weight": 1.0}]
    found = texts(recipe_of(sources))
    assert Counter(text[0] for text in found) == {"a": 40, "b": 40}
    assert set(Counter(text for text in found if text[0] == "b").values()) == {2}
    kept = [text for text in found if text[0] == "a"]
    assert len(set(kept)) == 40
    assert kept == sorted(kept, key=lambda text: int(text[1:]))
    assert texts(recipe_of(sources)) == found
    assert texts(recipe_of(sources, seed=1)) != found


@given(
    drawn=st.lists(st.tuples(st.integers(1, 50), st.floats(0.01, 100)), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_shares_add_up_and_are_fair(drawn: list[tuple[int, float]], seed: int) -> None:
    sizes, weights = [n for n, _ in drawn], [w for _, w in drawn]
    shares = apportioned(sizes, weights)
    assert sum(shares) == sum(sizes)
    assert apportioned(sizes, sizes) == sizes
    for size, weight, share in zip(sizes, weights, shares, strict=True):
        assert abs(share - sum(sizes) * weight / sum(weights)) < 1 + 1e-9
        times = Counter(taken(size, share, seed, 0))
        assert sum(times.values()) == share
        assert share == 0 or max(times.values()) - min(times[i] for i in range(size)) <= 1


def test_the_format_is_settled_once_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "a", 3)
    said: list[str] = []
    recipe = recipe_of({"path": path}, eval={"path": path})
    assert recipe.data.format == "auto"
    settled, sets = prepare(recipe, TOKENIZER, say=said.append)
    assert settled.data.format == "text"
    assert list(sets) == ["train", "eval"]
    assert said == ["train: 3 of 3 rows; format text, by its columns", "eval: 3 of 3 rows"]
    assert list(prepare(recipe, TOKENIZER, names=("eval", "test"))[1]) == ["eval"]


def test_rows_are_numbered_within_their_source(tmp_path: Path) -> None:
    a, bad = write(tmp_path / "a.jsonl", "a", 3), tmp_path / "bad.jsonl"
    bad.write_text('{"text": "x"}\n{"text": [1]}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl: row 2: text is no text"):
        texts(recipe_of([{"path": a}, {"path": str(bad)}]))


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_a_signal_is_seen_while_reading_and_encoding(tmp_path: Path, after: int) -> None:
    path = write(tmp_path / "a.jsonl", "a", 1000)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Interrupted("stopped", 143)

    with pytest.raises(Interrupted):
        prepare(recipe_of({"path": path}), TOKENIZER, check=check)
    assert calls == after + 1


def test_a_stream_ends_with_what_the_run_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library itself, streaming a folder with the layout of a Hub repository."""
    import datasets

    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub" / "train.jsonl", "t", 500)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    load, splits, folder = (
        datasets.load_dataset, datasets.get_dataset_split_names, str(tmp_path / "hub"),
    )  # fmt: skip
    streamed: list[bool] = []

    def load_here(_path: str, name: str | None, *, split: str, streaming: bool = False) -> Any:
        streamed.append(streaming)
        return load(folder, name, split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load_here)
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda _path, name: splits(folder, name)
    )
    source: dict[str, Any] = {"path": "owner/set", "streaming": True}
    values = {
        "model": {"name": "m"},
        "train": {"steps": 5, "batch_size": 4},
        "data": {"train": source, "eval": {**source, "limit": 7}},
    }
    recipe = with_defaults(Recipe.model_validate(values))
    assert texts(recipe) == [f"t{i}" for i in range(20)]
    assert len(texts(recipe, "eval")) == 7
    assert all(streamed)
