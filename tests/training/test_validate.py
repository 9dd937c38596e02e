"""`zoft validate`: every check says its line, all problems are said, nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import small, tiny
from support.decoders.models import build

from zoft.cli.main import main
from zoft.training import validate


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("validate"))


def everything(folder: Path) -> dict[Path, float]:
    return {path: path.stat().st_mtime for path in folder.rglob("*")}


def checked(
    recipe: Path, capsys: pytest.CaptureFixture[str], *overrides: str
) -> tuple[int, dict[str, str], list[str]]:
    """The exit code, the lines by the check's name, and the problems."""
    before = everything(recipe.parent)
    code = main(["validate", str(recipe), *overrides])
    assert everything(recipe.parent) == before
    out, err = capsys.readouterr()
    lines = {x[:11].strip(): x[11:].strip() for x in out.splitlines() if x[0] != " "}
    assert all(line.startswith("error: ") for line in err.splitlines())
    return code, lines, [line.removeprefix("error: ") for line in err.splitlines()]


def test_a_recipe_that_would_run(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, problems = checked(made, capsys)
    assert (code, problems) == (0, [])
    assert list(lines) == [
        "recipe", "run folder", "device", "model", "tokenizer", "data.train", "data.eval", "memory",
        "disk", "probes",
    ]  # fmt: skip
    assert all(line.startswith("ok") for line in lines.values())
    assert lines["data.train"] == "ok, 48 of 48 rows, up to 19 tokens"
    assert "llama" in lines["model"]


@pytest.mark.parametrize(
    ("name", "expected", "why"),
    [
        ("rwkv", 4, "writes its own weights"),
        ("bart", 2, "no forward pass reads"),
        ("gemma3n_text", 2, "depends on the others in its batch"),
    ],
)
def test_what_only_the_weights_show_is_said_as_a_run_says_it(
    name: str,
    expected: int,
    why: str,
    made: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(made.parent, tmp_path / "copy")
    shutil.rmtree(folder / "model")
    build(name).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    capsys.readouterr()
    changes = (f"model.name={folder}/model", f"output_dir={tmp_path}/run")
    code, lines, problems = checked(made, capsys, *changes)
    assert (code, lines["probes"]) == (expected, "not ok")
    assert why in problems[0]
    assert main(["train", str(made), *changes]) == expected
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {problems[0]}"
    assert not (tmp_path / "run").exists()


def test_all_problems_are_said_and_the_first_kind_is_the_exit_code(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "kept").write_text("something")
    code, lines, problems = checked(
        made,
        capsys,
        f"data.train.path={made.parent}/trian.jsonl",
        "data.labels={0: bad, 2: great}",
        f"output_dir={tmp_path}",
        "tune.method=lora",
        "tune.target_modules=[nope]",
        "device=cuda:99",
    )
    assert code == 2
    assert [name for name, line in lines.items() if line == "not ok"] == [
        "run folder", "device", "model", "data.train", "data.eval",
    ]  # fmt: skip
    assert lines["tokenizer"].startswith("ok")
    assert len(problems) == 5
    wanted = ["is not empty", "nope", "data.train: ", "eval.jsonl: row 2: ", "device: cuda:99"]
    for problem, words in zip(problems, wanted, strict=True):
        assert words in problem


def test_data_alone_is_exit_code_3(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, problems = checked(made, capsys, "data.max_length=10")
    assert code == 3
    assert [problem.partition(": row ")[0] for problem in problems] == [
        f"data.{name}: {made.parent / name}.jsonl" for name in ("train", "eval")
    ]
    assert lines["disk"].startswith("ok")


def test_without_a_model_the_rows_are_read_all_the_same(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, problems = checked(made, capsys, "model.name=./nowhere")
    assert (code, problems) == (4, ["model.name: there is no ./nowhere"])
    assert lines["tokenizer"] == "not looked at: there is no model"
    assert lines["data.train"].startswith("ok, 48 rows; labels and lengths not looked at")
    assert lines["disk"] == "not looked at: it follows from the model"


def test_weights_must_be_there(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(made.parent / "model", model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, lines, (problem,) = checked(made, capsys, f"model.name={model}")
    assert (code, lines["model"]) == (4, "not ok")
    assert "model.safetensors" in problem
    weights.unlink()
    code, lines, (problem,) = checked(made, capsys, f"model.name={model}")
    assert (code, lines["tokenizer"][:2]) == (4, "ok")
    assert "holds neither model.safetensors nor pytorch_model.bin" in problem


def test_an_adapter_is_no_base(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    code, _, (problem,) = checked(made, capsys, f"model.name={tmp_path}")
    assert (code, problem) == (4, f"model.name: {tmp_path} is an adapter; name its base model")


def test_disk_and_memory(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, lines, (problem, memory) = checked(made, capsys, "memory.device_budget=1MiB")
    assert (code, lines["disk"], lines["memory"]) == (4, "not ok", "not ok")
    assert "needs" in problem
    assert "0.00 GB are free" in problem
    assert memory.startswith("memory: ")


def test_a_run_that_is_there_is_no_problem(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "journal.jsonl").write_text("{}\n")
    (tmp_path / "resolved.yaml").write_text("")
    code, lines, _ = checked(made, capsys, f"output_dir={tmp_path}")
    assert code == 0
    assert lines["run folder"].endswith("holds a run, which --resume auto goes on with")


def test_a_broken_recipe_is_all_there_is_to_say(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "load_rows", None)
    code, lines, problems = checked(made, capsys, "train.step=3", "optimizer.lr=x")
    assert (code, lines, len(problems)) == (2, {}, 2)
