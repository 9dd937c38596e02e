"""Runs that begin where another ended."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support import small
from torch import Tensor

from zoft.errors import EnvironmentProblem, Interrupted, RecipeError, ZoftError
from zoft.recipe.load import load_recipe
from zoft.runs.journal import Entry
from zoft.training.run import train
from zoft.training.trainer import Trainer
from zoft.training.warm_start import warm_start

SHORT = ("train.steps=2", "eval.every=0", "checkpoint.every=0")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A recipe and the folder of a LoRA run of rank 4, and of a run of all weights."""
    folder = tmp_path_factory.mktemp("first")
    recipe = small.write(folder, "lora")
    train(str(recipe), [*SHORT, "tune.r=4", "tune.alpha=12", "tune.target_modules=[v_proj]"])
    train(str(recipe), [*SHORT, "tune.method=full"], output_dir=str(folder / "full"))
    return recipe, folder / "run", folder / "full"


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_an_adapter_is_tuned_on_and_resumes(
    first: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run, _ = first
    theirs = tmp_path / "theirs"
    shutil.copytree(run / "final", theirs)
    more = [*SHORT, f"tune.adapter={theirs}", "seed=7"]
    train(str(recipe), more, output_dir=str(tmp_path / "whole"))
    begun = adapter(tmp_path / "whole" / "start")
    ended = adapter(run / "final")
    assert begun.keys() == ended.keys()
    assert all(begun[name].equal(ended[name]) for name in ended)
    resolved = load_recipe(tmp_path / "whole" / "resolved.yaml").tune
    assert (resolved.r, resolved.alpha, resolved.target_modules) == (4, 12.0, ["v_proj"])

    apply = Trainer.apply

    def once(self: Trainer, entry: Entry) -> None:
        apply(self, entry)
        raise Interrupted("here", 130)

    monkeypatch.setattr(Trainer, "apply", once)
    with pytest.raises(Interrupted):
        train(str(recipe), more, output_dir=str(tmp_path / "cut"))
    monkeypatch.undo()
    shutil.rmtree(theirs)  # start/ has it
    train(str(recipe), more, output_dir=str(tmp_path / "cut"), resume="auto")
    files = [tmp_path / name / "final" / "adapter_model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_tuned_model_is_tuned_on(first: tuple[Path, Path, Path], tmp_path: Path) -> None:
    recipe, _, full = first
    train(str(recipe), [*SHORT, f"model.name={full}"], output_dir=str(tmp_path / "run"))
    resolved = load_recipe(tmp_path / "run" / "resolved.yaml")
    assert resolved.model.name == str(full / "final")


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        (["tune.adapter=RUN", "tune.r=8"], RecipeError, r"tune\.r: 8, but .* has 4: leave it out"),
        (["tune.adapter=FULL"], EnvironmentProblem, "holds no adapter"),
        (["tune.adapter=./nowhere"], EnvironmentProblem, "is no adapter here"),
        (["model.name=RUN"], RecipeError, "tuned an adapter: name its base model"),
        (["tune.adapter=RUN", "tune.method=full"], RecipeError, "full tuning has no adapter"),
    ],
)
def test_what_cannot_be_tuned_on(
    first: tuple[Path, Path, Path], more: list[str], kind: type[ZoftError], words: str
) -> None:
    recipe, run, full = first
    named = [part.replace("RUN", str(run)).replace("FULL", str(full)) for part in more]
    with pytest.raises(kind, match=words):
        warm_start(load_recipe(recipe, named))
