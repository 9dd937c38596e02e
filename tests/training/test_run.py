"""Whole runs of a tiny model: what they write, how they resume, what they refuse."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import kills, small, tiny
from support.failures import Killed, killed_after
from support.written import change_header
from transformers import AutoModelForCausalLM, AutoTokenizer

from zoft.cli.main import main
from zoft.engine.estimator import Estimator, Losses
from zoft.errors import (
    DataError,
    Diverged,
    EnvironmentProblem,
    Interrupted,
    OutOfMemory,
    RecipeError,
    ZoftError,
)
from zoft.inference.evaluate import evaluate
from zoft.runs import checkpoint
from zoft.runs import journal as journals
from zoft.sharing.replay import replay
from zoft.training import run
from zoft.training.hooks import Checkpoints, Evaluations, Narration
from zoft.training.run import train
from zoft.training.trainer import Step, Trainer

Finished = tuple[Path, Path]  # a recipe, and the folder of its uninterrupted run


def weights(folder: Path) -> bytes:
    [file] = [*folder.glob("model.safetensors"), *folder.glob("adapter_model.safetensors")]
    return file.read_bytes()


def spoilt(found: Losses, value: float) -> Losses:
    """The same losses, but the last example's is `value`: one is enough to skip a step."""
    sums = found.sums.clone()
    sums[:, -1] = value
    return replace(found, sums=sums)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module", params=["full", "lora"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A recipe and the folder of its uninterrupted run."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = small.write(folder, request.param)
    train(str(recipe))
    return recipe, folder / "run"


def test_a_run_leaves_what_the_design_names(finished: Finished) -> None:
    _, folder = finished
    names = {path.name for path in folder.iterdir()}
    expected = {
        "recipe.yaml", "resolved.yaml", "run.json", "journal.jsonl", "metrics.jsonl",
        "checkpoint-000005", "checkpoint-000010", "final", "report.html", "loss.png",
    }  # fmt: skip
    assert names - {"start"} == expected
    assert (folder / "start").is_dir() == (folder.parent.name.startswith("lora"))
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["step"] == 12
    assert manifest["best_checkpoint"] in names
    resolved = (folder / "resolved.yaml").read_text()
    if folder.parent.name.startswith("full"):
        resolved = resolved.replace("target_modules: auto", "")  # LoRA's; nothing to choose here
    for key in ("device_budget", "host_budget"):  # what is free is looked at anew
        resolved = resolved.replace(f"{key}: auto", "")
    assert "auto" not in resolved
    assert "residency: device" in resolved


def test_metrics_carry_what_the_issue_names(finished: Finished) -> None:
    _, folder = finished
    trained = events(folder, "train")
    assert [e["step"] for e in trained] == list(range(1, 13))
    for key in (
        "loss",
        "loss_plus",
        "loss_minus",
        "projected_grad",
        "lr",
        "skipped",
        "seconds",
        "tokens",
        "padding",
    ):
        assert key in trained[0]
    assert all(0.0 <= e["padding"] < 1.0 for e in trained)
    evals = events(folder, "eval")
    assert [e["step"] for e in evals] == [0, 5, 10, 12]
    assert all({"accuracy", "loss"} <= set(e) for e in evals)
    [final] = events(folder, "final")
    assert final["loss"] == evals[-1]["loss"]
    assert final["peak_memory_bytes"] > 1e7
    assert [e["step"] for e in events(folder, "checkpoint")] == [5, 10]


def test_final_gives_the_same_logits_through_transformers_alone(finished: Finished) -> None:
    recipe, folder = finished
    final = folder / "final"
    if (final / "adapter_config.json").exists():
        import warnings

        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft behind transformers
            base = AutoModelForCausalLM.from_pretrained(recipe.parent / "model")
            model = PeftModel.from_pretrained(base, str(final))
    else:
        model = AutoModelForCausalLM.from_pretrained(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    options = [
        tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in ("bad", "great")
    ]
    rows = [json.loads(line) for line in (recipe.parent / "eval.jsonl").read_text().splitlines()]
    hits, losses = 0, []
    for row in rows:
        ids = torch.tensor([tokenizer.encode(f"{row['text']} It was")])
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, -1, options]
        hits += int(scores.argmax() == row["label"])
        losses.append(-scores.log_softmax(0)[row["label"]].item())
    [found] = events(folder, "final")
    assert hits / len(rows) == found["accuracy"]
    assert sum(losses) / len(losses) == pytest.approx(found["loss"], abs=1e-5)


