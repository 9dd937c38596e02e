"""The picture of a range test: slopes on the left, losses on the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from zoft.engine.range_probes import Rung
from zoft.errors import EnvironmentProblem, disk_words, system_error
from zoft.system.atomic_io import staged


def plot_range(
    path: Path,
    rungs: Sequence[Rung],
    rest: float,
    tolerance: float,
    radius: float | None,
    best: Rung,
) -> None:
    """Write the file whole or not at all. Raises EnvironmentProblem if the disk refuses."""
    lengths = [rung.perturbation for rung in rungs]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    slopes, losses = figure.subplots(1, 2)
    slopes.plot(lengths, [rung.error for rung in rungs], "o-", label="error of a slope")
    noise = [1 / rung.signal_to_noise if rung.signal_to_noise else None for rung in rungs]
    slopes.plot(lengths, noise, "s:", label="its noise")
    slopes.axvline(best.perturbation, color="grey", linewidth=0.8)
    slopes.set(xscale="log", yscale="log", xlabel="perturbation", title="relative to |c|")
    slopes.legend()
    each = [[rest + rise for rise in rung.rises] for rung in rungs]
    for batch in zip(*each, strict=True):
        losses.plot(lengths, batch, color="tab:blue", linewidth=0.8, alpha=0.4)
    mean = [rest + rung.rise for rung in rungs]
    losses.plot(lengths, mean, "o-", label="loss after a random step")
    losses.axhline(rest, color="grey", linewidth=0.8)
    losses.axhline(
        (1 + tolerance) * rest, color="tab:red", linewidth=0.8, label=f"+{tolerance:.0%}"
    )
    if radius is not None:
        losses.axvline(radius, color="tab:red", linewidth=0.8)
    losses.set(xscale="log", xlabel="RMS length per weight", title="how far is far")
    losses.legend()
    try:
        with staged(path) as partial:
            figure.savefig(partial, format=path.suffix[1:], dpi=120)
    except Exception as error:  # Pillow has classes of its own for a full disk
        if (refused := system_error(error)) is None:
            raise
        raise EnvironmentProblem(f"cannot write {path}: {disk_words(refused)}") from error
