from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from support import tiny
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from zoft.engine.optimizers.update import Resident, Tuned, tuned_weights
from zoft.errors import EnvironmentProblem
from zoft.models.adapters import attach_adapter
from zoft.recipe.sections.tune import TuneSection
from zoft.runs import checkpoint

IDS = torch.tensor([[0, 40, 50, 60, 70]])


def write(text: str) -> Callable[[Path], None]:
    def writer(folder: Path) -> None:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text(text * 2)

    return writer


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_a_saved_folder_is_complete(tmp_path: Path) -> None:
    folder = checkpoint.checkpoint_folder(tmp_path / "run", 500)
    checkpoint.save(folder, write("hello"))
    assert folder.name == "checkpoint-000500"
    assert checkpoint.verify(folder)
    manifest = json.loads((folder / "COMPLETE").read_text())
    assert manifest["sub/b.txt"] == {
        "size": 10,
        "sha256": hashlib.sha256(b"hellohello").hexdigest(),
    }
    assert [path.name for path in (tmp_path / "run").iterdir()] == [folder.name]


def test_damage_is_seen(tmp_path: Path) -> None:
    run = tmp_path
    folders = [checkpoint.checkpoint_folder(run, step) for step in (1, 2, 3, 4)]
    for folder in folders:
        checkpoint.save(folder, write("hello"))
    (folders[0] / "a.txt").write_text("hellO")  # same size: only the bytes tell
    (folders[1] / "sub" / "b.txt").unlink()
    (folders[2] / "COMPLETE").write_text('{"a.txt": ')
    assert [checkpoint.verify(folder) for folder in folders] == [False, False, False, True]
    assert checkpoint.find(run) == [folders[0], folders[3]]
    assert not checkpoint.verify(run / "checkpoint-000009")


def test_numeric_order(tmp_path: Path) -> None:
    for step in (1_000_000, 20, 999_999):
        checkpoint.save(checkpoint.checkpoint_folder(tmp_path, step), write("x"))
    (tmp_path / "checkpoint-000007").mkdir()  # not complete
    names = [path.name for path in checkpoint.find(tmp_path)]
    assert names == ["checkpoint-000020", "checkpoint-999999", "checkpoint-1000000"]
    assert checkpoint.find(tmp_path / "nowhere") == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_a_failed_save_changes_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    folder = tmp_path / "final"
    checkpoint.save(folder, write("old"))

    def fails(target: Path) -> None:
        (target / "a.txt").write_text("half")
        raise failure

    with pytest.raises(failure):
        checkpoint.save(folder, fails)
    assert checkpoint.verify(folder)
    assert (folder / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_failed_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "final"
    checkpoint.save(folder, write("old"))
    rename = Path.rename

    def refuse(source: Path, target: Path) -> Path:
        if source.name == ".final.partial":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(EnvironmentProblem, match="disk is full"):
        checkpoint.save(folder, write("new"))
    assert checkpoint.verify(folder)
    assert (folder / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # of tokenizers
    ],
    ids=repr,
)
def test_a_full_disk_is_known_by_whichever_library_met_it(error: Exception, tmp_path: Path) -> None:
    def refuse(_: Path) -> None:
        raise error

    with pytest.raises(EnvironmentProblem, match=r"cannot write .*final: the disk is full$"):
        checkpoint.save(tmp_path / "final", refuse)
    assert not list(tmp_path.iterdir())


def test_a_defect_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        checkpoint.save(tmp_path / "final", fail)


