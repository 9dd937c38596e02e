"""`zoft runs ls|show|compare`: runs as tables, from their folders alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoft.errors import EnvironmentProblem, RecipeError, disk_words, system_error
from zoft.runs.console.progress import clock
from zoft.runs.metrics import Event, format_primary, in_words, primary_metric
from zoft.runs.record import RunRecord, find_runs, leaves, read_run
from zoft.runs.report.page import write_report
from zoft.system.host_memory import gib

PIPED = 10_000  # columns
WIDE = 100  # a narrower terminal does without the size
COLOURS = {"finished": "green", "running": "cyan", "interrupted": "yellow", "killed": "yellow"}
# Of the place, not of the run.
OWN = ("output_dir",)


def list_runs(folder: Path) -> None:
    """Print the runs in a folder, the newest first. Raises EnvironmentProblem."""
    runs = find_runs(folder)
    if not runs:
        print(f"no runs in {folder}")
        return
    console = _console()
    columns = ["run", "status", "step", "model", "method", "best (zero-shot)", "time", "size"]
    shown = columns if console.width >= WIDE else columns[:-1]
    table = _table(*shown)
    for column in table.columns:  # where it is narrow, the model's name is cut short
        column.overflow, column.no_wrap = "ellipsis", column.header != "model"
    for run in runs:
        cells: list[str | Text] = [
            run.name,
            Text(run.status, style=COLOURS.get(run.status, "red")),
            f"{run.step}/{run.steps or '?'}",
            run.broken or _model(run),
            run.recipe.tune.method if run.recipe else "-",
            _scores(run),
            clock(run.seconds),
            _size(run.size()),
        ]
        table.add_row(*cells[: len(shown)])
    _print(table, console)


def show_run(path: Path) -> None:
    """Print what a run is and what came out; draw its report if it has none."""
    run = read_run(path)
    of = f" of {run.steps:,}" if run.steps else ""
    status = f"{run.status}: {run.broken}" if run.broken else run.status
    rows: list[tuple[str, str]] = [
        ("run", str(path)),
        ("status", f"{status}, step {run.step:,}{of}"),
    ]
    if run.recipe:
        recipe = run.recipe
        rows += [
            ("model", recipe.model.name),
            ("tuned", f"{recipe.tune.method}, {recipe.optimizer.name}, lr {recipe.optimizer.lr:g}"),
        ]
    scored = {
        "before tuning": run.zero_shot,
        "tail alone": run.tail,
        "best": run.best,
        "last": run.last,
    }
    for what, event in scored.items():
        rows += [(what, _at(event))] if event else []
    rows += [("test", in_words(e)) for e in run.of("final") if e.get("set") == "test"]
    rows += [("forward passes", f"{run.forward_passes:,}"), ("wall time", clock(run.seconds))]
    if run.peak_memory_bytes:
        rows.append(("peak memory", gib(run.peak_memory_bytes)))
    rows.append(("on the disk", _size(run.size())))
    rows += [("checkpoint", saved.name) for saved in sorted(path.glob("checkpoint-*"), key=_number)]
    rows += [("result", str(path / "final"))] if (path / "final").is_dir() else []
    page = path / "report.html"
    drawn = page.is_file() and (path / "loss.png").is_file()
    refused: OSError | None = None
    if not drawn and run.events:
        try:
            write_report(path)
        except (
            Exception
        ) as error:  # matplotlib and Pillow have classes of their own for a full disk
            if (refused := system_error(error)) is None:
                raise
    rows += [("report", str(page))] if page.is_file() else []
    if run.status in ("interrupted", "killed", "failed"):
        rows.append(("go on with", f"zoft train {path / 'resolved.yaml'} --resume {path}"))
    for name, value in rows:
        print(f"{name:<14} {value}")
    if refused is not None:
        raise EnvironmentProblem(f"{page} cannot be written: {disk_words(refused)}") from refused


def compare_runs(paths: Sequence[Path]) -> None:
    """Print settings that differ, scores and costs of runs side by side. Raises RecipeError for one."""
    if len(paths) < 2:
        raise RecipeError("zoft runs compare takes at least two runs")
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    titles = names if len(set(names)) == len(names) else [str(path) for path in paths]
    table = _table("", *titles)
    settings = [_settings(run) for run in runs]
    for key in dict.fromkeys(key for found in settings for key in found):
        values = [_shown(found.get(key)) for found in settings]
        if len(set(values)) > 1 and key not in OWN:
            table.add_row(key, *values)
    rows: list[tuple[str, list[str]]] = [
        ("status", [run.status for run in runs]),
        ("steps", [f"{run.step:,}" for run in runs]),
        ("forward passes", [f"{run.forward_passes:,}" for run in runs]),
        ("zero-shot", [_short(run.zero_shot) for run in runs]),
        ("best", [_short(run.best) for run in runs]),
        ("last", [_short(run.last) for run in runs]),
        ("last loss", [_loss(run.last) for run in runs]),
        ("time", [clock(run.seconds) for run in runs]),
        ("peak memory", [gib(run.peak_memory_bytes or 0) for run in runs]),
    ]
    for name, values in rows:
        table.add_row(name, *values)
    _print(table, _console())


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _console() -> Console:
    """The terminal; piped, wide enough for a row to stay a line."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPED)


def _print(table: Table, console: Console) -> None:
    with console.capture() as capture:
        console.print(table, highlight=False)
    for line in capture.get().splitlines():
        print(line.rstrip())


def _model(run: RunRecord) -> str:
    """The last part of a Hub id or a path."""
    return Path(run.recipe.model.name).name if run.recipe else "-"


def _scores(run: RunRecord) -> str:
    if not run.zero_shot:
        return "-"
    before = format_primary(run.zero_shot)
    if not run.best:
        return f"({before})"
    score = before.removeprefix(primary_metric(run.zero_shot)[0]).strip()
    return f"{format_primary(run.best)} ({score})"


def _at(event: Event) -> str:
    return in_words(event) + (f", step {event['step']:,}" if event["step"] else "")


def _short(event: Event | None) -> str:
    return format_primary(event) if event else "-"


def _loss(event: Event | None) -> str:
    return "-" if event is None or event.get("loss") is None else f"{event['loss']:.4f}"


def _settings(run: RunRecord) -> dict[str, Any]:
    return {key: value for key, value, _ in leaves(run.recipe)} if run.recipe else {}


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _size(size: int) -> str:
    for unit, width in (("GB", 1e9), ("MB", 1e6)):
        if size >= width:
            return f"{size / width:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


def _number(checkpoint: Path) -> int:
    digits = checkpoint.name.removeprefix("checkpoint-")
    return int(digits) if digits.isdigit() else -1
