from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import zoft
from zoft.cli.main import GROUPS, app, main
from zoft.errors import DataError, Interrupted, RecipeError

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def fake_train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """Stand in for zoft.training.run, which would import torch; `raises` is what train() raises."""

    def install(raises: BaseException | None = None) -> Calls:
        calls: Calls = []

        def train(*args: Any, **options: Any) -> None:
            calls.append((args, options))
            if raises is not None:
                raise raises

        module = ModuleType("zoft.training.run")
        module.train = train  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "zoft.training.run", module)
        monkeypatch.setattr("zoft.cli.tuning.require_valid", lambda *_: "read")
        monkeypatch.setattr("zoft.cli.tuning.require_demo", lambda *_: None)
        return calls

    return install


def test_train_hands_everything_on(fake_train: Callable[..., Calls]) -> None:
    calls = fake_train()
    assert main(["train", "r.yaml", "train.steps=3", "~data.test"]) == 0
    assert main(["train", "r.yaml", "--resume", "auto", "a=b", "--output-dir", "x"]) == 0
    assert calls == [
        (
            ("r.yaml", ["train.steps=3", "~data.test"]),
            {"resume": "none", "output_dir": None, "recipe": "read"},
        ),
        (("r.yaml", ["a=b"]), {"resume": "auto", "output_dir": "x", "recipe": "read"}),
    ]


def test_push_hands_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Calls = []
    module = ModuleType("zoft.sharing.hub.push")
    module.push = lambda *args, **options: calls.append((args, options))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zoft.sharing.hub.push", module)
    assert main(["push", "runs/a", "you/a", "--public", "--revision", "v1", "--what", "all"]) == 0
    assert main(["push", "runs/a", "hub.base_model=you/b", "--dry-run"]) == 0
    plain = {"public": False, "revision": None, "what": None, "dry_run": False}
    assert calls == [
        (("runs/a", "you/a", []), {**plain, "public": True, "revision": "v1", "what": "all"}),
        (("runs/a", None, ["hub.base_model=you/b"]), {**plain, "dry_run": True}),
    ]


def test_eval_hands_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    module = ModuleType("zoft.inference.evaluate")
    module.evaluate = lambda *args, recipe: calls.append((*args, recipe))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zoft.inference.evaluate", module)
    monkeypatch.setattr("zoft.cli.tuning.require_valid", lambda *_: "read")
    assert main(["eval", "runs/a", "quickstart", "data.eval.limit=2"]) == 0
    assert calls == [("runs/a", "quickstart", ["data.eval.limit=2"], "read")]


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (RecipeError("a: x\nb: y"), 2, ["error: a: x", "error: b: y"]),
        (DataError("no row"), 3, ["error: no row"]),
        (Interrupted("stopped after step 3", 143), 143, ["error: stopped after step 3"]),
        (KeyboardInterrupt(), 130, ["error: interrupted"]),
        (OSError(28, "No space left on device"), 4, ["error: the system: the disk is full"]),
        (
            PermissionError(13, "Permission denied", "a.json"),
            4,
            ["error: a.json: Permission denied"],
        ),
        (Exception("No space left (os error 28)"), 4, ["error: the system: the disk is full"]),
        (
            UnicodeEncodeError("utf-8", "output_dir: runs/\udce9t\udce9 ", 17, 18, "surrogates"),
            4,
            ["error: 'runs/\\udce9t\\udce9': the name is not UTF-8; rename it"],
        ),
        (
            RuntimeError("Could not determine home directory."),
            4,
            ["error: a path begins with `~` and a name, and there is no such user"],
        ),
        (RuntimeError("Read-only (os error 30)"), 4, ["error: the system: Read-only file system"]),
    ],
)
def test_exit_codes(
    fake_train: Callable[..., Calls],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    lines: list[str],
) -> None:
    fake_train(error)
    assert main(["train", "r.yaml"]) == code
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == ("", lines)


