"""What a run settles before its first step: one pass or two, and whether examples can be told apart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support import small
from support.decoders.models import build
from support.mixing import BatchMean, TimeFirst
from torch import Tensor, nn
from transformers import PreTrainedModel

from zoft.engine.moved import MovedModel
from zoft.engine.probe.structures.rank1 import Rank1Perturbation
from zoft.errors import EnvironmentProblem, RecipeError, ZoftError
from zoft.models import load
from zoft.models.load import Loaded, load_model
from zoft.recipe.load import load_recipe
from zoft.runs.journal import read
from zoft.training import preflight as first_look
from zoft.training import run
from zoft.training.run import train
from zoft.training.trainer import Trainer


def wrapped(monkeypatch: pytest.MonkeyPatch, wrapper: type[nn.Module]) -> None:
    """Models are loaded with a module that mixes the rows of a batch."""

    def loaded(*args: Any, **kwargs: Any) -> Loaded:
        found = load_model(*args, **kwargs)
        layer: Any = found.model.get_submodule("model.layers.0")
        layer.mlp = wrapper(layer.mlp)
        return found

    monkeypatch.setattr(load, "load_model", loaded)


def settled(folder: Path) -> dict[str, Any]:
    chosen = load_recipe(folder / "resolved.yaml").optimizer.model_dump(mode="json")
    header, _ = read(folder / "journal.jsonl")
    assert header["optimizer"] == chosen
    return chosen


@pytest.fixture
def unfinished(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """A run ends after its last step, without `final`; the trainers of all runs."""
    seen: list[Trainer] = []
    monkeypatch.setattr(run, "finish", lambda trainer, *_: seen.append(trainer))
    return seen


@pytest.mark.parametrize("method", ["full", "lora"])
def test_both_signs_go_in_one_pass_where_that_changes_nothing(
    method: str, tmp_path: Path, unfinished: list[Trainer]
) -> None:
    recipe = small.write(tmp_path, method)
    train(str(recipe), ["train.steps=2", "~eval", "~checkpoint"])
    assert settled(tmp_path / "run")["paired"] is True
    assert unfinished[0].engine.estimator.paired is True


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("optimizer.paired=false", False),
        ("optimizer.paired=true", True),
        ("optimizer.sides=1", False),
        ("optimizer.structure=dense", True),
    ],
)
def test_what_the_recipe_says_about_passes_holds(
    change: str, expected: bool, tmp_path: Path, unfinished: list[Trainer]
) -> None:
    recipe = small.write(tmp_path)
    train(str(recipe), [change, "train.steps=2", "~eval", "~checkpoint"])
    assert settled(tmp_path / "run")["paired"] is expected
    assert unfinished[0].engine.estimator.paired is expected


@pytest.mark.parametrize("agree", [False, True])
def test_the_choice_of_passes_is_kept_on_resume(
    agree: bool, tmp_path: Path, unfinished: list[Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.write(tmp_path)
    monkeypatch.setattr(first_look, "pairs_agree", lambda *_: agree)
    train(str(recipe), ["train.steps=2", "~eval", "~checkpoint"])
    assert settled(tmp_path / "run")["paired"] is agree

    def never(*_: object) -> None:
        pytest.fail("settled before")

    monkeypatch.setattr(run, "preflight", never)
    train(str(recipe), ["train.steps=4", "~eval", "~checkpoint"], resume="auto")
    assert settled(tmp_path / "run")["paired"] is agree
    assert [trainer.engine.estimator.paired for trainer in unfinished] == [agree, agree]
    other = [f"optimizer.paired={'false' if agree else 'true'}", "train.steps=6", "~eval"]
    with pytest.raises(RecipeError, match=r"optimizer\.paired"):
        train(str(recipe), [*other, "~checkpoint"], resume="auto")


@pytest.mark.parametrize("wrapper", [BatchMean, TimeFirst])
def test_a_model_that_mixes_rows_cannot_have_directions_for_each_example(
    wrapper: type[nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unfinished: list[Trainer],
) -> None:
    wrapped(monkeypatch, wrapper)
    recipe = small.write(tmp_path)
    with pytest.raises(RecipeError, match=r"optimizer\.scope=batch"):
        train(str(recipe), ["train.steps=2"])
    assert not (tmp_path / "run").exists()
    train(str(recipe), ["train.steps=2", "optimizer.scope=batch", "~eval", "~checkpoint"])
    assert settled(tmp_path / "run")["paired"] is False
    assert unfinished[0].engine.estimator.paired is False


def test_padding_is_what_no_token_fills(tmp_path: Path, unfinished: list[Trainer]) -> None:
    recipe = small.write(tmp_path)
    train(str(recipe), ["train.steps=6", "~eval", "~checkpoint"])
    [trainer] = unfinished
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    found = {e["step"]: (e["tokens"], e["padding"]) for e in lines if e["event"] == "train"}
    assert set(found) == set(range(1, 7))
    for step, (tokens, padding) in found.items():
        lengths = [
            trainer.engine.objective.width([trainer.train_set[i]]) for i in trainer.order.rows(step)
        ]
        assert tokens == sum(lengths)
        assert padding == pytest.approx(1 - tokens / (max(lengths) * len(lengths)), abs=1e-4)


class Writes(nn.Module):
    """Halves a weight of its own at every run."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = next(self.inner.parameters())
        weight.mul_(0.5)
        return self.inner(x)  # type: ignore[no-any-return]


