"""What every update rule promises, over all of them: a new rule adds its twin here, and nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import reference, small
from support.directions import direction
from support.optimizers import optimizer
from support.recipes import of_tiny_llama
from torch import Tensor, nn

from zoft.engine.optimizers.measurement import Measurement
from zoft.engine.optimizers.optimizer import optimizer_for
from zoft.engine.optimizers.update import Resident, Tuned, tuned_weights
from zoft.models.trainable import parameter_ids
from zoft.planning.memory.footprint import footprint
from zoft.planning.workload import shape_of
from zoft.recipe.resolved import what_learns
from zoft.recipe.sections.optimizer import RULES
from zoft.recipe.sections.tune import TuneSection
from zoft.runs.journal import read
from zoft.sharing.replay import replay
from zoft.training.run import train

SEED, LR, DECAY = 5, 1e-2, 0.1
Twin = Callable[[Tensor, list[Tensor], list[tuple[float, ...]], float], Tensor]
# Rule -> its slow twin: start, gradients, slopes and a weight decay (0 on vectors) to the weights.
TWINS: dict[str, Twin] = {
    "r-adazo": lambda theta, g, _, decay: reference.radazo(
        theta, g, LR, (0.9, 0.99), weight_decay=decay
    ),
    "mezo": lambda theta, g, _, decay: reference.mezo(theta, g, LR, decay),
    "momentum": lambda theta, g, _, decay: reference.momentum(theta, g, LR, 0.9, decay),
    "zo-adamm": lambda theta, g, _, decay: reference.zoadamm(
        theta, g, LR, (0.9, 0.3), weight_decay=decay
    ),
    "fzoo": lambda theta, g, c, decay: reference.fzoo(theta, g, c, LR, decay),
}
# Rule -> rates at which a tiny model moves visibly in some steps.
RATES = {"full": {"r-adazo": 3e-3}, "lora": {"r-adazo": 1e-2}}
each_rule = pytest.mark.parametrize("name", RULES)


def test_every_rule_has_a_twin_a_default_rate_for_whatever_learns_and_a_source() -> None:
    assert set(TWINS) == set(RULES)
    tuned = [{"method": method} for method in ("lora", "ia3", "prefix", "prompt")]
    tuned += [{"only": only} for only in ("all", "bias", "norm")]
    learns = {what_learns(TuneSection.model_validate(keys)) for keys in tuned}
    for name, rule in RULES.items():
        assert rule.model_validate({}).name == name
        assert set(rule.LEARNING_RATES) == learns
        assert rule.TITLE
        assert rule.CITATION


# -- the arithmetic -----------------------------------------------------------------------------


def start() -> Resident:
    generator = torch.Generator().manual_seed(1)
    shapes = {"matrix": (40, 30), "vector": (7,)}
    parameters = {
        name: nn.Parameter(torch.randn(shape, generator=generator), requires_grad=False)
        for name, shape in shapes.items()
    }
    return Resident(tuned_weights(parameters, parameter_ids(parameters), {"matrix"}))


def measurements(steps: int) -> list[Measurement]:
    values = torch.randn(steps, 2, generator=torch.Generator().manual_seed(2)) * 5
    return [
        Measurement(step, (0.0,), (0.0,), tuple(row)) for step, row in enumerate(values.tolist(), 1)
    ]


def estimate(tuned: Tuned, m: Measurement) -> Tensor:
    """The gradient estimate of a step, with z stored."""
    directions = []
    for k in range(len(m.projected_grad)):
        z = torch.zeros_like(tuned.data)
        direction(SEED, m.step, k).perturb(z, torch.zeros_like(z), tuned.param, 1.0)
        directions.append(z)
    return reference.gradient(list(m.projected_grad), directions)


@each_rule
def test_a_rule_with_its_state_stored_agrees_with_its_twin(name: str) -> None:
    settings = RULES[name].model_validate({}).own_choices("lora")
    moved = optimizer(start(), name, seed=SEED, weight_decay=DECAY, **settings)
    found = measurements(6)
    for measurement in found:
        moved.update(measurement, LR)
    for before, after in zip(start(), moved.weights, strict=True):
        gradients = [estimate(before, m) for m in found]
        slopes = [m.projected_grad for m in found]
        expected = TWINS[name](before.data, gradients, slopes, DECAY if before.decays else 0.0)
        assert (after.data.double() - expected).abs().max() < 2e-5 * expected.abs().max()
        assert (after.data - before.data).abs().max() > 1e-3  # it moved


@each_rule
def test_a_state_that_is_saved_and_loaded_goes_on_as_if_it_had_not_been(name: str) -> None:
    settings = RULES[name].model_validate({}).own_choices("lora")
    whole, first, second = (optimizer(start(), name, seed=SEED, **settings) for _ in range(3))
    found = measurements(6)
    for measurement in found:
        whole.update(measurement, LR)
    for measurement in found[:3]:
        first.update(measurement, LR)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for mine, theirs in zip(second.weights, first.weights, strict=True):
        mine.data.copy_(theirs.data)
    for own, kept in zip(second.weights.visits(), first.weights.visits(), strict=True):
        for key, tensor in own.items():
            tensor.copy_(kept[key])
    for measurement in found[3:]:
        second.update(measurement, LR)
    for mine, theirs in zip(second.weights, whole.weights, strict=True):
        assert torch.equal(mine.data, theirs.data)


@each_rule
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_planned_bytes_of_the_state_are_those_that_are_kept(
    name: str, method: str, tmp_path: Path
) -> None:
    recipe = of_tiny_llama(tmp_path, tune={"method": method}, optimizer={"name": name})
    shape = shape_of(recipe)
    tuned = [w for w in shape.weights if w.tuned]
    weights = Resident(
        [Tuned(w.name, nn.Parameter(torch.zeros(w.shape)), i, True) for i, w in enumerate(tuned)]
    )
    optimizer_for(recipe.optimizer, 0, weights)
    kept = sum(tensor.nbytes for state in weights.state.values() for tensor in state)
    planned = sum(x.device for x in footprint(recipe, shape).items if x.name == "moments")
    assert planned == kept
    if RULES[name].model_validate({}).own_choices("lora") and method == "lora":
        assert kept > 0  # rules that keep something are seen to


# -- whole runs ---------------------------------------------------------------------------------

STEPS, HALF = 6, 3


def weights_of(folder: Path) -> str:
    [file] = folder.glob("*model.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(
    scope="module", params=[(n, m) for n in RULES for m in ("full", "lora")], ids="-".join
)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str], Path]:
    """Recipe, overrides and folder of a run of each rule, of all weights and of an adapter."""
    name, method = request.param
    folder = tmp_path_factory.mktemp("run")
    lr = RATES[method].get(name, 1e-3)
    changes = [
        f"optimizer={{name: {name}, lr: {lr}}}",
        f"train.steps={STEPS}",
        "~eval",
        "~data.eval",
    ]
    recipe = small.write(folder, method)
    train(str(recipe), [*changes, f"checkpoint.every={HALF}"], output_dir=str(folder / "whole"))
    return recipe, changes, folder / "whole"


def test_a_run_resumed_from_a_checkpoint_and_a_cut_journal_ends_in_the_same_bytes(
    finished: tuple[Path, list[str], Path], tmp_path: Path
) -> None:
    recipe, changes, whole = finished
    for checkpoint, lines in ((HALF, 5), (None, 5)):
        part = tmp_path / f"part-{checkpoint}"
        shutil.copytree(whole, part)
        shutil.rmtree(part / "final")
        for folder in part.glob("checkpoint-*"):
            if folder.name != f"checkpoint-{checkpoint or 0:06d}":
                shutil.rmtree(folder)
        journal = part / "journal.jsonl"
        kept = journal.read_bytes().splitlines(keepends=True)[: 1 + lines]
        journal.write_bytes(b"".join(kept))
        record = json.loads((part / "run.json").read_text())
        (part / "run.json").write_text(json.dumps({**record, "status": "running", "final": None}))
        every = [*changes, f"checkpoint.every={HALF}"]
        train(str(recipe), every, output_dir=str(part), resume="auto")
        assert weights_of(part / "final") == weights_of(whole / "final")
        assert len(read(journal)[1]) == STEPS


def test_a_run_streamed_from_the_disk_ends_in_the_same_bytes(
    finished: tuple[Path, list[str], Path], tmp_path: Path
) -> None:
    recipe, changes, whole = finished
    train(str(recipe), [*changes, "model.residency=disk"], output_dir=str(tmp_path / "streamed"))
    assert weights_of(tmp_path / "streamed" / "final") == weights_of(whole / "final")


def test_a_replay_of_the_journal_ends_in_the_same_bytes(
    finished: tuple[Path, list[str], Path], tmp_path: Path
) -> None:
    _, _, whole = finished
    assert weights_of(replay(str(whole), out=str(tmp_path / "out"))) == weights_of(whole / "final")