def test_killed_at_any_moment_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    """A child that is killed while it writes leaves nothing that counts, and no litter for long."""
    script = (
        "import os, sys; from pathlib import Path; from zoft.runs import checkpoint\n"
        "def writer(folder):\n"
        "    (folder / 'a.txt').write_text('half'); os.kill(os.getpid(), 9)\n"
        "checkpoint.save(Path(sys.argv[1]), writer)\n"
    )
    folder = checkpoint.checkpoint_folder(tmp_path, 1)
    child = subprocess.run([sys.executable, "-c", script, str(folder)], check=False)
    assert child.returncode == -9
    assert checkpoint.find(tmp_path) == []
    assert list(tmp_path.glob(".*.partial"))
    checkpoint.save(checkpoint.checkpoint_folder(tmp_path, 2), write("x"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000002"]


def test_everything_is_synced_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(fd: int) -> None:
        events.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    def renamed(self: Path, to: Path) -> Path:
        events.append("rename")
        return rename(self, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    checkpoint.save(tmp_path / "final", write("x"))
    last = events.index("rename")
    assert {"a.txt", "b.txt", "sub", "COMPLETE", ".final.partial"} == set(events[:last])
    assert events[last + 1 :] == [tmp_path.name]


def test_prune_spares_the_newest_and_the_best(tmp_path: Path) -> None:
    folders = [checkpoint.checkpoint_folder(tmp_path, step) for step in (9, 10, 11, 100)]
    for folder in folders:
        checkpoint.save(folder, write("x"))
    checkpoint.prune(tmp_path, keep_last=2, best={folders[0]})
    assert checkpoint.find(tmp_path) == [folders[0], folders[2], folders[3]]
    checkpoint.prune(tmp_path, keep_last=0, best=set())
    assert checkpoint.find(tmp_path) == [folders[3]]
    assert [path.name for path in tmp_path.iterdir()] == [folders[3].name]


def test_space_is_asked_for_in_words(tmp_path: Path) -> None:
    checkpoint.require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(EnvironmentProblem, match=r"needs 1000000000\.00 GB .* GB are free"):
        checkpoint.require_space(tmp_path / "not" / "yet", 10**18)


@pytest.mark.parametrize("build", [tiny.opt, tiny.llama, tiny.gpt2, tiny.qwen2])
def test_a_model_is_written_for_transformers_alone(
    tmp_path: Path, build: Callable[[], PreTrainedModel]
) -> None:
    model = build()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        checkpoint.write_model(tmp_path / name, model, tiny.tokenizer())
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert not model.config.use_cache
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert loaded.config.use_cache
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one")
    assert tokenizer("It was").input_ids == tiny.tokenizer()("It was").input_ids


def test_an_adapter_is_written_in_one_order(tmp_path: Path) -> None:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
    tune = TuneSection(method="lora", target_modules=targets)
    adapted = attach_adapter(tiny.llama(), tune, seed=0)
    checkpoint.write_model(tmp_path, adapted, tiny.tokenizer())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(targets)
    assert not (tmp_path / "README.md").exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_state_comes_back(tmp_path: Path) -> None:
    def moving() -> Resident:
        parameters = {
            "m": nn.Parameter(torch.arange(6.0).view(2, 3)),
            "t": nn.Parameter(torch.ones(())),
        }
        return Resident(tuned_weights(parameters, {"m": 1, "t": 2}, set()))

    def fill(tuned: Tuned, weight: torch.Tensor, state: Sequence[torch.Tensor]) -> None:
        state[0].copy_(weight + tuned.param)
        state[1].fill_(tuned.param)

    saved, other = moving(), moving()
    for weights in (saved, other):
        weights.keep("exp_avg", "exp_avg_sq")
    saved.apply(fill)
    checkpoint.write_state(tmp_path, saved, {"step": 7, "v": [0.1, None]})
    assert checkpoint.read_meta(tmp_path) == {"step": 7, "v": [0.1, None]}
    other.load(checkpoint.stored_state(tmp_path))
    [expected], [found] = saved.visits(), other.visits()
    assert expected.keys() == found.keys() == load_file(tmp_path / "optimizer.safetensors").keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(KeyError):
        other.load({})
    (tmp_path / "optimizer.safetensors").write_bytes(b"short")
    with pytest.raises(EnvironmentProblem, match=r"cannot read .*optimizer\.safetensors"):
        checkpoint.stored_state(tmp_path)


def test_a_rule_that_keeps_nothing_writes_an_empty_file(tmp_path: Path) -> None:
    checkpoint.write_state(tmp_path, Resident([]), {})
    assert load_file(tmp_path / "optimizer.safetensors") == {}
    assert checkpoint.stored_state(tmp_path) == {}
    (tmp_path / "trainer.json").write_text("{")
    with pytest.raises(EnvironmentProblem, match="cannot read the state"):
        checkpoint.read_meta(tmp_path)
