"""Runs whose blocks wait in host memory or in files end in the bytes of resident ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support import kills, small, tiny
from support.failures import killed_after
from torch import Tensor

from zoft.cli.main import main
from zoft.engine.build import streamer_for
from zoft.engine.offload.homes import Files
from zoft.engine.offload.streamer import Streamer
from zoft.errors import EnvironmentProblem
from zoft.inference.evaluate import evaluate
from zoft.models.storage.safetensors import stored_tensors
from zoft.planning import placement as residency
from zoft.planning.memory.footprint import footprint
from zoft.planning.workload import Shape
from zoft.recipe.resolved import Resolved
from zoft.training import load
from zoft.training.run import train

DISK, HOST = "model.residency=disk", "model.residency=host"
VARIANTS = {
    "rank-1 per example": ("full", []),
    "dense, unpaired": ("full", ["optimizer.scope=batch", "optimizer.structure=dense"]),
    "stored moments": ("full", ["optimizer.moments=full", "train.micro_batch_size=2"]),
    "window": ("full", ["optimizer.moments=window", "optimizer.window=4", "optimizer.lr=3e-4"]),
    "mezo": (
        "full",
        ["optimizer.name=mezo", "optimizer.lr=1e-4", "optimizer.distribution=gaussian"],
    ),
    "bfloat16": ("full", ["model.dtype=bfloat16", "model.compute_dtype=bfloat16"]),
    "decay, some weights": (
        "full",
        ['tune.exclude=["*q_proj*","*layernorm*"]', "optimizer.weight_decay=0.1"],
    ),
    "lora": ("lora", []),
    "lora on nf4": ("lora", ["model.quantization=nf4"]),
    "lora on int8": ("lora", ["model.quantization=int8"]),
    "lora in bfloat16": ("lora", ["model.compute_dtype=bfloat16", "optimizer.paired=false"]),
}
WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # which nf4 asks for


Finished = tuple[Path, list[str], Path]  # a recipe, its changes, the folder of its run


def written(folder: Path) -> dict[str, bytes]:
    """All that says what the weights are: checkpoints, the journal but its header, the result."""
    found = {
        str(file.relative_to(folder)): file.read_bytes()
        for part in ("checkpoint-000005", "checkpoint-000010", "final")
        for file in sorted((folder / part).iterdir())
        if file.suffix == ".safetensors" or file.name == "trainer.json"
    }
    assert any("model.safetensors" in name for name in found)
    return {**found, "journal": (folder / "journal.jsonl").read_bytes().split(b"\n", 1)[1]}


def scores(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [event["loss"] for event in lines if event["event"] == "eval"]


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """Of a variant, a recipe, its changes, and the folder of its run on the device."""

    @cache
    def made(variant: str) -> Finished:
        method, changes = VARIANTS[variant]
        folder = tmp_path_factory.mktemp("resident")
        widths = WIDTHS if "nf4" in variant else {}
        recipe = small.write(folder, method, num_hidden_layers=6, **widths)
        train(str(recipe), changes, output_dir=str(folder / "run"))
        return recipe, changes, folder / "run"

    return made


# Roads and rules in all their pairs: tests/engine/offload/test_streamer.py.
@pytest.mark.parametrize(
    ("variant", "where"),
    [
        *((variant, DISK) for variant in VARIANTS),
        *((variant, HOST) for variant in ("stored moments", "lora on nf4")),
        *(
            (variant, f"{HOST} offload.writeback=host")
            for variant in ("bfloat16", "stored moments")
        ),
    ],
)
def test_a_streamed_run_ends_in_the_same_bytes(
    resident: Callable[[str], Finished], variant: str, where: str, tmp_path: Path
) -> None:
    recipe, changes, expected = resident(variant)
    train(str(recipe), [*changes, *where.split()], output_dir=str(tmp_path / "run"))
    assert written(tmp_path / "run") == written(expected)
    assert scores(tmp_path / "run") == scores(expected)
    assert not (tmp_path / "run" / "working-copy.bin").exists()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["event"] == "train"]
    assert all(0 <= event["waited"] <= event["seconds"] for event in steps)


@pytest.mark.parametrize(
    ("variant", "stop"),
    [("rank-1 per example", 3), ("stored moments", 8), ("window", 8), ("lora", 8)],
)
def test_a_streamed_run_goes_on_where_it_was_stopped(
    resident: Callable[[str], Finished], variant: str, stop: int, tmp_path: Path
) -> None:
    """Without a checkpoint, and behind one, whose weights and moments are where the blocks are read."""
    recipe, changes, expected = resident(variant)
    with killed_after(stop):
        train(str(recipe), [*changes, DISK], output_dir=str(tmp_path / "run"))
    train(str(recipe), [*changes, DISK], output_dir=str(tmp_path / "run"), resume="auto")
    assert written(tmp_path / "run") == written(expected)


@pytest.mark.parametrize(
    "changes",
    [
        ["optimizer.moments=full"],
        ["optimizer.name=mezo", "optimizer.lr=1e-4", "optimizer.distribution=gaussian"],
        ["tune.method=lora", "tune.target_modules=[q_proj, v_proj]", "optimizer.lr=1e-2"],
    ],
    ids=["r-adazo", "mezo", "lora"],
)
def test_experts_that_the_files_hold_apart_are_streamed(tmp_path: Path, changes: list[str]) -> None:
    """From disk and host, stopped and resumed; the result has the layout of the checkpoint."""
    recipe, model = small.write(tmp_path, build=tiny.mixtral), tmp_path / "model"
    whole, disk, host = (tmp_path / name for name in ("whole", "disk", "host"))
    train(str(recipe), changes, output_dir=str(whole))
    with killed_after(8):
        train(str(recipe), [*changes, DISK], output_dir=str(disk))
    train(str(recipe), [*changes, DISK], output_dir=str(disk), resume="auto")
    train(str(recipe), [*changes, HOST], output_dir=str(host))
    assert written(disk) == written(whole)
    assert written(host) == written(whole)
    if "tune.method=lora" not in changes:
        assert stored_tensors(disk / "final").keys() == stored_tensors(model).keys()


@pytest.mark.parametrize("verb", ["train", "plan", "validate", "eval"])
def test_what_cannot_be_streamed_is_refused_by_every_verb(
    tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small.write(tmp_path)
    config = tmp_path / "model" / "config.json"
    content = json.loads(config.read_text())
    content["quantization_config"] = {"quant_method": "fp8"}
    config.write_text(json.dumps(content))
    target = [str(tmp_path / "model"), str(recipe)] if verb == "eval" else [str(recipe)]
    assert main([verb, *target, DISK]) == 4
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be streamed, its checkpoint is quantised; set model.residency=device" in error


def test_a_run_may_go_on_elsewhere(tmp_path: Path) -> None:
    recipe = small.write(tmp_path, num_hidden_layers=6)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(str(recipe), output_dir=str(whole))
    train(str(recipe), ["train.steps=5", DISK], output_dir=str(parts))
    train(str(recipe), ["train.steps=10", HOST], output_dir=str(parts), resume="auto")
    train(str(recipe), ["train.steps=12"], output_dir=str(parts), resume="auto")
    assert written(parts) == written(whole)


def test_a_killed_run_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """`kill -9` leaves a working copy of any age, and a resume reads none of it."""
    recipe = small.write(tmp_path, num_hidden_layers=6)
    changes = ["train.steps=60", "checkpoint.every=20", "~data.eval", DISK]
    whole = kills.uninterrupted(str(recipe), [*changes[:-1]], tmp_path / "whole")
    killed, moments = kills.killed(str(recipe), changes, tmp_path / "killed", steps=60, times=2)
    assert len(moments) == 2
    assert killed == whole


def test_some_blocks_stay_when_the_budget_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.write(tmp_path, num_hidden_layers=6)
    seen: list[Streamer] = []

    def seeing(*args: Any, **kwargs: Any) -> Streamer | None:
        made = streamer_for(*args, **kwargs)
        assert made is not None
        seen.append(made)
        return made

    def two_stay(recipe: Resolved, shape: Shape, *_: Any) -> residency.Choice:
        return residency.Choice(footprint(recipe, shape, "disk", (1, 4)), "told so")

    monkeypatch.setattr(load, "streamer_for", seeing)
    monkeypatch.setattr(load, "choose", two_stay)
    train(str(recipe), output_dir=str(tmp_path / "run"))
    monkeypatch.undo()
    train(str(recipe), output_dir=str(tmp_path / "whole"))
    assert list(seen[0].blocks) == [0, 2, 3, 5]
    assert written(tmp_path / "run") == written(tmp_path / "whole")


def test_a_failing_disk_ends_the_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.write(tmp_path, num_hidden_layers=6)
    train(str(recipe), output_dir=str(tmp_path / "whole"))
    written_blocks, original = [], Files.write

    def failing(self: Files, block: int, arena: Tensor) -> None:
        written_blocks.append(block)
        if len(written_blocks) == 20:
            raise EnvironmentProblem("the disk is full")
        original(self, block, arena)

    with monkeypatch.context() as patch:
        patch.setattr(Files, "write", failing)
        with pytest.raises(EnvironmentProblem, match="the disk is full"):
            train(str(recipe), [DISK], output_dir=str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    train(str(recipe), [DISK], output_dir=str(tmp_path / "run"), resume="auto")
    assert written(tmp_path / "run") == written(tmp_path / "whole")


@pytest.mark.parametrize("variant", ["rank-1 per example", "lora", "lora on int8"])
def test_a_streamed_model_scores_what_a_resident_one_does(
    resident: Callable[[str], Finished], variant: str
) -> None:
    recipe, changes, folder = resident(variant)
    whole = evaluate(str(folder), str(recipe), changes)
    streamed = evaluate(str(folder), str(recipe), [*changes, DISK])
    for scores in (whole["eval"], streamed["eval"]):
        del scores["seconds"]
    assert streamed == whole
