"""The curves of a run, drawn by matplotlib: loss.png for a model card, SVG for report.html."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoft.engine.optimizers.measurement import rms
from zoft.runs.console.progress import Smoothed
from zoft.runs.metrics import Event, primary_metric
from zoft.runs.record import RunRecord
from zoft.runs.report.style import LIGHT

if TYPE_CHECKING:  # it imports numpy, which `zoft runs ls` does without
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 400, 240  # of an SVG, in its own units
MOST = 600  # points of a line: more than a screen shows
FEW = 30  # points of a line that are marked
KINDS: dict[str, dict[str, Any]] = {
    "raw": {"color": LIGHT["main"], "alpha": 0.4, "linewidth": 0.8},
    "main": {"color": LIGHT["main"], "linewidth": 1.5},
    "other": {"color": LIGHT["other"], "linewidth": 1.5},
    "level": {"color": LIGHT["soft"], "linewidth": 1.2, "linestyle": "--"},
    "other level": {"color": LIGHT["soft"], "linewidth": 1.2, "linestyle": ":"},
}
SETTINGS: dict[Any, Any] = {
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    "axes.autolimit_mode": "round_numbers",
    "axes.formatter.limits": (-3, 5),
    "axes.labelcolor": LIGHT["soft"],
    "axes.ymargin": 0.0,
    "font.size": 12,
    "grid.color": LIGHT["line"],
    "legend.borderpad": 0.0,
    "legend.frameon": False,
    "legend.labelcolor": LIGHT["soft"],
    "svg.fonttype": "none",  # letters, in the page's font
    "xtick.bottom": False,
    "xtick.labelcolor": LIGHT["soft"],
    "ytick.labelcolor": LIGHT["soft"],
    "ytick.left": False,
}


@dataclass(frozen=True)
class Line:
    """Points (step, value) under a name; `kind` is one of KINDS."""

    name: str
    points: Points
    kind: str = "main"


@dataclass(frozen=True)
class Chart:
    """Lines over the steps of a run; `log` if their values span decades."""

    title: str
    lines: Sequence[Line]
    log: bool = False


def charts(run: RunRecord) -> list[Chart]:
    """Choose what to draw: the losses, the score if that is another, |c| and the learning rate."""
    taken = run.of("train")
    sizes = [(float(e["step"]), size) for e in taken if (size := rms(e["projected_grad"])) > 0]
    found = [
        _losses(run),
        _scores(run),
        _chart("|c|, the slope along a direction (RMS of a step)", [Line("|c|", sizes)], log=True),
        _chart("Learning rate", [Line("lr", _course(taken, "lr"))]),
    ]
    return [chart for chart in found if chart.lines]


def write_loss_picture(run: RunRecord, path: Path) -> None:
    """Draw the losses and the score as a PNG file, without a screen. Raises OSError."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    found = [_losses(run), *([scores] if (scores := _scores(run)).lines else [])]
    with rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter of the run's name that the font lacks
        figure = Figure(figsize=(5.5 * len(found), 4.0), dpi=110, layout="constrained")
        figure.suptitle(run.name, parse_math=False)
        for axes, chart in zip(
            figure.subplots(1, len(found), squeeze=False)[0], found, strict=True
        ):
            _draw(axes, chart)
            axes.set_title(chart.title, fontsize="medium")
            if chart.lines:
                axes.legend()
        figure.savefig(path, format="png")


def as_svg(chart: Chart) -> str:
    """Draw a chart as SVG inside HTML: no request, the page's font and the colours of its style."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**SETTINGS, "svg.hashsalt": chart.title}):  # equal charts, equal bytes
        figure = Figure((WIDTH / 72, HEIGHT / 72), layout="constrained", frameon=False)
        _draw(figure.subplots(), chart)
        if len(chart.lines) > 1:
            legend = figure.legend(loc="outside lower left", ncols=len(chart.lines))
            for handle in legend.get_lines():
                handle.set_linewidth(2.5)
        text = StringIO()
        figure.savefig(text, format="svg")
    label = f"{chart.title}: {', '.join(line.name for line in chart.lines)}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{_for_html(text.getvalue())}</svg>"
    )


def _losses(run: RunRecord) -> Chart:
    smooth, raw = Smoothed(), _course(run.of("train"), "loss")
    smoothed = [(step, smooth(loss) or 0.0) for step, loss in raw]
    evaluated = _course(run.course, "loss")
    lines = [
        Line("of a step", raw, "raw"),
        Line("smoothed", smoothed),
        Line("eval", evaluated, "other"),
    ]
    return _chart("Loss", lines)


def _scores(run: RunRecord) -> Chart:
    """The course of the primary metric; without lines where that is the loss."""
    evaluations = run.course
    name = primary_metric(evaluations[0])[0] if evaluations else "loss"
    lines = [Line(name, _course(evaluations, name), "other")] if name != "loss" else []
    levels = [("zero-shot", run.zero_shot, "level"), ("tail alone", run.tail, "other level")]
    for what, event, kind in levels if lines else ():
        if event and (before := primary_metric(event)[1]) is not None:
            ends = [(0.0, before), (float(max(run.step, 1)), before)]
            lines.append(Line(f"{what} {before:.3f}", ends, kind))
    return _chart(f"{name.capitalize()} on the eval set", lines)


def _course(events: Iterable[Event], key: str) -> Points:
    """One number of each event that has it."""
    return [(float(e["step"]), float(e[key])) for e in events if e.get(key) is not None]


def _chart(title: str, lines: Iterable[Line], *, log: bool = False) -> Chart:
    """A chart of the lines that have points."""
    thinned = [Line(line.name, _thinned(line.points), line.kind) for line in lines if line.points]
    return Chart(title, thinned, log)


def _thinned(points: Points) -> Points:
    """At most MOST of the points, evenly, the last one among them."""
    every = -(-len(points) // MOST)
    return points[::-every][::-1]


def _draw(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

    axes.patch.set_visible(False)
    for line in chart.lines:
        marker = "o" if len(line.points) <= FEW and "level" not in line.kind else None
        # Not clipped: nothing lies outside, and SVG would name the clip path by a url().
        axes.plot(
            *zip(*line.points, strict=True), label=line.name, marker=marker, markersize=3,
            clip_on=False, **KINDS[line.kind],
        )  # fmt: skip
    if chart.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", clip_on=False)
    axes.set_xlim(0, max((line.points[-1][0] for line in chart.lines), default=0) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("step")


def _for_html(svg: str) -> str:
    """What is drawn by matplotlib's file, without what names, describes and styles it."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    for needless in (
        r"<(metadata|style).*?</\1>", r'(?<=<g) id="[^"]*"', r" font-family: [^;]*;",
        r' transform="rotate\(-0 [^"]*"', r"(?m)^\s+",
    ):  # fmt: skip
        body = re.sub(needless, "", body, flags=re.DOTALL)
    for name, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{name})")
    return body