class NotFour(nn.Module):
    """Fails on four rows, of which the first look at a model has none, but a paired probe of two."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 4:
            raise IndexError("four rows\nand more")
        return self.inner(x)  # type: ignore[no-any-return]


def test_a_probe_that_is_not_what_moved_weights_give_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Rank1Perturbation._project
    monkeypatch.setattr(Rank1Perturbation, "_project", lambda *args: 2 * right(*args))
    with pytest.raises(EnvironmentProblem, match=r"moved weights.*would tune it wrongly"):
        train(str(small.write(tmp_path)), ["train.steps=2"])
    assert not (tmp_path / "run").exists()


def test_where_memory_forbids_the_comparison_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(MovedModel, "extra_bytes", 1 << 50)
    train(str(small.write(tmp_path)), ["train.steps=2", "~eval", "~checkpoint"])
    assert "not compared with moved weights" in "".join(capsys.readouterr())


def test_a_model_that_writes_its_weights_is_refused_for_full_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped(monkeypatch, Writes)
    with pytest.raises(EnvironmentProblem, match=r"writes its own weights.*cannot tune it"):
        train(str(small.write(tmp_path)), ["train.steps=2"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("scope", "code"), [("example", 2), ("batch", 4)])
def test_what_a_model_raises_in_a_probe_becomes_a_refusal(
    scope: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped(monkeypatch, NotFour)
    change = ["train.steps=2", "train.batch_size=4", f"optimizer.scope={scope}"]
    with pytest.raises(ZoftError, match=r"fails in this model \(IndexError: four rows\)") as caught:
        train(str(small.write(tmp_path)), change)
    assert caught.value.exit_code == code
    assert ("optimizer.scope=batch" in str(caught.value)) == (scope == "example")


@pytest.mark.parametrize("wrapper", [BatchMean, TimeFirst])
def test_both_signs_in_one_pass_are_refused_where_rows_mix(
    wrapper: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped(monkeypatch, wrapper)
    change = ["train.steps=2", "optimizer.scope=batch", "optimizer.paired=true"]
    with pytest.raises(RecipeError, match=r"optimizer\.paired.*set it to auto"):
        train(str(small.write(tmp_path)), change)


def test_what_no_pass_reads_is_named_by_an_override_that_leaves_it_out(
    tmp_path: Path, unfinished: list[Trainer]
) -> None:
    """BART's decoder has attention to an encoder, which text alone never enters."""
    recipe, changes = small.write(tmp_path, build=bart), ["train.steps=1", "~eval", "~checkpoint"]
    with pytest.raises(RecipeError, match="no forward pass reads") as refused:
        train(str(recipe), changes)
    [advice] = re.findall("set '(tune.exclude=.*)'", str(refused.value))
    train(str(recipe), [*changes, advice])
    names = [weight.name for weight in unfinished[0].engine.weights]
    assert names
    assert not any("encoder_attn" in name for name in names)


def bart() -> PreTrainedModel:
    return build("bart")


def test_a_module_that_makes_no_rows_does_not_pair(
    tmp_path: Path, unfinished: list[Trainer]
) -> None:
    """RoFormer's positions are a table for all rows: a probe of a batch is two passes."""
    recipe = small.write(tmp_path, build=lambda: build("roformer"))
    changes = ["train.steps=1", "~eval", "~checkpoint"]
    with pytest.raises(RecipeError, match=r"set optimizer\.scope=batch"):
        train(str(recipe), changes)
    train(str(recipe), [*changes, "optimizer.scope=batch"])
    assert unfinished[0].engine.estimator.paired is False
