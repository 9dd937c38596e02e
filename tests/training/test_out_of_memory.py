"""Memory that runs out anywhere: one line, exit code 5, and a run that goes on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import small

from zoft.cli.main import main
from zoft.engine.estimator import Estimator
from zoft.engine.optimizers.update import Resident, Update
from zoft.models import load
from zoft.runs import checkpoint
from zoft.training.run import train

ERRORS = {
    "python": MemoryError(),
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
    "cpu": RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."
    ),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(str(small.write(folder)))
    return weights(folder)


def weights(folder: Path) -> bytes:
    return (folder / "run" / "final" / "model.safetensors").read_bytes()


def failing(function: Callable[..., Any], call: int, error: Exception) -> Callable[..., Any]:
    """`function`, whose call of this number raises."""
    calls = 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return function(*arguments, **options)

    return wrapped


def said(captured: pytest.CaptureFixture[str]) -> str:
    lines = [x for x in captured.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: out of memory: ")
    assert "GiB are free" in lines[0]
    return lines[0]


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_while_loading_nothing_is_left_behind(
    tmp_path: Path,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = small.write(tmp_path)
    monkeypatch.setattr(load, "_fill", failing(load._fill, 1, error))
    assert main(["train", str(recipe)]) == 5
    said(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_in_a_probe_the_journal_holds_the_steps_before(
    tmp_path: Path,
    error: Exception,
    undisturbed: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = small.write(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Estimator, "measure", failing(Estimator.measure, 8, error))
        assert main(["train", str(recipe)]) == 5
    assert "would fit: " in said(capsys)
    goes_on(tmp_path, recipe, 7, undisturbed)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_in_the_middle_of_an_update_the_journal_holds_the_step(
    tmp_path: Path,
    error: Exception,
    undisturbed: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = small.write(tmp_path)
    calls = 0

    def half(self: Resident, update: Update) -> None:
        nonlocal calls
        calls += 1
        if calls < 7:
            return whole(self, update)
        whole(Resident(self.tuned[: len(self.tuned) // 2]), update)
        raise error

    whole = Resident.apply
    with monkeypatch.context() as patched:
        patched.setattr(Resident, "apply", half)
        assert main(["train", str(recipe)]) == 5
    said(capsys)
    goes_on(tmp_path, recipe, 7, undisturbed)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_in_an_evaluation(
    tmp_path: Path,
    error: Exception,
    undisturbed: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from zoft.inference import scoring

    recipe = small.write(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(scoring, "score", failing(scoring.score, 3, error))  # at 0, 5, then 10
        assert main(["train", str(recipe)]) == 5
    assert "eval.batch_size=16" in said(capsys)
    goes_on(tmp_path, recipe, 10, undisturbed)


def test_an_evaluation_of_its_own_covers_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small.write(tmp_path)
    monkeypatch.setattr(load, "_fill", failing(load._fill, 1, ERRORS["cpu"]))
    assert main(["eval", str(tmp_path / "model"), str(recipe)]) == 5
    said(capsys)


def goes_on(folder: Path, recipe: Path, steps: int, expected: bytes) -> None:
    """What stands there is whole, and leads to the same weights."""
    run = folder / "run"
    lines = (run / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines[1:]] == list(range(1, steps + 1))
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    found = checkpoint.find(run)
    assert found
    assert all(checkpoint.verify(x) for x in found)
    train(str(recipe), resume="auto")
    assert weights(folder) == expected
