from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoft.system.atomic_io import lock, staged, write_atomically


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for content in ("long before", "ß"):
        write_atomically(file, content)
        assert file.read_bytes() == content.encode()
    write_atomically(file, b"\xff")
    assert file.read_bytes() == b"\xff"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_fails_leaves_what_was_there(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"

    def fill(partial: Path, content: str) -> None:
        if kind == "folder":
            partial.mkdir()
        (partial / "inside" if kind == "folder" else partial).write_text(content)
        if content == "half":
            raise KeyboardInterrupt

    for content in ("old", "new"):
        with staged(place) as partial:
            fill(partial, content)
    with pytest.raises(KeyboardInterrupt), staged(place) as partial:
        fill(partial, "half")
    assert (place / "inside" if kind == "folder" else place).read_text() == "new"
    assert list(tmp_path.iterdir()) == [place]


def test_the_leftover_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from zoft.system.atomic_io import staged\n"
        "with staged(Path(sys.argv[1])) as partial:\n"
        "    partial.mkdir(); (partial / 'half').touch(); os.kill(os.getpid(), 9)\n"
    )
    file = tmp_path / "a"
    file.write_text("old")
    assert subprocess.run([sys.executable, "-c", script, str(file)], check=False).returncode == -9
    assert (tmp_path / ".a.partial" / "half").exists()
    assert file.read_text() == "old"
    write_atomically(file, "new")
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_has_its_content_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, synced = tmp_path / "a", []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, file.read_text()))

    write_atomically(file, "old")
    monkeypatch.setattr(os, "fsync", look)
    write_atomically(file, "new")
    assert synced == [(".a.partial", "old"), (tmp_path.name, "new")]


def test_a_folder_that_is_missing_is_said_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "a", "")
    assert list(tmp_path.iterdir()) == []


def test_locks_exclude_each_other_unless_both_are_shared(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("w") as first:
        assert lock(first)
        with path.open() as second:
            assert not lock(second, wait=False)
            assert not lock(second, shared=True, wait=False)
    with path.open() as first, path.open() as second, path.open() as third:
        assert lock(first, shared=True)
        assert lock(second, shared=True, wait=False)
        assert not lock(third, wait=False)
    with path.open() as again:
        assert lock(again, wait=False)
