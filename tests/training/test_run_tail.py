"""Runs whose head learns by exact gradients before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support import small, tiny
from support.failures import Killed, killed_after
from transformers import AutoModelForCausalLM

from zoft.engine.tail import head as tail
from zoft.errors import EnvironmentProblem, RecipeError
from zoft.inference.evaluate import evaluate
from zoft.recipe.load import load_recipe
from zoft.runs.complete import weight_files
from zoft.runs.metrics import Metrics
from zoft.runs.record import read_run
from zoft.sharing.replay import replay
from zoft.training.hooks import Evaluations
from zoft.training.run import train

TAIL = ["tune.tail=head", "data.labels={0: bad, 1: great}"]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tail")
    return small.write(folder, tie=request.param)


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    train(str(recipe), TAIL)
    return recipe.parent / "run"


def test_the_score_is_told_before_and_after_the_rows_are_solved(whole: Path) -> None:
    events = Metrics(whole / "metrics.jsonl").read()
    first, tail = events[:2]
    assert (first["event"], tail["event"]) == ("eval", "tail")
    assert first["step"] == tail["step"] == 0
    assert (
        first["accuracy"] < tail["accuracy"] == 1.0
    )  # "abc" and "xyz" are told apart by any states
    found = json.loads((whole / "run.json").read_text())["tail"]
    assert found["rows"] == 48
    assert found["left_out"]["loss"] < found["before"]["loss"]
    assert "tail alone" in (whole / "report.html").read_text()


def test_a_run_killed_while_the_rows_are_solved_solves_them_again(
    recipe: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Evaluations, "score_tail", killed)
        with pytest.raises(Killed):
            train(str(recipe), TAIL, output_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run/start").exists()
    train(str(recipe), TAIL, output_dir=str(tmp_path / "run"), resume="auto")
    assert weight_files(tmp_path / "run/final") == weight_files(whole / "final")


def test_many_rows_have_a_first_answer(
    recipe: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(tail, "FIRST", 20)
    train(str(recipe), TAIL, output_dir=str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "solved on 20 rows" in said
    assert "solved on 48 rows" in said
    one, other = (tail.HeadRows.read(f / "start").values for f in (whole, tmp_path / "run"))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)  # passes over other rows


def test_the_head_is_held_while_the_body_learns(whole: Path, recipe: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(recipe.parent / "model")
    tuned = AutoModelForCausalLM.from_pretrained(whole / "final")
    changed = (base.lm_head.weight != tuned.lm_head.weight).any(1).nonzero()[:, 0].tolist()
    tokenizer = tiny.tokenizer()
    words = [tokenizer.encode(f" {x}", add_special_tokens=False) for x in ("bad", "great")]
    assert changed == sorted(token for [token] in words)
    assert not torch.equal(
        base.model.layers[0].mlp.up_proj.weight, tuned.model.layers[0].mlp.up_proj.weight
    )


@pytest.mark.parametrize("kept", [0, 5])
def test_a_resumed_run_ends_in_the_same_bytes(kept: int, recipe: Path, tmp_path: Path) -> None:
    stopped = [*TAIL, "train.steps=7", f"checkpoint.every={kept}", "optimizer.schedule=constant"]
    train(str(recipe), stopped, output_dir=str(tmp_path / "a"))
    longer = [*stopped, "train.steps=12"]
    train(str(recipe), longer, output_dir=str(tmp_path / "a"), resume="auto")
    train(str(recipe), longer, output_dir=str(tmp_path / "b"))
    assert weight_files(tmp_path / "a" / "final") == weight_files(tmp_path / "b" / "final")


def test_a_replay_ends_in_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    replay(str(whole), out=str(tmp_path / "again"))
    assert weight_files(tmp_path / "again") == weight_files(whole / "final")


def test_other_adapters_and_other_choices_are_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tune\.tail.*not with lora"):
        train(str(recipe), [*TAIL, "tune.method=lora"], output_dir=str(tmp_path / "run"))
    long = ["tune.tail=head", "data.labels={0: bad, 1: terrible}"]
    with pytest.raises(RecipeError, match=r"tune\.tail.*words of one token"):
        train(str(recipe), long, output_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_evaluation_scores_what_the_run_scored(
    whole: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final = [e for e in Metrics(whole / "metrics.jsonl").read() if e["event"] == "final"][-1]
    evaluate(str(whole), str(recipe), [])
    assert f"{final['accuracy']:.4f}"[:5] in capsys.readouterr().out


BLOCKS = [*TAIL, "tune.tail=blocks:1", "tune.tail_lr=1e-3"]
TASKS = {
    "words": ["data.labels={0: bad, 1: great}"],
    "several tokens": ["data.labels={0: bad, 1: terrible}"],
    "lm": ["objective.name=lm", "data.labels={0: bad, 1: great}", "eval.metric=loss"],
}


@pytest.fixture(scope="module", params=TASKS)
def moved(
    request: pytest.FixtureRequest, recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A run whose last block moves by exact gradients, and how it was asked for."""
    changes = [*BLOCKS, *TASKS[request.param]]
    folder = tmp_path_factory.mktemp("blocks") / "run"
    train(str(recipe), changes, output_dir=str(folder))
    return folder, changes


