"""Peak memory of full tuning over that of evaluating the same model at the same batch.

    python benchmarks/memory.py [--append]

Each figure is the peak resident size of a process of its own. Both processes import the same modules,
load the model in the same way (fingerprint included) and have the compiled kernels in numba's cache; the
evaluation runs one kernel on a few numbers, so that both carry the compiler's library.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile

from machine import append, stamp

EVALUATE = """
import sys, torch
import zoft.run  # what training imports
from zoft.evaluate import evaluate
from zoft.kernels import cpu
from zoft.kernels.terms import Rounding, make_terms
w, z = torch.zeros(10), dict(seed=0, step=0, param=0, k=0, scale=1.0, gaussian=False)
cpu.perturb(torch.zeros(10), w, **z)
cpu.perturb(torch.zeros(10, dtype=torch.bfloat16), w, **z)
cpu.perturb_rows(torch.zeros(1, 2), w.view(5, 2), torch.tensor([0]), **z)
one = make_terms(0, False, [(1, 0)], [1.0])
cpu.add_directions(w, one, param=0, decay=1.0, rounding=Rounding(0, 1))
evaluate(sys.argv[1], sys.argv[2], sys.argv[3:])
from zoft.memory import peak_memory_bytes
print(peak_memory_bytes(torch.device("cpu")))
"""
TRAIN = """
import sys, torch
import zoft.evaluate
from zoft.run import train
train(sys.argv[2], sys.argv[4:], output_dir=sys.argv[3])
from zoft.memory import peak_memory_bytes
print(peak_memory_bytes(torch.device("cpu")))
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
    lines = ["| compute | evaluation | full tuning | ratio |", "|---|---|---|---|"]
    for dtype in ("float32", "bfloat16"):
        pairs = []
        for _ in range(a.repeats):
            changes = [*common, f"model.compute_dtype={dtype}"]
            with tempfile.TemporaryDirectory() as folder:
                inference = _peak(EVALUATE, _model(a.recipe), a.recipe, *changes)
                tuning = _peak(
                    TRAIN, "-", a.recipe, f"{folder}/run", *changes, "~checkpoint",
                    f"train.steps={a.steps}",
                )  # fmt: skip
            pairs.append((tuning / inference, inference, tuning))
        ratio, inference, tuning = sorted(pairs)[len(pairs) // 2]
        lines.append(
            f"| {dtype} | {inference / 2**20:.0f} MiB | {tuning / 2**20:.0f} MiB | **{ratio:.3f}** |"
        )
    text = "### Peak memory, full tuning, scalar moments, batch 16\n\n" + "\n".join(lines)
    text += f"\n\n{stamp()}\n"
    print(text)
    if a.append:
        append(text)


def _model(recipe: str) -> str:
    from zoft.recipe.load import load_recipe

    return load_recipe(recipe).model.name


def _peak(program: str, *arguments: str) -> int:
    """Bytes, as the process itself read them at its end."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True
    )
    return int(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
