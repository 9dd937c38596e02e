from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.recipes import chosen, recipe

from zoft.errors import EnvironmentProblem, RecipeError
from zoft.planning.resolve import keep_choices
from zoft.recipe.load import dump_recipe, load_recipe
from zoft.recipe.sections.optimizers.radazo import RAdaZO
from zoft.runs import checkpoint
from zoft.runs.folder import RunFolder, require_empty, require_same, run_of


def a_beginning(path: Path) -> RunFolder:
    """What a run leaves that is killed before its journal begins."""
    folder = RunFolder(path)
    with folder.claimed():
        (path / "recipe.yaml").write_text("# mine\nmodel: {name: m}\n")
        folder.write_resolved(chosen())
    return folder


def a_run(path: Path) -> RunFolder:
    folder = a_beginning(path)
    folder.journal.write_text("{}\n")
    return folder


def a_checkpoint(folder: RunFolder, step: int) -> Path:
    def write(at: Path) -> None:
        (at / "a.txt").write_text("hello")

    path = checkpoint.checkpoint_folder(folder.path, step)
    checkpoint.save(path, write)
    return path


# -- require_same ---------------------------------------------------------------


def test_autos_become_what_the_run_chose_and_nothing_else_changes() -> None:
    previous = chosen(
        tune={"method": "lora", "target_modules": ["q_proj"]}, optimizer={"lr": 3e-4}, seed=5
    )
    now = recipe(tune={"method": "lora"}, optimizer={"betas": [0.5, 0.9]}, seed=6)
    kept = keep_choices(now, previous)
    assert kept.device == "cpu"
    assert kept.model.compute_dtype == previous.model.compute_dtype
    assert kept.model.residency == "auto"  # how much is free is looked at anew
    assert kept.tune.target_modules == ["q_proj"]
    assert (kept.optimizer.lr, kept.optimizer.perturbation) == (3e-4, 3e-3)
    assert kept.train.micro_batch_size == 16
    assert kept.optimizer.paired is True
    # Not `auto`, so what the recipe says.
    assert isinstance(kept.optimizer, RAdaZO)
    assert (kept.seed, kept.optimizer.betas) == (6, (0.5, 0.9))
    model = kept.model.model_copy(update={"residency": None})
    left = kept.model_copy(update={"memory": None, "offload": None, "eval": None, "model": model})
    assert "'auto'" not in repr(left)


def test_a_choice_that_is_written_out_is_not_replaced() -> None:
    now = recipe(model={"compute_dtype": "float32"}, data={"eval": {"path": "e.jsonl"}})
    kept = keep_choices(now, chosen())
    assert kept.model.compute_dtype == "float32"
    assert kept.data.eval == now.data.eval


def test_the_same_recipe_goes_on() -> None:
    require_same(keep_choices(recipe(), chosen()), chosen())


def test_a_smaller_batch_than_the_micro_batch_of_before_is_explained() -> None:
    kept = keep_choices(recipe(train={"batch_size": 8}), chosen())
    with pytest.raises(RecipeError, match=r"train\.batch_size: .* with 16, the recipe says 8"):
        require_same(kept, chosen())


def test_each_key_that_differs_is_named_on_a_line_of_its_own() -> None:
    now = chosen(
        seed=4,
        tune={"method": "lora", "target_modules": ["q_proj"]},
        optimizer={"lr": 0.5, "perturbation": 3e-3, "moments": "scalar"},
    )
    with pytest.raises(RecipeError) as caught:
        require_same(now, chosen())
    *lines, advice = str(caught.value).splitlines()
    assert lines == [
        "seed: the run was started with 0, the recipe says 4",
        "tune.method: the run was started with 'full', the recipe says 'lora'",
        "tune.target_modules: the run was started with 'auto', the recipe says ['q_proj']",
        "optimizer.lr: the run was started with 0.0002, the recipe says 0.5",
        "optimizer.structure: the run was started with 'rank1', the recipe says 'dense'",
        "optimizer.scope: the run was started with 'example', the recipe says 'batch'",
    ]
    assert "output_dir" in advice