def test_eval_prints_the_runs_own_score(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = finished
    [final] = events(folder, "final")
    for target in (folder, folder / "final"):
        found = evaluate(str(target), str(recipe))["eval"]
        assert found["loss"] == pytest.approx(final["loss"], abs=1e-6)
        assert found["accuracy"] == final["accuracy"]
    [before, *_] = events(folder, "eval")
    base = evaluate(
        str(recipe.parent / "model"), str(recipe), [f"data.test.path={recipe.parent}/test.jsonl"]
    )
    assert base["eval"]["loss"] == pytest.approx(before["loss"], abs=1e-6)
    assert base["test"]["rows"] == 12
    assert "test: accuracy" in capsys.readouterr().out


def test_a_finished_run_is_told_again(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = finished
    before = weights(folder / "final")
    train(str(recipe), resume="auto")
    out = capsys.readouterr().out
    assert "is finished (12 steps)" in out
    assert "before tuning" in out
    assert weights(folder / "final") == before


def test_a_longer_run_goes_on_from_a_finished_one(finished: Finished, tmp_path: Path) -> None:
    recipe, folder = finished
    longer = tmp_path / "longer"
    train(str(recipe), ["train.steps=9"], output_dir=str(longer))
    train(str(recipe), resume="auto", output_dir=str(longer))
    assert weights(longer / "final") == weights(folder / "final")


@pytest.mark.parametrize(
    ("where", "times"),  # that a run calls it, at least
    [
        ((Estimator, "measure"), 12),
        ((journals.Journal, "append"), 12),
        ((Trainer, "apply"), 12),
        ((Narration, "__call__"), 13),
        ((Evaluations, "__call__"), 13),
        ((Checkpoints, "__call__"), 13),
        ((checkpoint, "save"), 3),
    ],
)
@settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_stopped_anywhere_and_resumed_it_ends_with_the_same_bytes(
    finished: Finished,
    tmp_path_factory: pytest.TempPathFactory,
    where: tuple[Any, str],
    times: int,
    data: st.DataObject,
) -> None:
    recipe, folder = finished
    number, before = data.draw(st.integers(1, times)), data.draw(st.booleans())
    target = tmp_path_factory.mktemp("stopped") / "run"
    owner, name = where
    original = getattr(owner, name)
    calls: list[None] = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == number and before:
            raise Killed
        result = original(*args, **kwargs)
        if len(calls) == number:
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(Killed):
            train(str(recipe), output_dir=str(target))
    train(str(recipe), output_dir=str(target), resume="auto")
    assert weights(target / "final") == weights(folder / "final")
    assert [e["step"] for e in events(target, "eval")] == [0, 5, 10, 12]


def test_kill_9_at_random_moments(finished: Finished, tmp_path: Path) -> None:
    recipe, _ = finished
    changes = ["train.steps=60", "checkpoint.every=20"]
    whole = kills.uninterrupted(str(recipe), changes, tmp_path / "whole")
    killed, moments = kills.killed(str(recipe), changes, tmp_path / "killed", steps=60, times=2)
    assert len(moments) == 2
    assert killed == whole


def test_sigterm_is_resumable(finished: Finished, tmp_path: Path) -> None:
    recipe, folder = finished
    target = tmp_path / "run"
    original = Narration.__call__

    def signalled(self: Narration, trainer: Trainer, step: Step | None) -> None:
        original(self, trainer, step)
        if trainer.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Narration, "__call__", signalled)
        with pytest.raises(Interrupted) as stopped:
            train(str(recipe), output_dir=str(target))
    assert stopped.value.exit_code == 143
    assert json.loads((target / "run.json").read_text())["status"] == "interrupted"
    train(str(recipe), output_dir=str(target), resume="auto")
    assert weights(target / "final") == weights(folder / "final")


def test_a_checkpoint_can_be_named_and_a_damaged_one_is_passed_over(
    finished: Finished, tmp_path: Path
) -> None:
    recipe, folder = finished
    target = tmp_path / "run"
    train(str(recipe), ["train.steps=11"], output_dir=str(target))
    [broken] = (target / "checkpoint-000010").glob("*model.safetensors")
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    with pytest.raises(EnvironmentProblem, match="not a complete checkpoint"):
        train(str(recipe), resume=str(target / "checkpoint-000010"))
    train(str(recipe), resume=str(target / "checkpoint-000005"))
    assert weights(target / "final") == weights(folder / "final")


def test_tuning_learns(tmp_path: Path) -> None:
    recipe = small.write(tmp_path)
    train(str(recipe), ["train.steps=150", "~checkpoint", "eval.every=0", "optimizer.lr=1e-3"])
    [before, after] = events(tmp_path / "run", "eval")
    assert after["loss"] < 0.8 * before["loss"]
    assert after["accuracy"] > 0.9


def spoil(monkeypatch: pytest.MonkeyPatch, by: Callable[[int], float | None]) -> None:
    """The losses of a step are `by(step)` in part, where that is not None."""
    original = Estimator.measure

    def measure(self: Estimator, step: int, losses: Callable[[], Losses]) -> Any:
        value = by(step)
        return original(self, step, losses if value is None else lambda: spoilt(losses(), value))

    monkeypatch.setattr(Estimator, "measure", measure)


def test_a_loss_that_is_not_finite_changes_nothing_and_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.write(tmp_path)
    spoil(monkeypatch, lambda step: torch.nan if step > 6 else None)
    with pytest.raises(Diverged, match="3 steps in a row") as error:
        train(str(recipe), ["train.max_nonfinite=3"])
    assert error.value.exit_code == 6
    _, entries = journals.read(tmp_path / "run/journal.jsonl")
    assert [e.measurement.finite for e in entries] == [True] * 6 + [False] * 3
    assert events(tmp_path / "run", "train")[-1]["skipped"] == 3
    assert checkpoint.verify(tmp_path / "run/checkpoint-000005")
    monkeypatch.undo()
    train(str(recipe), ["train.max_nonfinite=3", "train.steps=6"], output_dir=str(tmp_path / "six"))
    seen = []
    monkeypatch.setattr(
        Trainer, "fit", lambda self, *_: seen.append(self.engine.model.state_dict())
    )
    monkeypatch.setattr(run, "finish", lambda *_: None)
    train(str(recipe), ["train.max_nonfinite=3"], resume="auto")
    expected = load_file(tmp_path / "six/final/model.safetensors")
    assert all(torch.equal(seen[0][name], value) for name, value in expected.items())


@pytest.mark.parametrize(("bad", "steps"), [(torch.nan, 2), (torch.inf, 1)])
def test_a_run_of_skipped_steps_alone_does_not_end_well(
    bad: float, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(small.write(tmp_path))
    spoil(monkeypatch, lambda _: bad)
    for resume in ("none", "auto"):
        with pytest.raises(Diverged, match=rf"in none of the {steps} steps: no weight") as error:
            train(recipe, [f"train.steps={steps}", "train.max_nonfinite=3"], resume=resume)
        assert error.value.exit_code == 6
        assert not (tmp_path / "run/final").exists()
        assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "diverged"


def test_an_isolated_bad_step_is_skipped_and_replayed_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.write(tmp_path)
    bad = {"now": True}
    spoil(monkeypatch, lambda step: torch.inf if bad["now"] and step == 7 else None)
    train(str(recipe))
    whole = weights(tmp_path / "run/final")
    assert events(tmp_path / "run", "train")[-1]["skipped"] == 1
    other = tmp_path / "other"
    train(str(recipe), ["train.steps=8"], output_dir=str(other))
    bad["now"] = False  # the journal, not the forward pass, says that step 7 was skipped
    train(str(recipe), output_dir=str(other), resume="auto")
    assert weights(other / "final") == whole


VARIANTS = [
    "optimizer.name=mezo optimizer.lr=1e-4",
    "optimizer.name=mezo optimizer.lr=1e-4 optimizer.structure=rank1 optimizer.paired=false",
    "optimizer.structure=dense optimizer.scope=batch",
    "optimizer.scope=batch model.dtype=float16 model.compute_dtype=float32",
    "optimizer.distribution=gaussian optimizer.moments=window optimizer.window=4",
    "optimizer.fold_momentum=false optimizer.directions=2 optimizer.schedule=cosine",
    "optimizer.sides=1 model.dtype=bfloat16 model.compute_dtype=bfloat16 optimizer.weight_decay=0.1",
    "optimizer.moments=full train.micro_batch_size=3 optimizer.warmup_steps=3",
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_resumes_bit_for_bit(variant: str, tmp_path: Path) -> None:
    recipe = small.write(tmp_path)
    changes = [*variant.split(), "eval.every=0"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(str(recipe), changes, output_dir=str(whole))
    with killed_after(8):
        train(str(recipe), changes, output_dir=str(parts))
    train(str(recipe), changes, output_dir=str(parts), resume="auto")
    assert weights(parts / "final") == weights(whole / "final")
    assert (parts / "journal.jsonl").read_bytes() == (whole / "journal.jsonl").read_bytes()


@pytest.mark.parametrize("structure", ["rank1", "dense"])
def test_the_size_of_micro_batches_moves_no_weight(
    structure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given c, the update is the same to the byte; c itself agrees up to the forward's rounding."""
    recipe, ends = small.write(tmp_path), {}
    monkeypatch.setattr(
        run,
        "finish",
        lambda trainer, folder, *_: ends.update({folder.path.name: trainer.engine.model}),
    )
    changes = [f"optimizer.structure={structure}", "train.steps=6", "~eval", "~checkpoint"]
    whole, first = tmp_path / "whole", {}
    train(str(recipe), changes, output_dir=str(whole))
    for size in (1, 3):
        split, own = [*changes, f"train.micro_batch_size={size}"], tmp_path / f"own{size}"
        train(str(recipe), split, output_dir=str(own))
        first[size] = journals.read(own / "journal.jsonl")[1][0].measurement
        shutil.copytree(whole, tmp_path / f"replayed{size}")
        train(str(recipe), split, output_dir=str(tmp_path / f"replayed{size}"), resume="auto")
        found, expected = (ends[name].state_dict() for name in (f"replayed{size}", "whole"))
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    there = journals.read(whole / "journal.jsonl")[1][0].measurement
    assert len(there.projected_grad) == (4 if structure == "rank1" else 1)
    size_of_c = max(map(abs, there.projected_grad))
    for size, found in first.items():
        assert found.loss == pytest.approx(there.loss, rel=1e-6)
        off = max(
            abs(a - b) for a, b in zip(found.projected_grad, there.projected_grad, strict=True)
        )
        print(
            f"{structure}, micro-batches of {size}: c differs by {off / size_of_c:.1e} of the largest"
        )
        assert off < 2e-3 * size_of_c


def test_other_formats_train(tmp_path: Path) -> None:
    recipe = small.write(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"{i}+1=", "completion": str(i + 1)}) + "\n" for i in range(20)
        )
    )
    changes = [
        "data.format=prompt-completion", f"data.train.path={tmp_path}/pairs.jsonl",
        f"data.eval.path={tmp_path}/pairs.jsonl", "~data.template", "~data.labels", "train.steps=3",
    ]  # fmt: skip
    train(str(recipe), changes)
    assert "accuracy" not in events(tmp_path / "run", "eval")[0]
    assert events(tmp_path / "run", "final")[0]["loss"] > 0


def test_the_test_set_is_scored_once_at_the_end(tmp_path: Path) -> None:
    recipe = small.write(tmp_path)
    train(str(recipe), [f"data.test.path={tmp_path}/test.jsonl", "train.steps=2"])
    [final] = events(tmp_path / "run", "final")
    assert final["set"] == "test"
    assert final["rows"] == 12


# -- what is refused, and that nothing is left behind ----------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("data.train.path=nowhere.jsonl", DataError, "nowhere.jsonl"),
        ("model.name=./nowhere", EnvironmentProblem, "nowhere"),
        ("device=cuda", EnvironmentProblem, "cuda is not here"),
        ("device=gpu", RecipeError, "torch knows no gpu"),
        ('tune.include=["*nothing*"]', RecipeError, "nothing"),
        ('data.labels={"0": bad, "2": great}', DataError, "label"),
        ("data.max_length=3", DataError, "3"),
    ],
)
def test_bad_input_leaves_no_folder(
    tmp_path: Path, change: str, error: type[ZoftError], message: str
) -> None:
    recipe = small.write(tmp_path)
    with pytest.raises(error, match=message):
        train(str(recipe), [change])
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_in_it_is_refused_with_the_choices(
    finished: Finished, tmp_path: Path
) -> None:
    recipe, folder = finished
    with pytest.raises(RecipeError, match=r"--resume auto.*--output-dir"):
        train(str(recipe), output_dir=str(folder))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("precious")
    with pytest.raises(RecipeError, match="not empty"):
        train(str(recipe), output_dir=str(tmp_path / "mine"))


