"""What the benchmarks share: what was measured on, raw numbers kept on disk, and medians."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RAW = Path("runs/bench")


def arguments(documentation: str | None, **defaults: int) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes: --append, and a number of `defaults` by name."""
    parser = argparse.ArgumentParser(description=(documentation or "").partition("\n")[0])
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    parser.add_argument("--append", action="store_true", help="append the tables to RESULTS.md")
    return parser


def stamp() -> str:
    """Machine, versions, commit, command: one line of markdown."""
    commit = subprocess.run(
        ["git", "-C", str(HERE), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    command = shlex.join(
        ["python", *(Path(a).name if Path(a).is_absolute() else a for a in sys.argv)]
    )
    threads = torch.get_num_threads()
    return (
        f"{_cpu()}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}, "
        f"commit {commit or 'unknown'}: `{command}`"
    )


def report(title: str, lines: Sequence[str], *, to_file: bool, level: int = 3) -> None:
    """Print a section with its stamp, and add it to RESULTS.md."""
    text = "\n".join([f"{'#' * level} {title}", "", *lines, "", stamp(), ""])
    print(text)
    if to_file:
        append(text)


def append(text: str) -> None:
    """Add a section to RESULTS.md."""
    with (HERE / "RESULTS.md").open("a", encoding="utf-8") as results:
        results.write(f"\n{text}")


class Log:
    """Raw numbers as JSON lines in runs/bench/NAME.jsonl: a benchmark that was stopped goes on.

    Rows count only if they were taken on the same processor with the same number of threads, with the
    same sources and the same `settings`; others stay in the file.
    """

    def __init__(self, name: str, **settings: object) -> None:
        self.path = RAW / f"{name}.jsonl"
        conditions = {
            **settings,
            "cpu": _cpu(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "code": code(),
        }
        self.key = _digest(json.dumps(conditions, sort_keys=True, default=str).encode())
        self.rows: list[dict[str, Any]] = []
        lines = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for line in lines.splitlines(keepends=True):
            row = json.loads(line) if line.endswith("}\n") else {}  # else: torn by a kill
            if row.pop("key", None) == self.key:
                self.rows.append(row)
        if self.rows:
            print(f"{len(self.rows)} measurements are in {self.path} already", file=sys.stderr)
        if lines and not lines.endswith("\n"):
            self._write("\n")

    def find(self, **where: object) -> list[dict[str, Any]]:
        """The rows with these values, oldest first."""
        return [x for x in self.rows if all(x.get(key) == want for key, want in where.items())]

    def add(self, **row: object) -> None:
        """Keep one row, at once."""
        self.rows.append(row)
        self._write(json.dumps({"key": self.key, **row}) + "\n")
        print(f"  {json.dumps(row)[:200]}", file=sys.stderr, flush=True)

    def _write(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)


def code() -> str:
    """A digest of every source that a measurement may depend on: zoft, the peers, the script."""
    files = {HERE / "peers.py", Path(sys.argv[0]).resolve(), *(HERE.parent / "zoft").rglob("*.py")}
    return _digest(b"\0".join(x.read_bytes() for x in sorted(files) if x.is_file()))


def spread(values: Sequence[float], digits: int = 3) -> str:
    """The median in bold, the quartiles in brackets."""
    if len(values) < 2:
        return f"**{values[0]:.{digits}f}**"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"**{middle:.{digits}f}** ({low:.{digits}f} to {high:.{digits}f})"


def ratios(rows: Sequence[Mapping[str, float]], above: str, below: str) -> list[float]:
    """The quotient of two columns, repeat by repeat."""
    return [row[above] / row[below] for row in rows if above in row and below in row]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "CPU")
