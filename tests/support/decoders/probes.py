"""Probes, slopes and steps of the engine against the reference, model in memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from support.decoders.findings import Findings, Wrong
from support.decoders.reference import Reference, weight
from zoft.data.examples import Choice, Example, TextExample
from zoft.engine.diagnostics import examples_agree, pairs_agree
from zoft.engine.estimator import Estimator, Loss
from zoft.engine.objectives.objective import (
    Objective,
    batch_losses,
    micro_batches,
    objective_for,
)
from zoft.engine.optimizers.optimizer import optimizer_for
from zoft.engine.optimizers.update import Resident, tuned_weights
from zoft.engine.probe.directions import Directions
from zoft.engine.probe.structures.table import STRUCTURES, values_of
from zoft.engine.probe.view import ProbedModel
from zoft.errors import RecipeError, first_line
from zoft.inference.scoring import needs_mask
from zoft.models.load import forward_explained, load_model, require_causal
from zoft.models.trainable import decays, parameter_ids, tuned_parameters
from zoft.recipe.schema import ModelSection
from zoft.recipe.sections.optimizers.mezo import MeZO
from zoft.recipe.sections.optimizers.rule import resolved_optimizer
from zoft.recipe.sections.tune import TuneSection

SEED, STEP = 5, 3
PERTURBATION = {torch.float32: 1e-2, torch.bfloat16: 5e-2}
LOSS, SLOPE = 1e-4, 1e-4  # relative, float32
ROUNDING = 1.5e-5  # of a loss, float32: what a slope may be off by is this over the perturbation
STEPS_LOW = (
    3,
    4,
    5,
)  # whose directions are looked at in bfloat16, where one alone may be off by much
LOW = 1e-2  # of a loss, bfloat16, beside twice what plain transformers is off by on average
LR = 1e-3
CPU = torch.device("cpu")


def _ids(begin: int, count: int) -> tuple[int, ...]:
    return tuple(3 + (begin + 37 * i * (i + begin)) % 277 for i in range(count))


# Three examples: rows of any pass divide the number of experts, so that a tensor of one entry per
# expert that is cut as if it were rows does not fail by luck.
EXAMPLES: dict[str, list[Example]] = {
    "lm": [
        TextExample(_ids(1, 12), tuple(range(1, 12))),
        TextExample(_ids(2, 7), (4, 5, 6)),
        TextExample(_ids(3, 10), (2, 9)),
    ],
    "choice of one token": [
        Choice(_ids(4, 9), ((5,), (200,)), 0),
        Choice(_ids(5, 6), ((5,), (200,)), 1),
        Choice(_ids(6, 11), ((5,), (200,)), 1),
    ],
    "choice of several": [
        Choice(_ids(7, 8), ((5, 6), (200, 7, 30)), 0),
        Choice(_ids(8, 5), ((9, 60, 3), (20, 77)), 1),
        Choice(_ids(9, 9), ((15, 6), (250, 71, 3)), 1),
    ],
}
LONG: list[Example] = [
    TextExample(_ids(10 + i, 62 - i), tuple(range(30, 62 - i, 3))) for i in range(3)
]


@dataclass(frozen=True)
class Subject:
    """A model under test: what zoft works on, and the reference that it has not touched."""

    model: nn.Module
    tune: TuneSection
    reference: Reference

    @classmethod
    def of(cls, model: nn.Module, tune: TuneSection) -> Subject:
        return cls(model, tune, Reference(copy.deepcopy(model), tune))

    @classmethod
    def loaded(cls, folder: Path, plain: PreTrainedModel) -> Subject:
        """All weights tuned, loaded as a run loads them from `folder`. Raises as a run does."""
        section = ModelSection(name=str(folder))
        found = load_model(folder, section, dtype=torch.float32, device=CPU)
        require_causal(section.name, found.model, tuned=True)
        return cls(found.model, TuneSection(), Reference(plain, TuneSection()))

    def view(self, compute: torch.dtype = torch.float32) -> ProbedModel:
        tuned = tuned_parameters(self.model, self.tune)
        example = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
        return ProbedModel(self.model, tuned, parameter_ids(tuned), compute, example)


def check(found: Findings, name: str, subject: Subject) -> None:
    """Probes, slopes and steps in float32 and in bfloat16."""
    with using_threads(1):
        _check_single(found, name, subject)
        _check_low(found, name, subject)


def _check_single(found: Findings, name: str, subject: Subject) -> None:
    """All float32 combinations, threads, one step; then bfloat16. Stops where nothing can be read."""
    with found.check(f"{name}: view"):
        view = subject.view()
    if not found.passed(f"{name}: view"):
        return
    combinations = product((("dense", "batch"), ("rank1", "example")), (False, True), EXAMPLES)
    for (structure, scope), paired, task in combinations:
        title = f"{name}: {structure} {scope}, {'paired' if paired else 'unpaired'}, {task}"
        with found.check(title):
            check_slopes(subject, structure, scope, paired=paired, task=task, view=view)
    for threads in (1, 2):
        with found.check(f"{name}: {threads} threads, one row at a time"), using_threads(threads):
            check_slopes(
                subject, "rank1", "example", paired=False, task="lm", view=view, examples=LONG,
                rows=1,
            )  # fmt: skip
    for structure, scope in (("dense", "batch"), ("rank1", "example")):
        with found.check(f"{name}: {structure} {scope}, one step"):
            _step(view, structure, scope)
    with found.check(f"{name}: weights as they were"):
        _unchanged(subject)


def _check_low(found: Findings, name: str, subject: Subject) -> None:
    """bfloat16 compute, where plain transformers can do it."""
    plain = Reference(subject.reference.model, subject.tune, torch.bfloat16)
    try:
        z = _directions("dense").at(STEP, 0)
        plain.losses(z, 0.0, EXAMPLES["lm"])
    except Exception as error:  # not zoft's matter
        found.skip(f"{name}: bfloat16", f"plain transformers fails: {first_line(error)}")
        return
    for structure, scope in (("dense", "batch"), ("rank1", "example")):
        if any(x.check.startswith(f"{name}: {structure} {scope}") for x in found.of("refused")):
            continue
        with found.check(f"{name}: bfloat16, {structure} {scope}"):
            _low(subject, plain, structure, scope)


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Torch and the kernels on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _directions(structure: str) -> Directions:
    return Directions(SEED, False, STRUCTURES[structure])


def _estimator(view: ProbedModel, structure: str, examples: int | None, paired: bool) -> Estimator:
    epsilon = PERTURBATION[view.compute_dtype]
    return Estimator(
        view, _directions(structure), perturbation=epsilon, examples=examples, paired=paired
    )


def _expected(
    reference: Reference,
    structure: str,
    scope: str,
    epsilon: float,
    examples: Sequence[Example],
    step: int = STEP,
) -> tuple[list[float], list[float]]:
    """The losses of the examples at +epsilon and at -epsilon."""
    directions = _directions(structure)
    if scope == "batch":
        z = directions.at(step, 0)
        return (
            reference.losses(z, epsilon, examples),
            reference.losses(z, -epsilon, examples),
        )
    zs = [directions.at(step, i) for i in range(len(examples))]
    return reference.alone(zs, epsilon, examples), reference.alone(zs, -epsilon, examples)


def check_slopes(
    subject: Subject,
    structure: str,
    scope: str,
    *,
    paired: bool,
    task: str,
    view: ProbedModel | None = None,
    examples: Sequence[Example] = (),
    rows: int | None = None,
) -> None:
    """Measure one step, of EXAMPLES or these, at most `rows` examples in a pass.

    Raises `Wrong` for a loss or a slope that is not the reference's, RecipeError as a run would.
    """
    view, examples = view or subject.view(), examples or EXAMPLES[task]
    objective = objective_for(task.split()[0])
    estimator = _estimator(view, structure, len(examples) if scope == "example" else None, paired)
    view.masked = needs_mask(view, objective, examples, CPU)
    batches = micro_batches(objective, examples, rows or len(examples), CPU)
    losses = partial(batch_losses, objective, view, batches)
    _as_a_run_would(estimator, losses, objective, examples)
    found = estimator.measure(STEP, losses)
    epsilon = estimator.perturbation
    plus, minus = _expected(subject.reference, structure, scope, epsilon, examples)
    weights = [weight(x) for x in examples]
    up, down = _mean(plus, weights), _mean(minus, weights)
    for sign, ours, theirs in (("+", found.loss_plus[0], up), ("-", found.loss_minus[0], down)):
        if not abs(ours - theirs) <= LOSS * max(abs(theirs), 0.1):
            raise Wrong(f"loss at {sign}epsilon {ours:.6g}, by hand {theirs:.6g}")
    pairs = list(zip(plus, minus, strict=True)) if scope == "example" else [(up, down)]

    def exactly() -> list[tuple[float, float]]:
        reference = subject.reference.in_float64()
        plus, minus = _expected(reference, structure, scope, epsilon, examples)
        if scope == "example":
            return list(zip(plus, minus, strict=True))
        return [(_mean(plus, weights), _mean(minus, weights))]

    require_slopes(found.projected_grad, pairs, epsilon, exactly)


def require_slopes(
    found: Sequence[float],
    pairs: Sequence[tuple[float, float]],
    epsilon: float,
    exactly: Callable[[], Sequence[tuple[float, float]]],
) -> None:
    """Raise `Wrong` for a slope that is not that of its pair of losses by hand.

    It may be off by the losses' rounding over epsilon. A few models of random weights amplify rounding:
    there it may be off by three times what plain transformers in float32 is from itself in float64.
    """
    for i, (ours, (p, m)) in enumerate(zip(found, pairs, strict=True)):
        theirs = (p - m) / (2 * epsilon)
        allowed = max(SLOPE * abs(theirs), ROUNDING * max(abs(p), abs(m), 0.1) / epsilon)
        if abs(ours - theirs) <= allowed:
            continue
        plus, minus = exactly()[i]
        allowed += 3 * max(abs(p - plus), abs(m - minus)) / epsilon
        if not abs(ours - (plus - minus) / (2 * epsilon)) <= allowed:
            raise Wrong(f"slope {ours:.6g}, by hand {theirs:.6g}")


def _as_a_run_would(
    estimator: Estimator, losses: Loss, objective: Objective, examples: Sequence[Example]
) -> None:
    """Refuse what the preflight of a run refuses. Raises MixedRows or RecipeError."""
    view = estimator.view
    if estimator.paired and not pairs_agree(estimator, losses):
        raise RecipeError("not both signs at once")
    if estimator.examples is not None:
        width = objective.width(examples[:2])
        both, alone = (
            partial(batch_losses, objective, view, [objective.collate(some, width)])
            for some in (examples[:2], examples[:1])
        )
        with forward_explained("model"):
            agree = examples_agree(estimator, both, alone)
        if not agree:
            raise RecipeError("no directions for each example")


def _low(subject: Subject, plain: Reference, structure: str, scope: str) -> None:
    """How far losses in bfloat16 are from those in float32, beside how far plain bfloat16 is."""
    view, examples, objective = subject.view(torch.bfloat16), EXAMPLES["lm"], objective_for("lm")
    count = len(examples) if scope == "example" else None
    estimator = _estimator(view, structure, count, paired=False)
    losses = partial(batch_losses, objective, view, micro_batches(objective, examples, 3, CPU))
    epsilon = estimator.perturbation
    exact: list[float] = []
    low: list[float] = []
    ours: list[float] = []
    with forward_explained("model", "bfloat16"):  # as in a run
        view.masked = needs_mask(view, objective, examples, CPU)
        for step in STEPS_LOW:
            z = estimator.direction(step, 0)
            for scale in (epsilon, -epsilon):
                ours += estimator.example_losses(z, (scale,), losses)
    for step in STEPS_LOW:
        for found, reference in ((exact, subject.reference), (low, plain)):
            for side in _expected(reference, structure, scope, epsilon, examples, step):
                found += side
    off, allowed = (_apart(found, exact) for found in (ours, low))
    if not off <= 2 * allowed + LOW * sum(map(abs, exact)) / len(exact):
        raise Wrong(
            f"losses in bfloat16 are off by {off:.3g}, of plain transformers by {allowed:.3g}"
        )


def _apart(found: Sequence[float], exact: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(found, exact, strict=True)) / len(exact)


def _step(view: ProbedModel, structure: str, scope: str) -> None:
    """One MeZO step, tensor by tensor. The weights are put back."""
    settings = resolved_optimizer(
        MeZO(), lr=LR, perturbation=1e-2, structure=structure, scope=scope, paired=False
    )
    tuned = {r.parameter: r.param for leaf in view.leaves for r in leaf.refs if r.param is not None}
    names = {p: n for n, p in view.model.named_parameters()}
    before = {p: p.detach().clone() for p in tuned}
    weights = tuned_weights(
        {names[p]: p for p in tuned}, {names[p]: i for p, i in tuned.items()}, decays(view.model)
    )
    examples = EXAMPLES["lm"]
    estimator = _estimator(view, structure, 3 if scope == "example" else None, paired=False)
    losses = partial(
        batch_losses, objective_for("lm"), view,
        micro_batches(objective_for("lm"), examples, 3, CPU),
    )  # fmt: skip
    with forward_explained("model"):  # as in a run
        found = estimator.measure(STEP, losses)
    optimizer_for(settings, SEED, Resident(weights)).update(found, settings.lr)
    try:
        for parameter, param in tuned.items():
            _moved(
                names[parameter],
                parameter,
                before[parameter],
                param,
                structure,
                found.projected_grad,
            )
    finally:
        for parameter, old in before.items():
            parameter.data.copy_(old)


def _moved(
    name: str,
    parameter: nn.Parameter,
    before: torch.Tensor,
    param: int,
    structure: str,
    slopes: Sequence[float],
) -> None:
    """Raise `Wrong` if the parameter is not before - lr * (1/K) sum_k c_k z_k."""
    expected, reach = before.double(), 0.0
    for k, c in enumerate(slopes):
        z = values_of(_directions(structure).at(STEP, k), before, param)
        expected -= LR * c / len(slopes) * z
        reach = max(reach, LR * abs(c))
    error = float((parameter.detach() - expected).abs().max())
    # The coefficients of an update are rounded to 2**-13 of the largest.
    if not error <= 2e-7 * float(before.abs().max()) + 1.3e-4 * reach:
        raise Wrong(f"{name} is off by {error:.2g} after a step")


def _unchanged(subject: Subject) -> None:
    """Raise `Wrong` if a parameter or a buffer of a checkpoint is not what it was before any pass."""
    now, before = subject.model.state_dict(), subject.reference.model.state_dict()
    for name, tensor in now.items():
        if not torch.equal(tensor, before[name]):
            raise Wrong(f"{name} was written by a forward pass")


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