def test_unsafe_changes_are_refused_on_resume(finished: Finished) -> None:
    recipe, _ = finished
    with pytest.raises(RecipeError, match=r"optimizer\.lr.*\n.*train\.batch_size"):
        train(str(recipe), ["optimizer.lr=0.5", "train.batch_size=5"], resume="auto")


def test_moved_and_renamed_files_are_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.write(tmp_path)
    train(str(recipe), ["train.steps=3"])
    (tmp_path / "home").mkdir()
    (tmp_path / "model").rename(tmp_path / "home" / "base")
    (tmp_path / "train.jsonl").rename(tmp_path / "home" / "rows.jsonl")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    moved = ["model.name=~/base", "data.train.path=~/rows.jsonl", "train.steps=6"]
    train(str(recipe), moved, resume="auto")
    train(str(recipe), moved, output_dir=str(tmp_path / "whole"))
    file = "final/model.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    replay(str(tmp_path / "run"), out=str(tmp_path / "replayed"))  # where the base is now
    assert (tmp_path / "replayed" / "model.safetensors").read_bytes() == (
        tmp_path / "run" / file
    ).read_bytes()
    parts = ["data.train=[{path: ~/rows.jsonl, limit: 8}, {path: ~/rows.jsonl}]", "train.steps=2"]
    target = str(tmp_path / "mixed")
    train(str(recipe), [moved[0], *parts], output_dir=target)
    (tmp_path / "home" / "rows.jsonl").rename(tmp_path / "home" / "again.jsonl")
    again = [part.replace("rows", "again").replace("steps=2", "steps=3") for part in parts]
    train(str(recipe), [moved[0], *again], output_dir=target, resume="auto")
    with pytest.raises(RecipeError, match=r"data\.train\.0\.limit: the run was started with 8"):
        train(
            str(recipe),
            [moved[0], *(part.replace("limit: 8", "limit: 9") for part in again)],
            output_dir=target,
            resume="auto",
        )


