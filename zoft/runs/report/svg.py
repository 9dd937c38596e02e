"""A line chart as inline SVG: no script, no request, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 10, 30
MOST = 600  # points of one line: more than a screen shows


@dataclass(frozen=True)
class Line:
    """Points (x, y) under a name; `style` is its class: raw, main, other, or level (a dashed line)."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "main"


def chart(title: str, lines: Sequence[Line], *, log: bool = False) -> str:
    """A figure with a caption and a legend; an empty text if there is nothing to draw."""
    lines = [Line(x.name, _drawable(x.points, log), x.style) for x in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [math.log10(y) if log else y for line in lines for _, y in line.points]
    left, right = min(xs), max(max(xs), min(xs) + 1)
    marks = _decades(min(ys), max(ys)) if log else _ticks(min(ys), max(ys))
    low, high = min(*ys, marks[0]), max(*ys, marks[-1])

    def at(x: float, y: float) -> str:
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{_height(y, low, high):.1f}"

    body = []
    for mark in marks:
        y = _height(mark, low, high)
        body.append(f'<path class="grid" d="M{LEFT},{y:.1f}H{WIDTH - RIGHT}"/>')
        text = _number(10**mark if log else mark)
        body.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for x, anchor in ((left, "start"), (right, "end")):
        place = LEFT if anchor == "start" else WIDTH - RIGHT
        body.append(
            f'<text x="{place}" y="{HEIGHT - 8}" text-anchor="{anchor}">step {x:,.0f}</text>'
        )
    for line in lines:
        points = [at(x, math.log10(y) if log else y) for x, y in line.points]
        if len(points) == 1:
            across, down = points[0].split(",")
            body.append(f'<circle class="{line.style}" cx="{across}" cy="{down}" r="3"/>')
        else:
            body.append(f'<polyline class="{line.style}" points="{" ".join(points)}"/>')
    legend = " ".join(f'<span class="{x.style}">{escape(x.name)}</span>' for x in lines)
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'{"".join(body)}</svg><p class="legend">{legend}</p></figure>'
    )


def _height(y: float, low: float, high: float) -> float:
    share = (y - low) / (high - low) if high > low else 0.5
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _drawable(points: Sequence[tuple[float, float]], log: bool) -> list[tuple[float, float]]:
    """At most MOST points, evenly, the last one among them; a logarithm needs positive ones."""
    fit = [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
    every = -(-len(fit) // MOST) if fit else 1
    return fit[::-1][::every][::-1]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from below `low` to above `high`, about four steps apart."""
    span = high - low or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= span / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    every = -(-(last - first) // 5)
    return [float(k) for k in range(first, last + every, every)]


def _number(value: float) -> str:
    """Short: 0.0002 is 2e-4, 1500 is 1,500."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else ("", "")
        if not exponent:
            mantissa, exponent = f"{value:.2e}".split("e")
            mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
