"""`kill -9` and SIGTERM at random moments of a run, and the sha256 of what comes out in the end."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PAUSE = 0.0005  # seconds between two looks at the journal


def uninterrupted(recipe: str, changes: list[str], folder: Path) -> str:
    """Train in one go; the sha256 of the final weights."""
    subprocess.run(_command(recipe, changes, folder), check=True, stdout=subprocess.DEVNULL)
    return digest(folder)


def killed(
    recipe: str, changes: list[str], folder: Path, *, steps: int, times: int
) -> tuple[str, list[int]]:
    """Kill the run `times` times at random steps, resume each time; sha256 and the steps reached."""
    chance = random.Random(f"{folder.name} {times}")
    journal, reached = folder / "journal.jsonl", []
    for moment in sorted(chance.sample(range(1, steps), times)):
        with subprocess.Popen(_command(recipe, changes, folder), stdout=subprocess.DEVNULL) as run:
            while run.poll() is None and _steps(journal) < moment:
                time.sleep(PAUSE)
            time.sleep(chance.random() * PAUSE * 40)  # anywhere within a step
            run.send_signal(signal.SIGKILL)
        reached.append(_steps(journal))
    return uninterrupted(recipe, changes, folder), reached


def stopped(
    recipe: str, changes: list[str], folder: Path, *, seconds: float, times: int
) -> tuple[str, list[tuple[int, float]]]:
    """SIGTERM at `times` random moments, each within so many seconds of a part of the run; a run that
    finishes first begins anew. sha256, and for each stop the exit code and the seconds it took."""
    chance = random.Random(f"{folder.name} {times}")
    stops: list[tuple[int, float]] = []
    while len(stops) < times:
        with subprocess.Popen(
            _command(recipe, changes, folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as run:
            time.sleep(chance.random() * seconds)
            begun, running = time.perf_counter(), run.poll() is None
            run.send_signal(signal.SIGTERM)
            _, said = run.communicate()
        if running and run.returncode:
            # Python takes a tenth of a second before it can answer: then the signal itself kills
            # it, which a shell says as 128 + signal, too.
            code = 128 - run.returncode if run.returncode < 0 else run.returncode
            stops.append((code, time.perf_counter() - begun))
            assert said.count(b"\n") <= 1, said.decode()
        else:
            shutil.rmtree(folder)
    return uninterrupted(recipe, changes, folder), stops


def digest(folder: Path) -> str:
    """sha256 of the weights in final/."""
    [file] = (folder / "final").glob("*model.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _steps(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0


def _command(recipe: str, changes: list[str], folder: Path) -> list[str]:
    command = [sys.executable, "-m", "zoft", "train", recipe, *changes]
    return [*command, "--output-dir", str(folder), "--resume", "auto"]
