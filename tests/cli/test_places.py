"""Every verb where stdout is closed or shows ASCII alone, and where the home is missing or read-only;
and the verbs that write, where no file takes a byte."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import small

from zoft.cli.main import main
from zoft.system.surroundings import CACHES
from zoft.training.run import train

VERBS = {
    "train": "{recipe} --output-dir {new} train.steps=1 eval.every=0",
    "eval": "{run} {recipe}",
    "plan": "{recipe}",
    "range": "{recipe}",
    "generate": "{run} --prompt abc --max-new-tokens 2",
    "chat": "{run}",
    "merge": "{run} {new}",
    "export": "{run} {new}.gguf",
    "push": "{run} you/it --dry-run hub.base_model=you/base",
    "replay": "{run} --out {new}",
    "validate": "{recipe} output_dir={new}",
    "schema": "",
    "doctor": "",
    "version": "",
    "recipes ls": "",
    "recipes show": "quickstart",
    "recipes cp": "quickstart {new}.yaml",
    "recipes demo": "",
    "data preview": "{recipe} -n 1",
    "data templates": "",
    "runs ls": "{folder}",
    "runs show": "{run}",
    "runs compare": "{run} {run}",
    "journal show": "{run}",
    "journal verify": "{run}",
    "journal stats": "{run}",
}
REFUSED = {"chat": 2}  # the tiny tokenizer has no chat template


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a LoRA run in run/."""
    made = tmp_path_factory.mktemp("places")
    train(str(small.write(made, "lora")), ["train.steps=2", "eval.every=0", "checkpoint.every=0"])
    return made


def arguments(verb: str, folder: Path, new: Path) -> list[str]:
    names = {"recipe": folder / "recipe.yaml", "run": folder / "run", "folder": folder, "new": new}
    return [*verb.split(), *VERBS[verb].format(**names).split()]


@pytest.fixture(params=["closed stdout", "ASCII stdout", "no home", "read-only home"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    def unknown(_: int) -> None:
        raise KeyError

    for variable in ("XDG_CACHE_HOME", *CACHES):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("zoft.system.demo.make", lambda _: None)  # it asks the network
    monkeypatch.setattr(sys, "stdin", io.StringIO("/exit\n"))
    match request.param:
        case "closed stdout":
            monkeypatch.setattr(sys, "stdout", None)
        case "ASCII stdout":
            monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
        case "no home":
            monkeypatch.setenv("HOME", "to be put back")
            monkeypatch.delenv("HOME")
            monkeypatch.setattr("pwd.getpwuid", unknown)
        case _:
            monkeypatch.setenv("HOME", "/dev/null")
    return str(request.param)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.usefixtures("place")
def test_every_verb_does_its_work(
    verb: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(arguments(verb, folder, tmp_path / "new"))
    lines = capsys.readouterr().err.splitlines()
    assert code == REFUSED.get(verb, 0), lines
    assert len(lines) <= 1
    assert all(line.startswith("error: ") for line in lines)


@pytest.mark.parametrize(
    "verb",
    ["train", "merge", "export", "replay", "recipes cp", "recipes demo", "range", "runs show"],
)
def test_a_verb_that_cannot_write_says_so_in_a_line(
    verb: str, folder: Path, tmp_path: Path
) -> None:
    """A limit of no byte for a file stands in for a full disk; python leaves it to the writer."""
    more = ["--plot", str(tmp_path / "range.png")] if verb == "range" else []
    if verb == "runs show":
        folder = Path(shutil.copytree(folder, tmp_path / "copy"))
        (folder / "run" / "report.html").unlink()
    command = [sys.executable, "-m", "zoft", *arguments(verb, folder, tmp_path / "new"), *more]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 0; exec "$@"', "bash", *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 4, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")


@pytest.mark.parametrize("verb", [verb for verb in VERBS if VERBS[verb] and verb != "range"])
def test_a_tilde_that_the_shell_left_is_the_home(
    verb: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    home.symlink_to(folder)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("/exit\n"))
    new = Path("~", tmp_path.name)
    assert main(arguments(verb, Path("~"), new)) == REFUSED.get(verb, 0), capsys.readouterr().err
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("verb", "odd", "code"),
    [
        ("train", "{recipe} --output-dir {new}/ODD", 2),
        ("train", "{recipe} data.train.path={new}/ODD.jsonl", 2),
        ("generate", "{run} --prompt ODD", 4),
        ("generate", "{new}/ODD --prompt a", 4),
        ("merge", "{run} {new}/ODD", 4),
        ("export", "{run} {new}/ODD.gguf", 0),
        ("recipes cp", "quickstart {new}/ODD", 0),
        ("runs show", "{new}/ODD", 4),
        ("journal verify", "{new}/ODD", 4),
    ],
)
def test_bytes_that_are_not_utf8_are_taken_or_named(
    verb: str,
    odd: str,
    code: int,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(VERBS, verb, odd.replace("ODD", "caf\udce9"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # no log of a defect
    capsys.readouterr()
    assert main(arguments(verb, folder, tmp_path)) == code
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == (code != 0)
    assert not list(tmp_path.glob("*.log"))
