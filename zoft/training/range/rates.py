"""`zoft range`: which perturbation and which learning rate suit a run, from some dozens of probes.

No step is taken and no weight moves. The perturbation is the one whose slopes have the least error
(engine/range_probes.py). The rate follows from how far a random step may go:

An update is nearly all noise: d weights move along a few random directions, of which the gradient's
share is about 1 / sqrt(d). After T steps of RMS a per weight the noise has walked a sqrt(T), and raises
the loss as a random step of that length does, which a ladder of probes measures without a gradient:
its rise is a**2 T / 2 * z^T H z, until it is no longer quadratic. What the gradient's share gains
grows with a; the largest a whose walk still costs little is the rate to begin the search at:

    lr * g * sqrt(sum_t s_t**2) = r

with r the RMS length at which random steps raise the loss by TOLERANCE of itself, s_t the schedule, and
g * lr the RMS of an update: g = sqrt((1 + beta1) / (1 - beta1)) for r-adazo (its steps are lr long and
overlap by momentum, or longer by that factor where it is folded), and for mezo the RMS of the
gradient estimate, |c| / sqrt(directions in a step).

On a quadratic with T from d / 10 to 10 d steps that is within a factor 3 of the best constant rate
(tests/training/range/test_rates.py); docs/range.md has what it gave on real tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zoft.engine.diagnostics import measure_delivery
from zoft.engine.optimizers.lr_schedule import learning_rate
from zoft.engine.range_probes import Rung, best_perturbation, losses_at_rest, measure_rung, radius
from zoft.errors import EnvironmentProblem, RecipeError
from zoft.recipe.resolved import Resolved
from zoft.runs.report.range_plot import plot_range
from zoft.training.dry_run import trial
from zoft.training.trainer import Trainer

LENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
BATCHES = 4
TOLERANCE = 0.1  # of the loss, which the noise of a whole run's updates may cost
HEAD = "perturbation     |c|   noise  |c|/noise    bias  error    loss  curvature  lost"


@dataclass(frozen=True, slots=True)
class Advice:
    """What `zoft range` found. `rest` is the loss at the weights themselves, `radius` how far random
    steps may go (None: farther than was tried), `lr` the rates from the batches' least radius to their
    largest, and from all together in the middle."""

    rungs: tuple[Rung, ...]
    rest: float
    best: Rung
    radius: float | None
    lr: tuple[float, float, float]


def range_test(source: str, overrides: Sequence[str] = (), *, plot: str | None = None) -> Advice:
    """Print, and return, what suits the run of this recipe. Raises ZoftError."""
    drawn = None if plot is None else Path(plot).expanduser()
    if drawn is not None:
        _require_plottable(drawn)

    with trial(source, overrides) as trainer:
        recipe = trainer.recipe
        rungs, at_rest = _climb(trainer)
    advice = advise(recipe, rungs, at_rest)
    _tell(recipe, advice)
    if drawn is not None:
        plot_range(drawn, advice.rungs, advice.rest, TOLERANCE, advice.radius, advice.best)
        print(f"plot: {plot}")
    return advice


def _climb(trainer: Trainer) -> tuple[list[Rung], list[float]]:
    """All rungs, and each batch's loss at the weights themselves."""
    estimator, check = trainer.engine.estimator, trainer.check
    batches = [trainer.batches(step) for step in range(1, BATCHES + 1)]
    losses = [trainer.engine.losses_of(batch) for batch in batches]
    at_rest = losses_at_rest(estimator, losses)
    check()
    rungs: list[Rung] = []
    for length in sorted({*LENGTHS, estimator.perturbation}):
        rung = measure_rung(estimator, length, losses, at_rest, check)
        direction = estimator.direction(0, 0)
        delivery = measure_delivery(estimator.view, trainer.engine.weights, direction, length)
        rung = replace(rung, lost=None if delivery is None else delivery.lost)
        if not rungs:
            rest = sum(at_rest) / len(at_rest)
            print(f"\nloss {rest:.4g} on {BATCHES} batches; after random steps of some lengths:")
            print(HEAD)
        print(row(rung), flush=True)
        rungs.append(rung)
    return rungs, at_rest


