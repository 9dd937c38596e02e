"""report.html: a run on one page that needs nothing else, and loss.png."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from zoft.errors import EnvironmentProblem
from zoft.runs.console.progress import clock
from zoft.runs.journal import read
from zoft.runs.journal_report import statistics_of
from zoft.runs.metrics import Event, in_words
from zoft.runs.record import RunRecord, leaves, read_run
from zoft.runs.report.charts import as_svg, charts, write_loss_picture
from zoft.runs.report.style import STYLE
from zoft.system.atomic_io import staged, write_atomically
from zoft.system.host_memory import gib

Rows = Sequence[tuple[str, str]]


@contextmanager
def reported(run: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Leave a report of the run, however it ends; that it cannot be drawn is no failure of the run.

    Who stops a run does not wait for a picture: its report comes without loss.png.
    """
    stopped = True
    try:
        yield
        stopped = False
    finally:
        if (run / "metrics.jsonl").is_file():
            try:
                write_report(run, picture=not stopped)
            except Exception as error:  # whatever it is, it must not hide how the run ended
                summary = next(iter(str(error).splitlines()), "")
                say(f"warning: no report.html: {type(error).__name__}: {summary}")


def write_report(path: Path, *, picture: bool = True) -> Path:
    """Write report.html and loss.png into a run's folder; returns the page's path."""
    run = read_run(path)
    if picture:
        with staged(path / "loss.png") as partial:
            if (drawn := path / "final" / "loss.png").is_file():  # at the run's end
                shutil.copyfile(drawn, partial)
            else:
                write_loss_picture(run, partial)
    page = path / "report.html"
    write_atomically(page, report(run))
    return page


def report(run: RunRecord) -> str:
    """The page: results, curves, the journal's numbers, time and memory, settings, versions."""
    title = escape(run.name)
    sections = [
        ("Result", _table(_results(run), head=("", "score"))),
        ("Curves", f'<div class="charts">{"".join(_charts(run))}</div>'),
        ("Journal", _table(_journal(run))),
        ("Time and memory", _table(_costs(run))),
        ("Settings", _settings(run)),
        ("Where it ran", _table(_surroundings(run))),
    ]
    body = "".join(f"<section><h2>{name}</h2>{text}</section>" for name, text in sections if text)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{title} - zoft</title><style>{STYLE}</style></head>'
        f"<body><main><h1>{title}</h1><p>{escape(_summary(run))}</p>{body}</main></body></html>\n"
    )


def _summary(run: RunRecord) -> str:
    of = f" of {run.steps:,}" if run.steps else ""
    text = f"{run.status} after {run.step:,}{of} steps"
    if run.recipe:
        recipe = run.recipe
        text += f": {recipe.model.name}, tune.method {recipe.tune.method}, {recipe.optimizer.name}"
    return text


def _results(run: RunRecord) -> Rows:
    events: list[tuple[str, Event | None]] = [
        ("before tuning", run.zero_shot),
        ("tail alone", run.tail),
        ("best", run.best),
        ("last", run.last),
    ]
    events += [("test", event) for event in run.of("final") if event.get("set") == "test"]
    return [
        (f"{what}, step {event['step']:,}" if event["step"] else what, in_words(event))
        for what, event in events
        if event
    ]


def _charts(run: RunRecord) -> Iterator[str]:
    for chart in charts(run):
        yield f"<figure><figcaption>{escape(chart.title)}</figcaption>{as_svg(chart)}</figure>"


def _journal(run: RunRecord) -> Rows:
    try:
        found = statistics_of(read(run.path / "journal.jsonl")[1])
    except (OSError, EnvironmentProblem):
        return []
    rows = [
        ("steps", f"{found.steps:,}"),
        ("skipped, for a loss that was not finite", f"{found.nonfinite:,}"),
        ("slopes c measured", f"{len(found.sizes):,}"),
    ]
    if found.sizes:
        size = {p: f"{found.percentile(p):.3g}" for p in (25, 50, 75, 95)}
        rows += [
            ("of these positive", f"{found.positive / len(found.sizes):.1%}"),
            ("|c|: median", size[50]),
            ("|c|: middle half", f"{size[25]} to {size[75]}"),
            ("|c|: 95 % below", size[95]),
            ("|c|: largest", f"{found.sizes[-1]:.3g}"),
        ]
    noise = run.manifest.get("noise") or {}
    if noise.get("noise") and noise.get("projected_grad"):
        ratio = abs(noise["projected_grad"]) / noise["noise"]
        rows.append(("signal to rounding noise, at the start", f"{min(ratio, 9999):.1f}"))
    return rows


def _costs(run: RunRecord) -> Rows:
    taken = run.of("train")
    rows = [("wall time", clock(run.seconds)), ("forward passes", f"{run.forward_passes:,}")]
    if taken:
        tokens, seconds = (sum(e[key] for e in taken) for key in ("tokens", "seconds"))
        padding = sum(e["padding"] for e in taken) / len(taken)
        rows += [
            ("a step (median)", f"{median(e['seconds'] for e in taken):.3g} s"),
            ("all steps", clock(seconds)),
            ("useful tokens", f"{tokens:,} ({tokens / max(seconds, 1e-9):,.0f} a second)"),
            ("padding", f"{padding:.1%} of a batch"),
        ]
    for kind, what in (("eval", "evaluations"), ("checkpoint", "checkpoints")):
        if events := run.of(kind):
            rows.append((f"{len(events)} {what}", clock(sum(e["seconds"] for e in events))))
    if run.peak_memory_bytes:
        rows.append(("peak memory", gib(run.peak_memory_bytes)))
    if planned := run.manifest.get("planned_memory_bytes"):
        rows.append(("peak memory as planned", gib(planned)))
    return rows


def _settings(run: RunRecord) -> str:
    """Those that are no default; those that `auto` stands for; all of them."""
    if run.recipe is None:
        return ""
    found = list(leaves(run.recipe))
    chosen = [(k, _value(v)) for k, v, default in found if default != "auto" and v != default]
    settled = [(k, _value(v)) for k, v, default in found if default == "auto"]
    everything = [(k, _value(v)) for k, v, _ in found]
    return (
        f"<h3>Not the default</h3>{_table(chosen)}"
        f"<details><summary>Settled where the default is auto ({len(settled)})</summary>"
        f"{_table(settled)}</details>"
        f"<details><summary>All ({len(everything)})</summary>{_table(everything)}</details>"
    )


def _surroundings(run: RunRecord) -> Rows:
    manifest = run.manifest
    known = [key for key in ("started", "device", "cpu", "threads") if key in manifest]
    rows: list[tuple[str, str]] = [(key, _value(manifest[key])) for key in known]
    base = manifest.get("base") or {}
    rows += [("base model, sha256", str(base["sha256"]))] if base.get("sha256") else []
    rows += [(name, str(version)) for name, version in (manifest.get("versions") or {}).items()]
    command = manifest.get("command")
    return [*rows, ("command", " ".join(map(str, command)))] if command else rows


def _table(rows: Rows, head: tuple[str, str] | None = None) -> str:
    if not rows:
        return ""
    top = f"<tr><th>{head[0]}</th><th>{head[1]}</th></tr>" if head else ""
    cells = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{top}{cells}</table>"


def _value(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