@pytest.mark.parametrize(
    "change",
    [
        {"output_dir": "runs/b"},
        {"device": "cuda:1"},
        {"train": {"micro_batch_size": 2, "max_nonfinite": 99}},
        {"data": {"test": {"path": "e.jsonl", "limit": 3}}},
        {"data": {"eval": {"path": "e.jsonl"}}},
        {"model": {"name": "elsewhere/model", "revision": "v2"}},  # what it holds is compared
        {"data": {"train": {"path": "elsewhere.jsonl"}}},
        {"eval": {"every": 5, "batch_size": 2}},
        {"checkpoint": {"every": 7}},
        {"journal": {"sync_seconds": 0}},
        {"logging": {"every": 3}},
        {"train": {"steps": 2000}},  # the rate is constant
    ],
    ids=str,
)
def test_what_moves_no_weight_may_change(change: dict[str, Any]) -> None:
    now = keep_choices(recipe(**change), chosen())
    require_same(now, chosen())
    require_same(chosen(), now)  # and back: a section that was there may go


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"data": {"train": {"path": "train.jsonl", "limit": 3}}}, "data.train.limit"),
        ({"data": {"max_length": 64}}, "data.max_length"),
        ({"train": {"batch_size": 32}}, "train.batch_size"),
        ({"objective": {"name": "lm"}, "optimizer": {"name": "mezo"}}, "optimizer.name"),
        ({"optimizer": {"schedule": "linear"}}, "optimizer.schedule"),
        ({"optimizer": {"warmup_steps": 3}}, "optimizer.warmup_steps"),
    ],
    ids=str,
)
def test_what_moves_weights_may_not(change: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        require_same(keep_choices(recipe(**change), chosen()), chosen())
    assert str(caught.value).startswith(f"{key}: the run was started with ")


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_more_steps_would_change_a_falling_rate(schedule: str) -> None:
    before = chosen(optimizer={"schedule": schedule})
    now = chosen(optimizer={"schedule": schedule}, train={"steps": 2000})
    with pytest.raises(RecipeError, match=r"^train\.steps: .* with 1000, the recipe says 2000"):
        require_same(now, before)


# -- the folder -------------------------------------------------------------------------------


def test_only_an_empty_folder_takes_a_new_run(tmp_path: Path) -> None:
    require_empty(RunFolder(tmp_path / "not" / "yet"))
    require_empty(RunFolder(tmp_path))
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(RecipeError, match=r"is not empty: --resume auto .*--output-dir") as e:
        require_empty(RunFolder(tmp_path))
    assert str(e.value).startswith(str(tmp_path))
    with pytest.raises(RecipeError, match=r"a\.txt is a file; output_dir must be a folder"):
        require_empty(RunFolder(tmp_path / "a.txt"))
    with pytest.raises(RecipeError, match=r"b cannot be made: .*a\.txt is a file$"):
        require_empty(RunFolder(tmp_path / "a.txt" / "sub" / "b"))


def test_a_run_is_named_by_its_folder_or_by_a_checkpoint(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    saved = a_checkpoint(folder, 10)
    assert run_of(folder.path) == (folder, None)
    assert run_of(saved) == (folder, saved)
    for path in (tmp_path, folder.path / "checkpoint-000099", folder.journal, saved / "deeper"):
        with pytest.raises(EnvironmentProblem, match="is neither a run nor a checkpoint of one"):
            run_of(path)


def test_a_run_has_a_journal_and_says_how_it_was_set_up(tmp_path: Path) -> None:
    assert not RunFolder(tmp_path / "run").exists
    folder = a_beginning(tmp_path / "run")
    assert not folder.exists
    folder.journal.touch()
    assert not folder.exists  # killed as it was opened: nothing to go on with
    folder.journal.write_text('{"format":')
    assert not folder.exists  # a power cut in the header
    folder.journal.write_text("{}\n")
    assert folder.exists
    folder.resolved.unlink()
    assert not folder.exists


def test_both_recipes_are_kept(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "deep" / "run")
    assert (folder.path / "recipe.yaml").read_text() == "# mine\nmodel: {name: m}\n"
    assert folder.previous().model_dump() == chosen().model_dump()
    folder.write_resolved(chosen(seed=9))
    assert folder.previous().seed == 9
    assert {path.name for path in folder.path.iterdir()} == {
        "recipe.yaml",
        "resolved.yaml",
        "journal.jsonl",
    }


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match=r"file/run cannot be written: Not a directory"):
        a_beginning(tmp_path / "file" / "run")


def test_the_newest_checkpoint_that_is_whole(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    assert folder.newest_checkpoint() is None
    first, second, third = (a_checkpoint(folder, step) for step in (5, 10, 15))
    assert folder.newest_checkpoint() == third
    assert folder.newest_checkpoint(first) == first
    (third / "a.txt").write_text("hellO")  # same size
    assert folder.newest_checkpoint() == second
    (second / "COMPLETE").unlink()
    assert folder.newest_checkpoint() == first
    for wanted in (third, second, folder.path / "final"):
        with pytest.raises(EnvironmentProblem, match=f"{wanted.name} is not a complete checkpoint"):
            folder.newest_checkpoint(wanted)


def test_the_manifest_grows_and_is_never_half_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.manifest() == {}
    folder.update_manifest(status="running", step=1)
    folder.update_manifest(step=2, best=None)
    assert folder.manifest() == {"status": "running", "step": 2, "best": None}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    for broken in ('{"status": ', "[1]", ""):
        (tmp_path / "run.json").write_text(broken)
        assert folder.manifest() == {}
    folder.update_manifest(status="finished")
    assert json.loads((tmp_path / "run.json").read_text()) == {"status": "finished"}
    with pytest.raises(EnvironmentProblem, match=r"run\.json cannot be written: No such file"):
        RunFolder(tmp_path / "gone").update_manifest(step=1)


def test_a_beginning_may_be_begun_again_and_nothing_else_may(tmp_path: Path) -> None:
    folder = a_beginning(tmp_path / "run")
    folder.update_manifest(step=1)
    folder.start.mkdir()
    (folder.path / ".start.partial").mkdir()
    require_empty(folder)
    (folder.path / "metrics.jsonl").touch()  # written after the journal: a run lost its journal
    with pytest.raises(RecipeError, match="not empty"):
        require_empty(folder)
    mine = RunFolder(tmp_path / "mine")
    mine.start.mkdir(parents=True)
    (mine.path / "run.json").write_text("{}")  # somebody's own files, by chance of these names
    with pytest.raises(RecipeError, match="not empty"):
        require_empty(mine)


def test_two_processes_cannot_begin_one_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.claimed(), pytest.raises(EnvironmentProblem, match="in use"), folder.claimed():
        pass
    with pytest.raises(EnvironmentProblem, match="in use"), a_run(tmp_path / "run").claimed():
        pass  # the other began while this one was loading


def test_keys_of_another_rule_that_an_older_zoft_wrote_are_passed_over(tmp_path: Path) -> None:
    """It wrote r-adazo's keys into the resolved.yaml of a run with mezo, too."""
    folder = a_run(tmp_path)
    mezo = recipe(optimizer={"name": "mezo"})
    text = dump_recipe(mezo).replace("name: mezo", "name: mezo\n  betas: [0.9, 0.99]\n  window: 22")
    folder.resolved.write_text(text)
    assert folder.previous().optimizer == mezo.optimizer
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"optimizer\.betas: no key of mezo"):
        load_recipe(tmp_path / "recipe.yaml")