def advise(recipe: Resolved, rungs: Sequence[Rung], at_rest: Sequence[float]) -> Advice:
    """What follows from the rungs. Raises RecipeError if no loss was finite."""
    perturbation = recipe.optimizer.perturbation
    best = best_perturbation(rungs, perturbation)
    rest = sum(at_rest) / len(at_rest)
    if best is None or not math.isfinite(rest):
        raise RecipeError(
            "no loss is finite: try model.compute_dtype=float32, and look at the data"
        )
    lengths = [rung.perturbation for rung in rungs]
    found = radius(lengths, [rung.rise for rung in rungs], TOLERANCE * rest)
    singles = [
        radius(lengths, [rung.rises[i] for rung in rungs], TOLERANCE * rest)
        for i in range(len(at_rest))
    ]
    walk = steps_walked(recipe) * update_size(recipe, best.projected_grad)
    middle = found or lengths[-1]
    around = sorted([middle, *(x or lengths[-1] for x in singles)])
    rates = (around[0] / walk, middle / walk, around[-1] / walk)
    return Advice(tuple(rungs), rest, best, found, rates)


def update_size(recipe: Resolved, projected_grad: float) -> float:
    """RMS of how far a weight goes in a step, in units of the rate, as if steps were independent."""
    optimizer = recipe.optimizer
    several = recipe.train.batch_size if optimizer.scope == "example" else 1
    return optimizer.walk_rms(projected_grad / math.sqrt(optimizer.directions * several))


def steps_walked(recipe: Resolved) -> float:
    """How far independent steps of size 1 at the schedule's start lead in the whole run."""
    steps, optimizer = recipe.train.steps, recipe.optimizer
    looked_at = range(1, steps + 1, max(1, steps // 1000))
    factors = [
        learning_rate(
            step,
            lr=1.0,
            steps=steps,
            schedule=optimizer.schedule,
            warmup_steps=optimizer.warmup_steps,
        )
        for step in looked_at
    ]
    return math.sqrt(steps * sum(x * x for x in factors) / len(factors))


def row(rung: Rung) -> str:
    """One line of the table, 80 characters with its bar."""
    ratio = rung.signal_to_noise
    lost = "-" if rung.lost is None else f"{rung.lost:.0%}"
    return (
        f"{rung.perturbation:12.0e}{_short(rung.projected_grad):>8}{_short(rung.noise):>8}"
        f"  {_bar(ratio)}"
        f"{min(ratio, 999):6.3g}{min(rung.bias, 9.99):8.0%}{min(rung.error, 9.99):7.0%}"
        f"{_limited(rung.rise):+8.3f}{rung.curvature:11.2g}{lost:>6}"
    )


def _short(number: float) -> str:
    """Three digits, in at most seven characters."""
    text = f"{number:.3g}"
    return text if len(text) < 8 else f"{number:.1e}"


def _limited(rise: float) -> float:
    return max(min(rise, 99.0), -99.0) if math.isfinite(rise) else rise


def _bar(ratio: float) -> str:
    """Three characters, from 1 to 100 on a logarithmic scale."""
    full = "█"
    parts = " ▏▎▍▌▋▊▉"
    eighths = round(24 * min(1.0, max(0.0, math.log10(max(ratio, 1e-9)) / 2)))
    return (full * (eighths // 8) + parts[eighths % 8].strip()).ljust(3)


def _tell(recipe: Resolved, advice: Advice) -> None:
    optimizer, best = recipe.optimizer, advice.best
    low, middle, high = advice.lr
    schedule = "" if optimizer.schedule == "constant" else f" ({optimizer.schedule})"
    print()
    print(
        f"perturbation {best.perturbation:g}: its slopes are off by {best.error:.0%} "
        f"(the recipe has {optimizer.perturbation:g})"
    )
    if advice.radius is None:
        far = advice.rungs[-1].perturbation
        print(
            f"lr: random steps of up to {far:g} raise the loss by less than {TOLERANCE:.0%}, so the"
        )
        print(f"rate may be higher than {middle:.1e} (the recipe has {optimizer.lr:g})")
    else:
        steps = f"{recipe.train.steps:,} steps{schedule}"
        print(
            f"lr {middle:.1e}, by single batches {low:.1e} to {high:.1e} "
            f"(the recipe has {optimizer.lr:g})\n"
            f"  The noise of {steps} at this rate moves a weight by {advice.radius:.2g}\n"
            f"  (RMS), and random steps of that length raise the loss by {TOLERANCE:.0%}. It is a rule\n"
            "  of thumb: compare it with a third of it and with three times it in short runs."
        )
    print(f"\noptimizer.lr={middle:.1e} optimizer.perturbation={best.perturbation:g}")


def _require_plottable(path: Path) -> None:
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise RecipeError(f"--plot {path}: name a .png, .svg or .pdf file")
    if not path.absolute().parent.is_dir():
        raise EnvironmentProblem(f"--plot {path}: there is no folder {path.parent}")