def test_other_data_or_another_base_is_refused_on_resume(tmp_path: Path) -> None:
    recipe = small.write(tmp_path)
    train(str(recipe), ["train.steps=3"])
    rows = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(rows.replace("xyz", "xyy", 1))
    with pytest.raises(EnvironmentProblem, match="training data is not the one"):
        train(str(recipe), resume="auto")
    (tmp_path / "train.jsonl").write_text(rows)
    tiny.llama(seed=1).save_pretrained(tmp_path / "model")
    with pytest.raises(EnvironmentProblem, match="model is not the one"):
        train(str(recipe), resume="auto")


@pytest.mark.parametrize("verb", ["train", "validate", "eval", "generate", "chat"])
def test_a_token_that_the_model_does_not_know_is_named(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.write(tmp_path)
    tokenizer = tiny.tokenizer(
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}<|new|>"
    )
    tokenizer.add_tokens([f"<|spare{i}|>" for i in range(tiny.VOCABULARY - len(tokenizer))])
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\n"))
    target = {
        "eval": [model],
        "generate": [model, "--prompt", "a<|new|>"],
        "chat": [model, "--max-new-tokens", "4"],
    }
    more = [str(recipe), "data.template={text}<|new|> It was"]
    with_recipe = verb in ("train", "validate", "eval")
    capsys.readouterr()
    assert main([verb, *target.get(verb, []), *(more if with_recipe else [])]) == 3
    error = capsys.readouterr().err
    table = tiny.VOCABULARY
    assert f"'<|new|>' as token {table}, and the model knows tokens 0 to {table - 1}" in error
    assert f"model.resize_token_embeddings({table + 1})" in error


