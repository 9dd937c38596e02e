"""Replaying a run: seconds of an update beside those of the whole step, and the size of artefacts.

    python benchmarks/replay.py [--repeats 12] [--runs runs/a runs/b] [--append]

A replayed step is the update sweep of a step of training. Both are timed in one and the same step, so
that other work on the machine meets both. `--runs` names finished runs: each is written as an artefact
and replayed from that alone into a folder that goes away; the replay itself compares the sha256.
"""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from machine import arguments, report
from subject import Probes, Step, batch_of, journal, recipe_of, rows_of, warm

from zoft.engine.objectives.objective import objective_for
from zoft.models.load import load_model
from zoft.models.storage.fetch import local_safetensors
from zoft.runs.artefact import shared_journal
from zoft.runs.checksum import marked
from zoft.runs.journal import as_line, read
from zoft.sharing.replay import replay
from zoft.system.device import DTYPES
from zoft.system.host_memory import keep_freed_memory

SHARED = Probes("rank1", paired=True)
EACH = Probes("rank1", per_example=True, paired=True)
STEP, SCALAR = 200, 12  # bytes that a step may take, and each of its numbers besides


def main() -> None:
    """Print the two tables."""
    parser = arguments(__doc__, batch=16, repeats=12)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--dtype", default="bfloat16", help="of the passes")
    parser.add_argument("--runs", nargs="*", default=[], type=Path, help="finished runs")
    a = parser.parse_args()
    keep_freed_memory()
    lines = list(_speeds(a.recipe, a.dtype, a.batch, a.repeats)) if a.repeats else []
    lines += ["", f"The checksum of a line: {_checksum_seconds() * 1e6:.1f} us a step."]
    if a.runs:
        lines += ["", *_artefacts(a.runs)]
    report(f"Replay, batch {a.batch}, {a.dtype} passes", lines, to_file=a.append)


def _checksum_seconds(pairs: int = 3000) -> float:
    """What the checksum adds to a line of 48 numbers: the median over pairs, nothing synced."""
    chance, more = random.Random(0), []
    for step in range(1, pairs + 1):
        slopes = [round(chance.gauss(0, 9), 7) for _ in range(48)]
        line = as_line({"step": step, "lr": 1e-4, "projected_grad": slopes})
        begun = time.perf_counter()
        marked(line, 0)
        more.append(time.perf_counter() - begun)
    return statistics.median(more)


def _speeds(name: str, dtype: str, batch: int, repeats: int) -> Iterator[str]:
    recipe, objective = recipe_of(name), objective_for("choice")
    rows, _ = rows_of(recipe, limit=batch * (repeats + 2))
    rows.sort(key=lambda x: len(x.prompt))
    yield "| directions | step, s | update, s | step / update (least to most) |"
    yield "|---|---|---|---|"
    for probes in (SHARED, EACH):
        warm(dtype, probes)
        where = local_safetensors(recipe.model.name, recipe.model.revision)
        model = load_model(where, recipe.model, dtype=DTYPES["float32"], device="cpu").model
        wholes, updates = [], []
        with journal() as log:
            step = Step(model, dtype, probes, log)
            for i in range(repeats + 2):
                begun = time.perf_counter()
                step(objective, batch_of(objective, rows[i * batch : (i + 1) * batch]))
                wholes.append(time.perf_counter() - begun)
                updates.append(step.update_seconds)
        wholes, updates = wholes[2:], updates[2:]  # the first steps load kernels and grow arenas
        ratios = [whole / update for whole, update in zip(wholes, updates, strict=True)]
        number = batch if probes.per_example else 1
        yield (
            f"| {number} | {statistics.median(wholes):.3f} | {statistics.median(updates):.3f} | "
            f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |"
        )


def _artefacts(runs: list[Path]) -> Iterator[str]:
    yield "| run | steps | numbers a step | artefact, bytes | bound, bytes | header | replay, s |"
    yield "|---|---|---|---|---|---|---|"
    for run in runs:
        with TemporaryDirectory(dir=run.parent) as place:
            folder = Path(place, "artefact")
            folder.mkdir()
            file = folder / "journal.jsonl"
            file.write_bytes(shared_journal(run / "journal.jsonl"))
            if (run / "start").is_dir():
                shutil.copytree(run / "start", folder / "start")
            _, entries = read(file)
            number = len(entries[0].measurement.projected_grad)
            bound = len(entries) * (STEP + SCALAR * number)
            header = len(file.read_bytes().partition(b"\n")[0])
            begun = time.perf_counter()
            replay(str(folder), out=str(Path(place, "out")))  # raises if a byte differs
            seconds = time.perf_counter() - begun
            yield (
                f"| {run.name} | {len(entries)} | {number} | {file.stat().st_size:,} | {bound:,} | "
                f"{header:,} | {seconds:.1f} |"
            )


if __name__ == "__main__":
    main()
