"""Replays: a run's bytes from base and journal alone, on every kernel, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import small
from support.written import change_header, unprotect

from zoft.cli.main import main
from zoft.engine.kernels import reference
from zoft.engine.kernels.cpu import sweeps as cpu
from zoft.engine.probe.structures import dense, rank1
from zoft.errors import EnvironmentProblem, Interrupted, RecipeError
from zoft.runs import artefact, journal
from zoft.runs.folder import RunFolder
from zoft.sharing import rebuild
from zoft.sharing import replay as replays
from zoft.sharing.base_model import Base
from zoft.sharing.hub.payload import list_files
from zoft.sharing.replay import replay
from zoft.system.signals import Stop

VARIANTS = {
    "rank-1 per example": ("full", []),
    "stored moments, bfloat16, decay, some weights": (
        "full",
        ["optimizer.moments=full", "model.dtype=bfloat16", 'tune.exclude=["*q_proj*","*norm*"]',
         "optimizer.weight_decay=0.1"],
    ),
    "window": ("full", ["optimizer.moments=window", "optimizer.window=3", "optimizer.lr=3e-4"]),
    "mezo": (
        "full",
        ["optimizer.name=mezo", "optimizer.lr=1e-4", "optimizer.distribution=gaussian",
         "model.dtype=float16"],
    ),
    "lora": ("lora", ["tune.r=2", "optimizer.directions=2"]),
    "lora on int8": ("lora", ["model.quantization=int8"]),
}  # fmt: skip
SHORT = ["train.steps=5", "checkpoint.every=3", "~data.eval", "logging.every=5"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a variant's finished run; its base is ../model."""
    return small.finished_runs(tmp_path_factory, VARIANTS, SHORT)


def files(folder: Path) -> dict[str, bytes]:
    """What both a run and a replay write: weights, their config, the tokenizer."""
    own = {"COMPLETE", "recipe.yaml", "README.md", "optimizer.safetensors", "trainer.json"}
    own |= {"metrics.jsonl", "loss.png"}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in own}


def write_artefact(run: Path, folder: Path) -> None:
    """What a replay needs of a run: its journal, and the adapter that it began with."""
    folder.mkdir(exist_ok=True)
    (folder / "journal.jsonl").write_bytes(artefact.shared_journal(run / "journal.jsonl"))
    if (run / "start").is_dir():
        shutil.copytree(run / "start", folder / "start")