def test_an_unexpected_error_is_one_line_and_a_file(
    fake_train: Callable[..., Calls],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fake_train(ValueError("first line\nsecond line"))
    assert main(["train", "r.yaml"]) == 1
    (log,) = tmp_path.iterdir()
    assert capsys.readouterr().err == (
        f"error: unexpected ValueError: first line (the traceback is in {log})\n"
    )
    text = log.read_text(encoding="utf-8")
    assert "Traceback" in text
    assert "second line" in text


def test_an_unexpected_error_is_one_line_where_no_file_can_be_written(
    fake_train: Callable[..., Calls],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    fake_train(ValueError("odd"))
    assert main(["train", "r.yaml"]) == 1
    expected = "error: unexpected ValueError: odd (no place for the traceback)\n"
    assert capsys.readouterr().err == expected


def test_an_unexpected_error_goes_to_the_log_of_the_run(
    fake_train: Callable[..., Calls], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = tmp_path / "run.log"
    log.write_text("before\n", encoding="utf-8")
    error = ZeroDivisionError()
    error.log_path = log  # type: ignore[attr-defined]
    fake_train(error)
    assert main(["train", "r.yaml"]) == 1
    assert str(log) in capsys.readouterr().err
    text = log.read_text(encoding="utf-8")
    assert text.startswith("before\nTraceback")
    assert text.endswith("ZeroDivisionError\n")


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["train", "r", "--train.lr", "3"], "error: overrides have no dashes: write train.lr=3"),
        (["train", "r", "--train.lr=a=b"], "error: overrides have no dashes: write train.lr=a=b"),
        (["train", "r", "--train.lr"], "error: overrides have no dashes: write train.lr=VALUE"),
        (["train", "r", "--lr", "3"], "error: No such option: --lr"),
        (["train"], "error: Missing argument 'RECIPE'; zoft --help says more"),
        (["tarin"], "error: No such command 'tarin'"),
        (["recipes", "show", "quick"], "error: no packaged recipe is called 'quick'; there are"),
    ],
)
def test_usage_errors(
    arguments: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(answer)
    assert err.count("\n") == 1


def verbs(command: Any, *names: str) -> Iterator[str]:
    """The words of every command and group, as the parser knows them."""
    yield " ".join(names)
    for name, inner in getattr(command, "commands", {}).items():
        yield from verbs(inner, *names, name)


@pytest.mark.parametrize("verb", [*verbs(typer.main.get_command(app))])
def test_help_opens_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    usage, blank, example, *_ = capsys.readouterr().out.splitlines()
    assert usage.startswith(f"Usage: zoft {verb}".rstrip())
    assert blank == ""
    assert example.startswith(f"  Example: zoft {verb}".rstrip())


@pytest.mark.parametrize("arguments", [[], *([group] for group in GROUPS)])
def test_no_command_shows_the_help(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert "Commands:" in out
    assert err == ""


def test_packaged_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "ls"]) == 0
    listed = capsys.readouterr().out
    assert re.search(r"^quickstart +Movie sentiment", listed, re.MULTILINE)
    assert main(["recipes", "show", listed.split(maxsplit=1)[0]]) == 0
    assert f"# {listed.splitlines()[0].split(maxsplit=1)[1]}\n" in capsys.readouterr().out


def test_packaged_recipes_are_copied_but_never_over_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "cp", "quickstart"]) == 0
    assert main(["recipes", "show", "quickstart"]) == 0
    assert capsys.readouterr().out == "quickstart.yaml\n" + Path("quickstart.yaml").read_text()
    (tmp_path / "sub").mkdir()
    assert main(["recipes", "cp", "quickstart", "sub"]) == 0
    assert (tmp_path / "sub" / "quickstart.yaml").is_file()
    Path("mine.yaml").write_text("mine")
    assert main(["recipes", "cp", "quickstart", "mine.yaml"]) == 2
    assert Path("mine.yaml").read_text() == "mine"
    assert main(["recipes", "cp", "quickstart", "no/where.yaml"]) == 4
    assert "no/where.yaml cannot be written: No such file" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith(f"zoft {zoft.__version__}\npython 3.")


@pytest.mark.parametrize(
    "arguments", ["--help", "train --help", "recipes ls", "runs ls .", "version"]
)
def test_what_needs_no_model_imports_no_framework(arguments: str) -> None:
    script = (
        "import sys; from zoft.cli.main import main; code = main();"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'numba', 'numpy'} & {*sys.modules};"
        "sys.exit(code or ' '.join(heavy) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments.split()],
        cwd=Path(zoft.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_recipe_is_checked_without_the_framework() -> None:
    script = (
        "import sys; from zoft.recipe.load import load_recipe; load_recipe('quickstart');"
        "sys.exit(' '.join({'torch', 'transformers', 'datasets', 'numpy'} & {*sys.modules}) or 0)"
    )
    root = Path(zoft.__file__).parents[1]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)


@pytest.mark.parametrize(
    "command", ["train quickstart --resume nowhere", "eval ./nowhere quickstart"]
)
def test_the_frameworks_are_imported_in_silence(command: str) -> None:
    """bitsandbytes and torchao, which the tests need, log what they miss when peft imports them."""
    done = subprocess.run(
        [sys.executable, "-m", "zoft", *command.split()],
        cwd=Path(zoft.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")


def test_python_m_zoft() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zoft", "tarin"],
        cwd=Path(zoft.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: No such command 'tarin'")
