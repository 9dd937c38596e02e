from __future__ import annotations

import json
from pathlib import Path

import pytest

from zoft.data.sources import Rows, load_rows
from zoft.errors import DataError, EnvironmentProblem
from zoft.recipe.sections.data import DataSource

ROWS = [{"text": "a fine, fine film", "label": 1}, {"text": "zäh\u2028\nund\tlang", "label": 0}]


def read(path: Path | str, **more: object) -> Rows:
    return load_rows(DataSource.model_validate({"path": str(path), **more}))


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def failure(path: Path | str, **more: object) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **more)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_json_lines_and_arrays_are_the_same_rows(tmp_path: Path) -> None:
    lines = read(jsonl(tmp_path / "a.jsonl", ROWS))
    (tmp_path / "b.json").write_text(json.dumps(ROWS, indent=2))
    array = read(tmp_path / "b.json")
    assert list(lines) == list(array) == ROWS


def test_csv_values_are_the_texts_of_the_file(tmp_path: Path) -> None:
    content = '\ufefftext,label\r\n"a ""fine"", fine\nfilm",01\r\n\r\nNA,\r\n'
    (tmp_path / "a.csv").write_bytes(content.encode())
    assert list(read(tmp_path / "a.csv")) == [
        {"text": 'a "fine", fine\nfilm', "label": "01"},
        {"text": "NA", "label": ""},
    ]


def test_csv_fields_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert len(next(iter(read(tmp_path / "a.csv")))["text"]) == 200_000


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert list(read(tmp_path / "a.parquet")) == ROWS


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    assert list(read(path, limit=1)) == ROWS[:1]
    assert len(read(path, limit=9)) == 2


def test_a_folder_is_one_split(tmp_path: Path) -> None:
    jsonl(tmp_path / "train-00000-of-00002.jsonl", ROWS[:1])
    jsonl(tmp_path / "train-00001-of-00002.jsonl", ROWS[1:])
    (tmp_path / "README.md").write_text("not data")
    assert list(read(tmp_path)) == ROWS
    jsonl(tmp_path / "test.jsonl", ROWS[:1])
    assert list(read(tmp_path, split="train")) == ROWS
    assert list(read(tmp_path, split="test")) == ROWS[:1]
    assert "`split` must choose one of test, train" in failure(tmp_path)
    assert "no split 'dev'; there are test, train" in failure(tmp_path, split="dev")


BROKEN = {
    "cut.jsonl": (b'{"text": "a"}\n\n{"text": "b', "cut.jsonl:3: not valid JSON", "cut off?"),
    "comma.jsonl": (b'{"text": "a"}\n{"text": "b",}\n{}', "comma.jsonl:2: not valid JSON", "("),
    "list.jsonl": (b'{"text": "a"}\n7\n', "list.jsonl:2: expected an object", "found 7"),
    "items.json": (b'[{"text": "a"}, "b"]', "items.json:item 2: expected an object", '"b"'),
    "cut.json": (b'[\n{"text": "a"},\n', "cut.json:", "cut off?"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe4"}', "latin.jsonl:2: not UTF-8", "0xe4"),
    "ragged.csv": (b"text,label\na,1\nb,2,3\n", "ragged.csv:3: 3 values for 2 columns", ""),
    "open.csv": (b'text,label\n"a,1\n', "open.csv:2: not valid CSV", ""),
    "twice.csv": (b"text,text\na,b\n", "twice.csv:1: a column name stands twice", ""),
    "no.parquet": (b"PAR1PAR1", "no.parquet: not a valid Parquet file", ""),
    "empty.jsonl": (b"\n", "empty.jsonl: holds no rows", ""),
    "header.csv": (b"text,label\n", "header.csv: holds no rows", ""),
    "notes.txt": (b"hello", "notes.txt: expected a file that ends in .jsonl", ".parquet"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(tmp_path: Path, name: str) -> None:
    content, where, detail = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    message = failure(tmp_path / name)
    assert where in message
    assert detail in message


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", ROWS)
    assert "did you mean train.jsonl?" in failure(tmp_path / "trian.jsonl")
    assert f"nor folder {tmp_path / 'no'}" in failure(tmp_path / "no" / "a.jsonl")


def test_a_folder_without_data(tmp_path: Path) -> None:
    assert "holds no file that ends in" in failure(tmp_path)


def test_split_and_name_do_not_go_with_files(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    assert "has no `split`" in failure(path, split="train")
    assert "`name` is for sets on the Hub" in failure(tmp_path, name="sst2")


def test_the_hub_out_of_reach_is_no_fault_of_the_data() -> None:
    with pytest.raises(EnvironmentProblem, match="nobody/nothing on the Hugging Face Hub"):
        read("nobody/nothing")


@pytest.mark.parametrize(
    ("said", "kind", "expected"),
    [
        ("Dataset 'a/b' is a gated dataset on the Hub.", EnvironmentProblem, "accept its terms"),
        ("Dataset 'a/b' doesn't exist on the Hub.", DataError, "nor is there such a file"),
    ],
)
def test_a_hub_set_out_of_bounds(
    said: str, kind: type[Exception], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def refuse(*_: object) -> list[str]:
        raise datasets.exceptions.DatasetNotFoundError(said)

    monkeypatch.setattr(datasets, "get_dataset_split_names", refuse)
    with pytest.raises(kind, match=expected):
        read("a/b")


def test_a_hub_set_is_read_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself, on a folder with the layout of a Hub repository instead of the Hub."""
    import datasets

    jsonl(tmp_path / "hub" / "train.jsonl", ROWS)
    jsonl(tmp_path / "hub" / "test.jsonl", ROWS[:1])
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    load, splits = datasets.load_dataset, datasets.get_dataset_split_names
    folder = str(tmp_path / "hub")
    monkeypatch.setattr(
        datasets, "load_dataset", lambda _path, name, split: load(folder, name, split=split)
    )
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda _path, name: splits(folder, name)
    )
    assert list(read("owner/set", split="train")) == ROWS
    assert list(read("owner/set", split="train[1:]", limit=5)) == ROWS[1:]
    assert list(read("owner/set", split="train+test", limit=2)) == ROWS
    assert "no split 'dev'; there are test, train" in failure("owner/set", split="dev")
    assert "`split` must choose one of test, train" in failure("owner/set")
    assert "on the Hugging Face Hub: " in failure("owner/set", split="train[x]")
