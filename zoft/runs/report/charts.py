"""loss.png: the losses and the score of a run in one picture, for a model card."""

from __future__ import annotations

import warnings
from pathlib import Path

from zoft.runs.console.progress import Smoothed
from zoft.runs.metrics import Event, primary_metric
from zoft.runs.record import RunRecord


def losses(run: RunRecord) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """The loss of each step, and its smoothed course: points (step, loss), the finite ones."""
    smooth = Smoothed()
    raw = [(float(e["step"]), float(e["loss"])) for e in run.of("train") if e["loss"] is not None]
    return raw, [(step, smooth(loss) or 0.0) for step, loss in raw]


def course(events: list[Event], key: str) -> list[tuple[float, float]]:
    """One number of each event that has it."""
    return [(float(e["step"]), float(e[key])) for e in events if e.get(key) is not None]


def write_loss_picture(run: RunRecord, path: Path) -> None:
    """Draw it without a screen and without pyplot, whose figures would belong to the whole process."""
    from matplotlib.figure import Figure

    evaluations = run.of("eval")
    name = primary_metric(evaluations[0])[0] if evaluations else "loss"
    two = name != "loss"
    figure = Figure(figsize=(10.0 if two else 5.5, 4.0), dpi=110)
    axes = figure.subplots(1, 2 if two else 1, squeeze=False)[0]
    figure.subplots_adjust(left=0.07 if two else 0.13, right=0.98, bottom=0.13, wspace=0.2)
    raw, smooth = losses(run)
    axes[0].plot(*_columns(raw), color="tab:blue", alpha=0.25, linewidth=0.8, label="of a step")
    axes[0].plot(*_columns(smooth), color="tab:blue", label="smoothed")
    axes[0].plot(*_columns(course(evaluations, "loss")), "o-", color="tab:orange", label="eval")
    axes[0].set(xlabel="step", ylabel="loss")
    axes[0].set_title(run.name, parse_math=False)
    if two:
        axes[1].plot(*_columns(course(evaluations, name)), "o-", color="tab:orange", label="eval")
        if run.zero_shot and (before := primary_metric(run.zero_shot)[1]) is not None:
            axes[1].axhline(before, color="grey", linestyle="--", label=f"zero-shot {before:.3f}")
        axes[1].set(xlabel="step", ylabel=name)
    for axis in axes:
        axis.grid(alpha=0.25)
        if axis.lines:
            axis.legend(frameon=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter of the run's name that the font lacks
        figure.savefig(path, format="png")


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
