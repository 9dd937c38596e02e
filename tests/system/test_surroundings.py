"""Streams that are closed or show few characters, no home, caches that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoft.system.surroundings import CACHES, settle


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command.replace("zoft", f"{sys.executable} -m zoft", 1)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("closed", [">&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_hinder_nothing(closed: str, tmp_path: Path) -> None:
    copied = tmp_path / "mine.yaml"
    done = shell(f"zoft recipes cp quickstart {copied} {closed}")
    assert done.returncode == 0, done.stderr
    assert str(copied) not in copied.read_text()  # what is printed went elsewhere


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_stdout_cannot_show_is_replaced(encoding: str) -> None:
    code = "from zoft.system.surroundings import settle; settle(); print('a \\u2192 \\udcff')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert (done.returncode, done.stdout) == (0, b"a ? ?\n"), done.stderr


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("zoft recipes ls >/dev/full", "error: the system: the disk is full\n"),
        (
            "zoft schema | true; exit ${PIPESTATUS[0]}",
            "error: stdout: Broken pipe\n",
        ),
    ],
)
def test_a_stdout_that_fails_is_one_line(command: str, line: str) -> None:
    done = shell(command)
    assert (done.returncode, done.stderr) == (4, line)


def test_without_a_home_there_is_a_temporary_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "environ", {})
    settle()
    assert Path.home() == tmp_path / f"zoft-{os.getuid()}"
    assert Path.home().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_caches_that_cannot_be_written_lie_elsewhere(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path), variable: str(file), "X": "1"})
    settle()
    assert {os.environ[name] for name in CACHES} == {
        str(tmp_path / f"zoft-{os.getuid()}" / name) for name in CACHES.values()
    }


def test_a_home_that_can_be_written_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    settle()
    assert os.environ == {"HOME": str(tmp_path)}


def test_another_users_folder_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planted = tmp_path / f"zoft-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "environ", {"HOME": "/dev/null"})
    settle()
    assert Path(os.environ["NUMBA_CACHE_DIR"]).parent != planted
