"""The whole campaign in order of worth: each part is a process of its own, with a time limit.

    python -m gpu.campaign --out DIR [--minutes 10] [--rehearse] [--card NAME] [--commit ID]

A part appends its rows to DIR/gpu.jsonl as it finds them; DIR/gpu.md is written anew from these
whenever there are more. So a cut leaves what was measured, and a part that crashes, hangs or is killed
takes nothing from the others. What parts print is in DIR/gpu.log. Exit 1 if one did not end well.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gpu.floors import CARD
from gpu.results import LOG, PARTS, ROWS, Results

# Of a rehearsal's processes: no GPU, Triton's interpreter, and no threads that wait for each other.
REHEARSAL = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), "")
REHEARSAL |= dict.fromkeys(("TRITON_INTERPRET", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
TURN = 0.2  # seconds between two looks at a part
GRACE = 3.0  # seconds that a part has to end by itself after SIGTERM
LEAST = 10.0  # seconds without which no part is begun
SAID, LONGEST = 3, 400  # last lines of a failed part that stand in its row, and their characters


@dataclass(frozen=True)
class Part:
    """A module that is run as a program, its arguments, and the most seconds that it may take in a
    campaign of ten minutes."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    seconds: float = 300.0


class Stopped(Exception):
    """SIGTERM or Ctrl-C: what runs is ended, and what was found is written."""


def main() -> None:
    """Read the options, and run what they ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes, on the CPU")
    parser.add_argument("--card", default="card unknown", help="and its driver")
    parser.add_argument("--commit", default="commit unknown")
    a = parser.parse_args()
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    title = f"{a.card}, torch {version('torch')}, {a.commit}, {date}"
    title += ", REHEARSED on the CPU with tiny shapes" if a.rehearse else ""
    if a.rehearse:
        os.environ |= REHEARSAL
        import zoft.training.run  # noqa: F401  (once for all parts, which are forked)
    todo = parts(a.out, rehearse=a.rehearse)
    sys.exit(run(todo, a.out, title, a.minutes, method="fork" if a.rehearse else "spawn"))


def parts(out: Path, *, rehearse: bool) -> list[Part]:
    """The most telling first. A rehearsal runs all of the code, each of it once."""

    def part(seconds: float, module: str, *arguments: str, name: str = "") -> Part:
        options = ("--out", str(out), *(["--rehearse"] if rehearse else []), *arguments)
        named = name or " ".join([module, *arguments[1:]])
        return Part(named, f"gpu.parts.{module}", options, seconds)

    def steps(shape: str, dtype: str, seconds: float) -> Part:
        named = f"steps {shape} {dtype}"
        return part(seconds, "steps", "--shapes", shape, "--types", dtype, name=named)

    if rehearse:
        return [
            part(300, "doctor"),
            part(300, "tests"),
            part(300, "training"),
            part(300, "steps", "--shapes", "llama-1b", "--types", "bfloat16", name="steps"),
            part(300, "sweeps"),
            part(300, "offload", "--shapes", "llama-7b", "opt-13b", name="offload"),
            part(300, "backprop", "--shapes", "llama-1b", name="backprop"),
            part(300, "trace"),
        ]
    return [
        part(120, "doctor"),
        part(90, "tests"),
        part(120, "training"),
        part(30, "sweeps"),
        steps("llama-1b", "bfloat16", 45),
        steps("llama-7b", "bfloat16", 100),
        part(90, "offload", "--shapes", "llama-7b"),
        part(120, "offload", "--shapes", "opt-13b"),
        part(60, "backprop", "--shapes", "llama-1b", "llama-7b"),
        part(30, "trace"),
        steps("llama-1b", "float16", 45),
        steps("llama-7b", "float16", 100),
    ]


def run(
    parts: Sequence[Part], out: Path, title: str, minutes: float = 10.0, method: str = "spawn"
) -> int:
    """Run the parts one after the other, as long as the minutes last. Returns 1 if one went wrong.

    `method` starts their processes: `spawn` from nothing, as a GPU's driver wants it, or `fork`.
    """
    out.mkdir(parents=True, exist_ok=True)
    results, end = Results(out), time.monotonic() + 60 * minutes
    signal.signal(signal.SIGTERM, _stop)
    wrong, stopped = False, False
    for part in parts:
        begun, left = time.monotonic(), end - time.monotonic()
        limit = min(part.seconds * max(1.0, minutes / 10), left)
        how: str | None = "left out: the campaign was stopped"
        if not stopped and left < LEAST:
            how = f"left out: the {minutes:g} minutes are over"
        elif not stopped:
            print(f"== {part.name}, at most {limit:.0f} s", flush=True)
            try:
                how = _run(part, limit, results, title, method)
            except (Stopped, KeyboardInterrupt):
                how, stopped = "stopped", True
            wrong = wrong or how is not None
        row = {"part": part.name, "ended": how or "well"}
        results.emit(PARTS, **row, seconds=round(time.monotonic() - begun, 1))
        results.write_page(title, CARD)
    return int(wrong or stopped)


def _run(part: Part, limit: float, results: Results, title: str, method: str) -> str | None:
    """Wait for a part, and write the page whenever it has found more. Returns what went wrong."""
    log, rows = results.folder / LOG, results.folder / ROWS
    with log.open("a", encoding="utf-8") as file:
        print(f"== {part.name}", file=file, flush=True)
        before = file.tell()
    sys.stdout.flush()
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=_inside, args=(part, log))
    process.start()
    end, seen = time.monotonic() + limit, -1
    try:
        while process.is_alive():
            size = rows.stat().st_size if rows.exists() else 0
            if size != seen:
                results.write_page(title, CARD)
                seen = size
            if time.monotonic() > end:
                return f"cut off after {limit:.0f} s"
            process.join(TURN)
    finally:
        _end(process)
    if process.exitcode == 0:
        return None
    how = f"exit {process.exitcode}"
    if process.exitcode < 0:
        how = f"killed by {signal.Signals(-process.exitcode).name}"
    with log.open("rb") as printed:
        printed.seek(before)
        lines = printed.read().decode(errors="replace").strip().splitlines()[-SAID:]
    said = " / ".join(" ".join(line.split()) for line in lines)
    return f"{how}: {said[-LONGEST:]}" if said else how


def _inside(part: Part, log: Path) -> None:
    """What the part's process does: it leads a group of its own, and prints to the log."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [part.module, *part.arguments]
    runpy.run_module(part.module, run_name="__main__", alter_sys=True)


def _end(process: BaseProcess) -> None:
    """End the part and all that it started."""
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        if process.is_alive() and process.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            process.join(seconds)


def _stop(*_: object) -> None:
    raise Stopped


if __name__ == "__main__":
    main()