def test_the_last_block_moves_and_the_loss_falls(
    moved: tuple[Path, list[str]], recipe: Path
) -> None:
    folder, _ = moved
    base = AutoModelForCausalLM.from_pretrained(recipe.parent / "model").state_dict()
    tuned = AutoModelForCausalLM.from_pretrained(folder / "final").state_dict()
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert {"model.norm.weight", "model.layers.1.mlp.up_proj.weight"} <= changed
    assert "model.layers.0.mlp.up_proj.weight" in changed  # by probes
    scores = [e["loss"] for e in Metrics(folder / "metrics.jsonl").read() if e["event"] == "eval"]
    assert scores[-1] < scores[0]


@pytest.mark.parametrize("kept", [0, 5])
def test_a_run_whose_blocks_move_resumes_to_the_same_bytes(
    kept: int, moved: tuple[Path, list[str]], recipe: Path, tmp_path: Path
) -> None:
    """From the newest checkpoint: the steps behind it are taken again."""
    folder, changes = moved
    output = str(tmp_path / "run")
    changes = [*changes, f"checkpoint.every={kept}"]
    with killed_after(8):
        train(str(recipe), changes, output_dir=output)
    train(str(recipe), changes, output_dir=output, resume="auto")
    assert weight_files(tmp_path / "run/final") == weight_files(folder / "final")
    assert (tmp_path / "run/journal.jsonl").read_bytes() == (folder / "journal.jsonl").read_bytes()


def test_a_replay_puts_the_blocks_beside_the_body(
    moved: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, _ = moved
    replay(str(folder), out=str(tmp_path / "again"))
    assert weight_files(tmp_path / "again") == weight_files(folder / "final")
    with pytest.raises(EnvironmentProblem, match="the last blocks of step 12 alone"):
        replay(str(folder), at=5, out=str(tmp_path / "early"))


def test_micro_batches_move_the_blocks_alike(
    moved: tuple[Path, list[str]], recipe: Path, tmp_path: Path
) -> None:
    folder, changes = moved
    train(str(recipe), [*changes, "train.micro_batch_size=2"], output_dir=str(tmp_path / "run"))
    one, other = (
        AutoModelForCausalLM.from_pretrained(f / "final").model.layers[1].mlp.up_proj.weight
        for f in (folder, tmp_path / "run")
    )
    torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


@pytest.mark.parametrize("tail", ["norm", "blocks:2"])
def test_the_norm_alone_and_all_blocks_learn_resume_and_replay(
    tail: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all blocks no weight is left to probes, and a step is one pass."""
    changes = [*BLOCKS, f"tune.tail={tail}", *TASKS["several tokens"]]
    folder = tmp_path / "run"
    train(str(recipe), changes, output_dir=str(folder))
    first_order = tail != "norm"
    assert ("this is first-order tuning" in capsys.readouterr().out) == first_order
    record = read_run(folder)
    assert record.forward_passes == record.step * (1 if first_order else 2)
    assert record.last is not None
    assert record.zero_shot is not None
    assert record.last["loss"] < record.zero_shot["loss"]
    base = AutoModelForCausalLM.from_pretrained(recipe.parent / "model").state_dict()
    tuned = AutoModelForCausalLM.from_pretrained(folder / "final").state_dict()
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert {"model.norm.weight", "model.layers.0.mlp.up_proj.weight"} <= changed

    with killed_after(8):
        train(str(recipe), [*changes, "checkpoint.every=5"], output_dir=str(tmp_path / "again"))
    train(str(recipe), changes, output_dir=str(tmp_path / "again"), resume="auto")
    assert weight_files(tmp_path / "again/final") == weight_files(folder / "final")
    replay(str(folder), out=str(tmp_path / "replayed"))
    assert weight_files(tmp_path / "replayed") == weight_files(folder / "final")


def test_as_many_blocks_as_the_budget_holds_stay_so_on_resume(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, output = [*BLOCKS, "tune.tail=blocks:auto"], str(tmp_path / "run")
    with killed_after(4):
        train(str(recipe), changes, output_dir=output)
    assert "this is first-order tuning" in capsys.readouterr().out
    settled = load_recipe(str(tmp_path / "run/resolved.yaml"), [])
    assert settled.tune.tail == "blocks:2"
    train(str(recipe), [*changes, "memory.device_budget=1GiB"], output_dir=output, resume="auto")
    assert load_recipe(str(tmp_path / "run/resolved.yaml"), []).tune.tail == "blocks:2"


def test_more_blocks_than_there_are_and_streamed_ones_are_refused(
    recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"blocks:9, but the model has 2 blocks"):
        train(str(recipe), ["tune.tail=blocks:9"], output_dir=str(tmp_path / "run"))
    with pytest.raises(EnvironmentProblem, match=r"cannot be streamed, .*; with tune\.tail=head"):
        train(
            str(recipe), ["tune.tail=blocks:1", "model.residency=disk"],
            output_dir=str(tmp_path / "run"),
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
