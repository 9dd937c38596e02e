"""`zoft range --groups`: where learning pays, by kind of module and third of depth.

Computed in float32 unless the command says otherwise: a second difference of losses is lost in the
rounding of lower types.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from zoft.data.examples import length
from zoft.data.order import Order
from zoft.engine.estimator import Losses
from zoft.engine.group_probes import (
    BatchLoss,
    Probed,
    groups_of,
    losses_at_rest,
    probe_weights,
)
from zoft.engine.objectives.batch import Forward
from zoft.engine.objectives.objective import batch_losses
from zoft.errors import DataError, RecipeError
from zoft.training.dry_run import trial
from zoft.training.trainer import Trainer

WHOLE = "all weights"


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the tuned weights: their number, and what probes found in them."""

    name: str
    weights: int
    probed: Probed


def range_groups(
    source: str, overrides: Sequence[str] = (), *, directions: int = 8, rows: int = 32
) -> list[Group]:
    """Print, and return, what directions in each group of a recipe's weights find; all weights come
    last. Raises ZoftError."""
    with trial(source, ["model.compute_dtype=float32", *overrides]) as trainer:
        found = _probe_all(trainer, directions, min(rows, len(trainer.train_set)))
        batch_size = trainer.recipe.train.batch_size
    print("\n" + "\n".join([*table(found), "", *verdict(found[-1].probed, batch_size)]))
    return found


def _probe_all(trainer: Trainer, directions: int, rows: int) -> list[Group]:
    """Every group, and all weights last. Raises DataError, RecipeError."""
    if rows < 2:
        raise DataError("data.train: --groups compares rows, and there is only one")
    engine = trainer.engine
    estimator, weights = engine.estimator, list(engine.weights)
    batches = [_batch(trainer, number, rows) for number in range(1, directions + 1)]
    began = time.perf_counter()
    at_rest = losses_at_rest(estimator, batches)
    trainer.check()
    seconds = (time.perf_counter() - began) / directions
    groups = groups_of(engine.model, weights)
    passes = 2 * directions * (len(groups) + 1)
    print(
        f"\n{len(groups)} groups and all weights: {directions} directions in each, along "
        f"±{estimator.perturbation:g}, in\n{directions + passes:,} passes of {rows} rows, "
        f"about {max(1, round(passes * seconds / 60))} min",
        flush=True,
    )
    found = []
    for name, members in {**groups, WHOLE: weights}.items():
        part = replace(estimator, view=engine.view.only({x.parameter for x in members}))
        probed = probe_weights(part, batches, at_rest, trainer.check)
        found.append(Group(name, sum(x.parameter.numel() for x in members), probed))
    if not all(math.isfinite(sum(group.probed.means)) for group in found):
        raise RecipeError("a loss is not finite: try a smaller optimizer.perturbation")
    return found


def _batch(trainer: Trainer, number: int, rows: int) -> BatchLoss:
    """Rows of batch `number`, of all lengths whatever the run groups, but those of like length beside
    each other in a micro-batch."""
    order = Order(trainer.recipe.seed, rows, len(trainer.train_set))
    examples = sorted((trainer.train_set[row] for row in order.rows(number)), key=length)
    size = trainer.recipe.train.micro_batch_size
    parts = (examples[i : i + size] for i in range(0, rows, size))
    batches = [batch for part in parts for batch in trainer.engine.batches(part, size)]

    def losses(model: Forward) -> Losses:
        return batch_losses(trainer.engine.objective, model, batches)

    return losses


def table(groups: Sequence[Group]) -> list[str]:
    """The lines of the table, the greatest e first. The last group is all weights."""
    *parts, whole = groups
    gains = {group.name: group.probed.gain_beside(whole.probed) for group in groups}
    parts.sort(key=lambda group: (gains[group.name] or (-1.0, 0.0))[0], reverse=True)
    wide = max(len(group.name) for group in groups)
    lines = [
        _line(wide, "group", "parameters", "gamma ", "Gamma ", "kappa ", "e", "±"),
        *(_row(group, wide, gains[group.name]) for group in (*parts, whole)),
    ]
    if any("?" in line for line in lines):
        lines.append("? cannot be told from zero by so many directions and rows")
    return lines


def _row(group: Group, wide: int, gain: tuple[float, float] | None) -> str:
    probed, (signal, energy, curvature) = group.probed, group.probed.means
    e, error = ("-", "") if gain is None else (f"{gain[0]:.2g}", f"{gain[1]:.1g}")
    return _line(
        wide,
        group.name,
        f"{group.weights:,}",
        _number(signal, probed.has_signal),
        _number(energy),
        _number(curvature, probed.has_curvature),
        e,
        "" if group.name == WHOLE else error,
    )


def _number(value: float, known: bool = True) -> str:
    """Three digits, with a question mark where it may as well be zero."""
    text = f"{value:.3g}"
    if len(text) > 7:  # 0.000123
        text = f"{value:.1e}"
    return f"{text}{' ' if known else '?'}"


def _line(wide: int, name: str, weights: str, *cells: str) -> str:
    """One line of the table, 78 characters where names have at most 19."""
    *numbers, e, error = cells
    right = "".join(f"{number:>10}" for number in numbers)
    return f"{name:{wide}}{weights:>14}{right}{e:>8}{error:>7}".rstrip()


def verdict(whole: Probed, batch_size: int) -> list[str]:
    """Say what the noise scale of all weights is, and what follows for a batch of that size."""
    scale, error = whole.noise_scale
    worth = (batch_size + scale) / (1 + scale)
    number, times = f"{scale:.3g} ± {error:.1g} rows", f"{worth:.2g}"
    if math.isinf(error):
        number, times = f"above {scale:.3g} rows", f"at most {times}"
    return [
        f"noise scale n = sigma²/|G|²: {number}. At train.batch_size={batch_size} a direction for each",
        f"example is worth {times} times one that all share: (B + n) / (1 + n)",
    ]