def copied(run: Path, folder: Path, **changes: Any) -> Path:
    """The run's journal and start alone, with changes to the header."""
    write_artefact(run, folder)
    change_header(folder / "journal.jsonl", **changes)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_replay_has_the_bytes_of_the_run(
    finished: Callable[..., Path], variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(variant)
    assert files(replay(str(run), out=str(tmp_path / "whole"))) == files(run / "final")
    assert "the weights are those of final\n" in capsys.readouterr().out
    part = replay(str(run / "journal.jsonl"), at=3, out=str(tmp_path / "part"))
    assert files(part) == files(run / "checkpoint-000003")
    assert "the weights are those of checkpoint-000003\n" in capsys.readouterr().out


@pytest.mark.parametrize("variant", [*list(VARIANTS)[:2], "lora"])
def test_what_does_not_fit_into_memory_is_replayed_block_by_block(
    finished: Callable[..., Path],
    variant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rebuild, "free_host_bytes", lambda: 1000)
    target = replay(str(finished(variant)), out=str(tmp_path / "out"))
    assert "do not fit" in capsys.readouterr().out
    assert files(target) == files(finished(variant) / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("variant", list(VARIANTS)[:5])
def test_kernels_and_threads_do_not_matter(
    finished: Callable[..., Path], variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(variant)
    with monkeypatch.context() as patch:
        for structure in (dense, rank1):
            patch.setattr(structure, "kernels_for", lambda _: reference)
        literal = replay(str(run), out=str(tmp_path / "literal"))
    threads = torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "MIN_PER_THREAD", 1)
        torch.set_num_threads(3)
        try:
            shared = replay(str(run), out=str(tmp_path / "shared"))
        finally:
            torch.set_num_threads(threads)
    assert files(literal) == files(shared) == files(run / "final")


@pytest.mark.parametrize("variant", ["rank-1 per example", "lora"])
def test_an_artefact_is_all_that_it_takes(
    finished: Callable[..., Path], variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(variant)
    recipe, base = RunFolder(run).previous(), Base("someone/base", "main")
    found = list_files(recipe, RunFolder(run), run / "final", "journal", base, "someone/tuned")
    adapter = {"start/adapter_config.json", "start/adapter_model.safetensors"}
    needed = {"journal.jsonl"} | (adapter if variant == "lora" else set())
    assert needed == {name for name in found if name.startswith(("journal", "start/"))}
    for name in needed:
        path, content = tmp_path / "a" / name, found[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    for path in (tmp_path / "a").rglob("*.json*"):
        assert str(run.parent) not in path.read_text()
    header, _ = journal.read(tmp_path / "a" / "journal.jsonl")
    assert header["base"]["name"] == "someone/base"
    target = replay(str(tmp_path / "a"), base=str(run.parent / "model"))
    assert target == tmp_path / "a" / "replayed-000005"
    weights = next(path for path in target.iterdir() if path.suffix == ".safetensors")
    assert weights.read_bytes() == (run / "final" / weights.name).read_bytes()
    assert "the weights are those of the journal's header\n" in capsys.readouterr().out


def test_the_journal_of_an_artefact_is_shared_as_it_is(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    write_artefact(finished("lora"), tmp_path)
    file = tmp_path / "journal.jsonl"
    assert artefact.shared_journal(file) == file.read_bytes()


def test_an_artefact_is_small(finished: Callable[..., Path], tmp_path: Path) -> None:
    """At most 200 bytes and 12 per scalar for a step, the header apart; it has a line per tensor."""
    write_artefact(finished(), tmp_path)
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert sum(map(len, lines[1:])) <= 5 * (200 + 12 * 4)
    assert len(lines[0]) < 1200 + 80 * len(json.loads(lines[0])["parameters"])


@pytest.mark.parametrize("revision", [None, "refs/pr/1"])
def test_a_journal_from_the_hub(
    revision: str | None,
    finished: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_artefact(finished("lora"), tmp_path / "hub")
    asked = []
    monkeypatch.chdir(tmp_path)

    def snapshot(*args: Any, **more: Any) -> Path:
        asked.append((args, more))
        return tmp_path / "hub"

    monkeypatch.setattr(replays, "snapshot", snapshot)
    target = replay(f"someone/tuned@{revision}" if revision else "someone/tuned")
    assert target == Path("tuned/replayed-000005")
    wanted = ("journal.jsonl", "start/*.json", "start/*.safetensors", "end/*.safetensors")
    assert asked == [(("someone/tuned", revision, wanted), {"ignored": (), "key": ""})]


def test_a_journal_of_before_the_tune_entry_is_read(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    old = copied(finished("lora"), tmp_path / "old", tune=None)
    replay(str(old))


def test_skipped_steps_move_nothing(finished: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied(finished(), tmp_path / "a", result=None)
    unprotect(folder / "journal.jsonl")
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    step = json.loads(lines[2])
    lines[2] = json.dumps({**step, "projected_grad": [None, *step["projected_grad"][1:]]}) + "\n"
    (folder / "journal.jsonl").write_text("".join(lines))
    one, two = (replay(str(folder), at=n, out=str(tmp_path / str(n))) for n in (1, 2))
    assert files(one) == files(two)


REFUSED: dict[str, tuple[dict[str, Any] | None, str]] = {
    "another layout": ({"layout": 3}, "layout 3, which this zoft does not draw"),
    "experts along dense directions": (
        {"parameters": [["model.experts.down_proj", 1, [4, 32, 48], True]]},
        "moved the weights of experts along dense directions",
    ),
    "an unknown type": ({"dtype": "float4"}, "float4 weights: upgrade zoft"),
    "an entry less": ({"seed": None}, "its header lacks seed"),
    "no sha256": ({"base": {"name": "x", "revision": None}}, "its header lacks base.sha256"),
    "an unknown rule": ({"optimizer": {"name": "zo-next"}}, "optimizer.name is not one that this"),
    "another tensor": (
        {"parameters": [["model.embed.weight", 1, [2, 2], True]]},
        "tunes model.embed.weight [2, 2], and the model here has no such parameter",
    ),
    "another shape": (
        {"parameters": [["model.norm.weight", 1, [2, 2], True]]},
        "tunes model.norm.weight [2, 2], and the model here has shape [48]",
    ),
    "no base": ({"base": {"name": "./gone", "revision": None, "sha256": ""}}, "--base PATH says"),
    "another base": (None, "is not the base model of this journal"),
    "fewer steps": ({"result": {"step": 9, "files": {}}}, "holds 5 of 9 steps; --at 5 replays"),
    "another result": (
        {"result": {"step": 5, "files": {"model.safetensors": "0123456789abcdef"}}},
        "by the journal's header it must be 0123456789ab: nothing was written",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_replayed_is_said_and_leaves_nothing(
    finished: Callable[..., Path], case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished()
    changes, message = REFUSED[case]
    if changes is None:
        base = json.loads((run / "journal.jsonl").read_text().splitlines()[0])["base"]
        changes = {"base": {**base, "sha256": "0" * 64}}
    folder = copied(run, tmp_path / "a", **changes)
    capsys.readouterr()
    assert main(["replay", str(folder)]) == 4
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["journal.jsonl"]


def test_an_adapter_needs_its_beginning(finished: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied(finished("lora"), tmp_path / "a")
    shutil.rmtree(folder / "start")
    with pytest.raises(EnvironmentProblem, match="start must hold the one that it starts from"):
        replay(str(folder))


def test_nothing_is_overwritten(finished: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RecipeError, match="exists; delete it or give another folder with --out"):
        replay(str(finished()), out=str(tmp_path))
    with pytest.raises(RecipeError, match="holds steps 1 to 5"):
        replay(str(finished()), at=6)
    with pytest.raises(EnvironmentProblem, match=r"there is no \./nowhere"):
        replay("./nowhere")


def test_an_interrupt_leaves_nothing(
    finished: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Stop) -> None:
        raise Interrupted("stopped", 130)

    monkeypatch.setattr(Stop, "check", interrupted)
    with pytest.raises(Interrupted):
        replay(str(finished()), out=str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
