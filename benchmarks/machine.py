"""Under every table: what it was measured on, from which commit, by which command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch


def stamp() -> str:
    """Machine, versions, commit, command: one line of markdown."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    command = shlex.join(
        ["python", *(Path(a).name if Path(a).is_absolute() else a for a in sys.argv)]
    )
    return (
        f"{_cpu()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"commit {commit or 'unknown'}: `{command}`"
    )


def append(text: str) -> None:
    """Add a section to RESULTS.md."""
    with (Path(__file__).parent / "RESULTS.md").open("a", encoding="utf-8") as results:
        results.write(f"\n{text}")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "CPU")
