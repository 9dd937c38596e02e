"""Peak memory of full tuning over that of evaluating the same model at the same batch.

    python benchmarks/memory.py [--append]

Each figure is a resident size of a process of its own. Both processes import the same modules, load the
model in the same way and have the compiled kernels in numba's cache; the evaluation runs each kernel on
a few numbers, so that both carry the compiler's library. Loading takes the most in both (the file's
pages beside the weights), so the peak is read twice: of the whole process, and from the loaded model on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile

from machine import append, stamp

COMMON = """
import json, sys, torch
import zoft.evaluate, zoft.run
from pathlib import Path


def peak():
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1]) * 1024


def load_and_reset(load):
    def wrapped(*args, **kwargs):
        model = load(*args, **kwargs)
        peaks.append(peak())
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        return model
    return wrapped


peaks = []
"""
EVALUATE = """
from zoft.kernels import cpu
from zoft.kernels.terms import Rounding, make_terms
w, z = torch.zeros(10), dict(seed=0, step=0, param=0, k=0, scale=1.0, gaussian=False)
cpu.perturb(torch.zeros(10), w, **z)
cpu.perturb(torch.zeros(10, dtype=torch.bfloat16), w, **z)
cpu.perturb_rows(torch.zeros(1, 2), w.view(5, 2), torch.tensor([0]), **z)
one = make_terms(0, False, [(1, 0)], [1.0])
cpu.add_directions(w, one, param=0, decay=1.0, rounding=Rounding(0, 1))
zoft.evaluate.load_model = load_and_reset(zoft.evaluate.load_model)
zoft.evaluate.evaluate(sys.argv[1], sys.argv[2], sys.argv[3:])
"""
TRAIN = """
zoft.run.load_model = load_and_reset(zoft.run.load_model)
zoft.run.train(sys.argv[2], sys.argv[4:], output_dir=sys.argv[3])
"""
REPORT = """
print(json.dumps([max(*peaks, peak()), peak()]))
"""


def main() -> None:
    """Run the processes one after the other and print a row per compute type."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--append", action="store_true", help="append the table to RESULTS.md")
    a = parser.parse_args()
    # The training batch as an evaluation batch: the same 16 rows, the same width.
    common = [
        "data.eval.limit=64",
        "eval.batch_size=16",
        "data.train.limit=64",
        "train.batch_size=16",
    ]
    lines = [
        "| compute | measured | evaluation | full tuning | ratio |",
        "|---|---|---|---|---|",
    ]
    for dtype in ("float32", "bfloat16"):
        pairs = []
        for _ in range(a.repeats):
            changes = [*common, f"model.compute_dtype={dtype}"]
            with tempfile.TemporaryDirectory() as folder:
                inference = _peaks(EVALUATE, _model(a.recipe), a.recipe, *changes)
                tuning = _peaks(
                    TRAIN, "-", a.recipe, f"{folder}/run", *changes, "~checkpoint",
                    f"train.steps={a.steps}",
                )  # fmt: skip
            pairs.append((inference, tuning))
        for i, what in enumerate(("whole process", "model loaded")):
            ratios = sorted((t[i] / e[i], e[i], t[i]) for e, t in pairs)
            ratio, before, after = ratios[len(ratios) // 2]
            lines.append(
                f"| {dtype} | {what} | {before / 2**20:.0f} MiB | {after / 2**20:.0f} MiB "
                f"| **{ratio:.3f}** |"
            )
    text = "### Peak memory, full tuning, scalar moments, batch 16\n\n" + "\n".join(lines)
    text += f"\n\n{stamp()}\n"
    print(text)
    if a.append:
        append(text)


def _model(recipe: str) -> str:
    from zoft.recipe.load import load_recipe

    return load_recipe(recipe).model.name


def _peaks(program: str, *arguments: str) -> list[int]:
    """Bytes, whole process and from the loaded model on, as the process itself read them."""
    done = subprocess.run(
        [sys.executable, "-c", COMMON + program + REPORT, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
