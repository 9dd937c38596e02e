from __future__ import annotations

from pathlib import Path

import pytest

from zoft.models.storage.names import split_revision


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("you/model", ("you/model", None)),
        ("you/model@v1", ("you/model", "v1")),
        ("gpt2@refs/pr/3", ("gpt2", "refs/pr/3")),
        ("you/model@", ("you/model", None)),
        ("you/here@v1", ("you/here@v1", None)),
        ("./you@v1", ("./you@v1", None)),
        ("~/you@v1", ("~/you@v1", None)),
        ("/you@v1", ("/you@v1", None)),
        ("you@v1.gguf", ("you@v1.gguf", None)),
    ],
)
def test_a_revision_follows_an_id_and_a_folder_of_the_name_wins(
    name: str,
    expected: tuple[str, str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "you" / "here@v1").mkdir(parents=True)
    assert split_revision(name) == expected
