from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from support.written import finished_run

from zoft.runs.record import read_run
from zoft.runs.report.charts import MOST, Chart, Line, as_svg, charts, write_loss_picture


def test_a_chart_takes_its_colours_and_font_from_the_page(tmp_path: Path) -> None:
    drawn = "".join(as_svg(chart) for chart in charts(read_run(finished_run(tmp_path))))
    assert not re.search(r"#[0-9a-f]{3,6}\b|font-family|<style", drawn)
    assert {"soft", "line", "main", "other"} == set(re.findall(r"var\(--(\w+)\)", drawn))
    names = re.findall(r' id="([^"]*)"', drawn)
    assert names
    assert len(names) == len(set(names))
    assert set(re.findall(r' xlink:href="#([^"]*)"', drawn)) == set(names)


def test_equal_runs_give_equal_charts(tmp_path: Path) -> None:
    once, again = (
        [as_svg(chart) for chart in charts(read_run(finished_run(tmp_path / name)))]
        for name in ("a", "b")
    )
    assert once == again


def test_a_long_run_is_thinned_and_keeps_its_last_step(tmp_path: Path) -> None:
    found = charts(read_run(finished_run(tmp_path, steps=2 * MOST + 1)))
    [smoothed] = [line for line in found[0].lines if line.name == "smoothed"]
    assert MOST / 2 < len(smoothed.points) <= MOST
    assert smoothed.points[-1][0] == 2 * MOST + 1
    noise = [(float(step), math.sin(step * step)) for step in range(MOST)]
    assert len(as_svg(Chart("noise", [Line("a", noise)]))) < 25_000  # bytes: the page is small


def test_a_chart_is_named_for_who_cannot_see_it() -> None:
    drawn = as_svg(Chart("<a>", [Line("b", [(1.0, 2.0)]), Line("c", [(3.0, 4.0)], "level")]))
    assert drawn.startswith('<svg viewBox="0 0 400 240" role="img" aria-label="&lt;a&gt;: b, c">')
    assert drawn.endswith("</svg>")


@pytest.mark.parametrize("value", [0.0, 1e-9, 3.0, 1e12])
def test_one_step_is_a_point_in_view(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Figure] = []
    save = Figure.savefig

    def saved(figure: Figure, *args: Any, **options: Any) -> None:
        seen.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    assert "<use " in as_svg(Chart("one", [Line("a", [(1.0, value)])]))
    [axes] = seen[0].axes
    low, high = axes.get_ylim()
    assert axes.get_xlim() == (0.0, 1.0)
    assert low <= value <= high


def test_a_run_without_a_step_has_a_picture(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    (run / "metrics.jsonl").unlink()
    assert charts(read_run(run)) == []
    write_loss_picture(read_run(run), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
