"""Peak memory of tuning over that of evaluating the same model at the same batch.

    python benchmarks/memory.py [--repeats 3] [--append]

Each figure is a resident size of a process of its own. All processes import the same modules, have run
the same kernels on a small model before they load theirs, and load it in the same way. Loading takes
the most (the file's pages beside the weights), so the peak is read twice: of the whole process, and
from the loaded model on. Raw bytes: runs/bench/memory.jsonl; a second call goes on from there.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import Log, arguments, report
from peers import AdamW, MezoProcedure, ZoAdam, gradients, mezo_loss, mezo_rows
from subject import DENSE, RANK1, RATE, batch_of, recipe_of, rows_of, warm

import zoft.inference.evaluate
import zoft.training.run
from zoft.engine.objectives.objective import objective_for
from zoft.models.adapters import attach_adapter
from zoft.models.load import load_model
from zoft.models.storage.fetch import local_safetensors
from zoft.recipe.sections.tune import TuneSection

TYPES = {  # name -> overrides: weights, compute
    "float32": ["model.compute_dtype=float32"],
    "bfloat16 over float32": ["model.compute_dtype=bfloat16"],
    "bfloat16 throughout": ["model.compute_dtype=bfloat16", "model.dtype=bfloat16"],
}
WAYS = {  # of tuning all weights -> overrides
    "rank-1 per example": ["optimizer.structure=rank1", "optimizer.paired=false"],
    "rank-1 per example, paired": ["optimizer.structure=rank1", "optimizer.paired=true"],
    "dense": ["optimizer.structure=dense", "optimizer.paired=false"],
    "dense, paired": ["optimizer.structure=dense", "optimizer.paired=true"],
}
LORA = {
    "LoRA": ["tune.method=lora", "optimizer.paired=false"],
    "LoRA, paired": ["tune.method=lora", "optimizer.paired=true"],
}
PEERS = ("MeZO's procedure, lm", "MeZO's procedure, choice", "ZO-Adam, lm", "AdamW", "AdamW, LoRA")
# The training batch as an evaluation batch: the same 16 rows, the same widths.
ROWS, BATCH = 64, 16
COMMON = [
    f"data.eval.limit={ROWS}", f"data.train.limit={ROWS}",
    f"eval.batch_size={BATCH}", f"train.batch_size={BATCH}",
]  # fmt: skip
peaks: list[int] = []  # bytes, of this process


def main() -> None:
    """Run the processes one after the other, turn by turn, and print a table."""
    parser = arguments(__doc__, repeats=3, steps=4)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        _child(a.child[0], a.recipe, a.steps, a.child[1:])
        return
    log = Log("memory", recipe=recipe_of(a.recipe).model_dump(mode="json"), steps=a.steps)
    for kind in a.types:  # compiles what the cache lacks; a compiler's memory is not measured
        if len(log.find(type=kind)) < a.repeats * len(_tasks(kind)):
            _peaks(a.recipe, a.steps, ["evaluating", *COMMON, *TYPES[kind]])
    for i in range(a.repeats):
        for kind in a.types:
            for what, changes in _tasks(kind).items():
                if not log.find(type=kind, what=what, repeat=i):
                    child = [what, *COMMON, *changes]
                    log.add(type=kind, what=what, repeat=i, bytes=_peaks(a.recipe, a.steps, child))
    lines = ["| weights and compute | what | whole process | model loaded | over evaluating |"]
    lines.append("|---" * 5 + "|")
    for kind in a.types:
        for what in _tasks(kind):
            rows = log.find(type=kind, what=what)[: a.repeats]
            base = log.find(type=kind, what=_baseline(what))[: a.repeats]
            whole, loaded = (_median(rows, column) / 2**20 for column in (0, 1))
            over = [f"{_median(rows, i) / _median(base, i):.3f}" for i in (0, 1)]
            ratio = "" if what == _baseline(what) else f"{over[0]}, loaded **{over[1]}**"
            lines.append(f"| {kind} | {what} | {whole:.0f} MiB | {loaded:.0f} MiB | {ratio} |")
    title = f"Peak memory, batch {BATCH}, medians of {a.repeats}"
    report(title, lines, to_file=a.append)


def _tasks(kind: str) -> dict[str, list[str]]:
    changes = TYPES[kind]
    found = {"evaluating": changes, **{name: changes + more for name, more in WAYS.items()}}
    if kind != "bfloat16 throughout":  # there the adapter would be bfloat16, too
        lora = {"evaluating for LoRA": ["tune.method=lora"], **LORA}
        found |= {name: changes + more for name, more in lora.items()}
    if kind != "bfloat16 over float32":  # the peers compute in the type in which they store
        found |= dict.fromkeys(PEERS, changes)
    return found


def _baseline(what: str) -> str:
    return "evaluating for LoRA" if "LoRA" in what and "AdamW" not in what else "evaluating"


def _median(rows: list[dict[str, Any]], column: int) -> float:
    return float(statistics.median(row["bytes"][column] for row in rows))


def _peaks(recipe: str, steps: int, child: list[str]) -> list[int]:
    """Bytes, whole process and from the loaded model on, as the process itself read them."""
    done = subprocess.run(
        [sys.executable, __file__, "--recipe", recipe, "--steps", str(steps), "--child", *child],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


# -- inside a process -------------------------------------------------------------------------------


def _child(what: str, recipe: str, steps: int, changes: list[str]) -> None:
    compute = "float32" if "model.compute_dtype=float32" in changes else "bfloat16"
    for probes in (DENSE, RANK1):
        for paired in (False, True):
            warm(compute, replace(probes, paired=paired))
    warm(compute, DENSE, moments="full")
    load = _and_reset(load_model)
    zoft.training.run.load_model = zoft.inference.evaluate.load_model = load  # type: ignore[attr-defined]
    if what.startswith("evaluating"):
        zoft.inference.evaluate.evaluate(recipe_of(recipe).model.name, recipe, changes)
    elif what in PEERS:
        _peer(what, recipe, steps, load, getattr(torch, compute))
    else:
        with tempfile.TemporaryDirectory() as folder:
            changes += ["~checkpoint", "~data.eval", f"train.steps={steps}"]
            changes = [x for x in changes if not x.startswith("data.eval.")]
            zoft.training.run.train(recipe, changes, output_dir=f"{folder}/run")
    print(json.dumps([max(*peaks, _peak()), _peak()]))


def _peer(what: str, recipe: str, steps: int, load: Callable[..., Any], dtype: torch.dtype) -> None:
    settings = recipe_of(recipe)
    choices, _ = rows_of(settings, ROWS)
    where = local_safetensors(settings.model.name, settings.model.revision)
    model = load(where, settings.model, dtype=dtype, device="cpu").model
    parts = [choices[i : i + BATCH] for i in range(0, ROWS, BATCH)]
    if "MeZO" in what or "ZO-Adam" in what:
        method = ZoAdam(model) if "Adam" in what else MezoProcedure(model)
        for i in range(steps):
            rows = mezo_rows(parts[i % len(parts)], classification="choice" in what)
            method.step(lambda rows=rows: mezo_loss(model, rows), seed=i, lr=RATE)  # type: ignore[misc]
        return
    if "LoRA" in what:
        model = attach_adapter(model, TuneSection(method="lora"), 0)
    objective = objective_for("choice")
    with gradients(model, only="lora_" if "LoRA" in what else ""):
        first = AdamW(model, RATE)
        for i in range(steps):
            first.step(batch_of(objective, parts[i % len(parts)]))


def _and_reset(load: Callable[..., Any]) -> Callable[..., Any]:
    """`load`, after which the loader's leftovers are freed and the peak starts anew."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        loaded = load(*arguments, **options)
        peaks.append(_peak())
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return loaded

    return wrapped


def _peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [line] = [x for x in lines if x.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
