"""Steps of models that do not fit: blocks from the disk, inside a memory limit.

    python scripts/make_model.py llama-7b models/llama-7b
    sudo python benchmarks/streaming.py models/llama-7b --tune lora --limit 2.5GB
    python scripts/make_model.py opt-1.3b models/opt-1.3b
    sudo python benchmarks/streaming.py models/opt-1.3b --tune full --limit 1.5GB

The limit is a memory control group's (v1 or v2; making one takes root), page cache included, over a
whole `zoft train`: loading, the look at the noise, steps, the final save. Without --limit nothing is
limited. Prints the group's peak, the process's, seconds a step and the share of them that the
computation stood still for the disk. Weights may be random: neither figure depends on them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from plan import write_tokenizer
from pydantic import ByteSize, TypeAdapter

ROOT = Path("/sys/fs/cgroup")
RECIPE = """\
model: {{name: {model}, residency: {residency}, dtype: {dtype}, compute_dtype: bfloat16}}
tune: {{method: {tune}}}
data:
  train: {{path: {folder}/train.jsonl}}
  format: text
  max_length: {tokens}
  on_overflow: truncate
memory: {{device_budget: {budget}}}
train: {{steps: {steps}, batch_size: {batch}}}
logging: {{every: 1}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a folder in Hugging Face form")
    parser.add_argument("--tune", choices=["lora", "full"], default="lora")
    parser.add_argument("--residency", choices=["device", "disk"], default="disk")
    parser.add_argument("--limit", type=TypeAdapter(ByteSize).validate_python, help="e.g. 2.5GB")
    parser.add_argument("--budget", default="auto", help="memory.device_budget of the recipe")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32, help="of each example")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", help="of tuned weights")
    parser.add_argument(
        "--folder", type=Path, help="where the run lies (default: beside the model)"
    )
    parser.add_argument("changes", nargs="*", help="section.key=value, to the recipe")
    args, more = parser.parse_known_args()
    if not (args.model / "tokenizer_config.json").exists():
        write_tokenizer(args.model)
    place = args.folder or args.model.parent
    with tempfile.TemporaryDirectory(dir=place) as name:
        print_figures(args, Path(name), [*args.changes, *more])


def print_figures(args: argparse.Namespace, folder: Path, changes: list[str]) -> None:
    lines = (
        json.dumps({"text": f"{i:04d} " + "word " * args.tokens}) for i in range(4 * args.batch)
    )
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        RECIPE.format(
            model=args.model.resolve(),
            folder=folder,
            tune=args.tune,
            residency=args.residency,
            dtype=args.dtype,
            tokens=args.tokens,
            budget=args.budget,
            batch=args.batch,
            steps=args.steps,
        )
    )
    group = Group(args.limit) if args.limit else None
    command = [sys.executable, "-m", "zoft", "train", str(recipe), *changes]
    command += ["--output-dir", str(folder / "run")]
    try:
        done = subprocess.run(command, preexec_fn=group.join if group else None, check=False)
        if done.returncode:
            sys.exit(f"zoft train ended with {done.returncode}")
        events = [
            json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()
        ]
        steps = [event for event in events if event["event"] == "train"]
        seconds = statistics.median(event["seconds"] for event in steps)
        waited = statistics.median(event.get("waited", 0.0) / event["seconds"] for event in steps)
        manifest = json.loads((folder / "run" / "run.json").read_text())
        limited = f", group {group.peak / 1e9:.2f} of {args.limit / 1e9:.2f} GB" if group else ""
        print(
            f"| {args.model.name} {args.tune} {args.residency} {args.batch} x {args.tokens} | "
            f"{seconds:.2f} s a step | {waited:.0%} waiting | process "
            f"{manifest['peak_memory_bytes'] / 1e9:.2f} GB{limited} |"
        )
    finally:
        if group:
            group.remove()
        shutil.rmtree(folder / "run", ignore_errors=True)


class Group:
    """A memory control group with a limit in bytes."""

    def __init__(self, limit: int) -> None:
        old = (ROOT / "memory").is_dir()
        self.folder = (ROOT / "memory" if old else ROOT) / f"zoft-{os.getpid()}"
        names = ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
        self._limit, self._peak = names if old else ("memory.max", "memory.peak")
        try:
            self.folder.mkdir()
            (self.folder / self._limit).write_text(str(int(limit)))
        except OSError as error:
            sys.exit(f"cannot make a memory control group: {error}")

    def join(self) -> None:
        """Put the calling process into it."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def peak(self) -> int:
        return int((self.folder / self._peak).read_text())

    def remove(self) -> None:
        self.folder.rmdir()


if __name__ == "__main__":
    main()