def test_examples_that_the_model_has_no_place_for_are_refused(tmp_path: Path) -> None:
    recipe = small.write(tmp_path)
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "a" * 400, "label": 0}) + "\n")
    with pytest.raises(DataError, match=r"has 256 positions.*data\.max_length=256"):
        train(str(recipe))
    assert not (tmp_path / "run").exists()


def test_resume_auto_spoils_no_other_folder(tmp_path: Path) -> None:
    recipe = small.write(tmp_path)
    (tmp_path / "run/start").mkdir(parents=True)
    (tmp_path / "run/metrics.jsonl").write_text("mine")
    with pytest.raises(RecipeError, match="not empty"):
        train(str(recipe), resume="auto")
    assert (tmp_path / "run/metrics.jsonl").read_text() == "mine"
    assert (tmp_path / "run/start").is_dir()


def test_fewer_steps_than_were_taken_are_refused(finished: Finished, tmp_path: Path) -> None:
    recipe, _ = finished
    target = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "finish", lambda *_: None)
        train(str(recipe), output_dir=str(target))
    with pytest.raises(RecipeError, match=r"train\.steps: 7.*already took 12"):
        train(str(recipe), ["train.steps=7"], output_dir=str(target), resume="auto")


def test_a_journal_of_another_layout_is_refused(finished: Finished, tmp_path: Path) -> None:
    recipe, _ = finished
    target = tmp_path / "run"
    train(str(recipe), ["train.steps=3"], output_dir=str(target))
    change_header(target / "journal.jsonl", layout=3)
    with pytest.raises(EnvironmentProblem, match="layout"):
        train(str(recipe), output_dir=str(target), resume="auto")


def test_adapter_modules_are_kept_as_they_were_named(tmp_path: Path) -> None:
    recipe = small.write(tmp_path, "lora")
    changes = ["tune.target_modules=[v_proj, q_proj]", "train.steps=3"]
    train(str(recipe), changes)
    train(str(recipe), [*changes, "train.steps=5"], resume="auto")
    assert events(tmp_path / "run", "final")[0]["step"] == 5


def test_another_test_set_is_scored_on_a_finished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small.write(tmp_path)
    train(str(recipe), ["train.steps=2"])
    train(str(recipe), ["train.steps=2", f"data.test.path={tmp_path}/test.jsonl"], resume="auto")
    [final] = events(tmp_path / "run", "final")
    assert final["set"] == "test"
    assert "test  " in capsys.readouterr().out


def test_another_eval_set_is_scored_and_compared_with_none_of_the_scores_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(small.write(tmp_path))
    folder = tmp_path / "run"
    train(recipe, ["train.steps=6", "optimizer.schedule=constant"])
    capsys.readouterr()
    copy = tmp_path / "copy.jsonl"
    shutil.copy(tmp_path / "eval.jsonl", copy)
    longer = ["train.steps=7", "optimizer.schedule=constant"]
    train(recipe, [*longer, f"data.eval.path={copy}"], resume="auto")  # the same rows
    assert [e["step"] for e in events(folder, "eval")] == [0, 5, 6, 7]
    train(recipe, [*longer, "~data.eval", f"data.test.path={copy}"], resume="auto")
    capsys.readouterr()

    other = [*longer, f"data.eval.path={tmp_path}/test.jsonl"]
    train(recipe, other, resume="auto")
    [new] = events(folder, "eval")
    assert (new["step"], new["rows"]) == (7, 12)
    assert [e["step"] for e in events(folder, "eval_before")] == [0, 5, 6, 7]
    said = capsys.readouterr().out
    assert "before tuning" not in said
    assert "zero-shot" not in said
    assert "(12 rows)" in said
    train(recipe, other, resume="auto")
    assert "is finished (7 steps)" in capsys.readouterr().out


def test_an_interrupted_extension_leaves_no_stale_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.write(tmp_path)
    train(str(recipe), ["train.steps=5"])
    monkeypatch.setattr(Estimator, "measure", lambda *_: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        train(str(recipe), ["train.steps=9"], resume="auto")
    assert not (tmp_path / "run/final").exists()
    assert evaluate(str(tmp_path / "run"), str(recipe))["eval"]["rows"] == 20  # checkpoint-000005


def test_running_out_of_memory_names_what_would_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.write(tmp_path)

    def hungry(*_: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")

    monkeypatch.setattr(Estimator, "measure", hungry)
    with pytest.raises(OutOfMemory, match=r"would fit: .*train\.micro_batch_size=2 \("):
        train(str(recipe))
