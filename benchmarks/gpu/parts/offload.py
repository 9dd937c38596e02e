"""Steps of models whose blocks wait in host memory, inside a budget of the card.

    python -m gpu.parts.offload --out DIR --shapes llama-7b opt-13b

All weights are tuned. One row of 2,048 tokens is ZO2's setting (arXiv 2503.12668), with OPT-13B in
float16; the other shape is measured likewise. Weights are random: no figure here depends on them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from streaming import RECIPE
from subject import journal

from gpu import floors
from gpu.measuring import forget_peak, part
from gpu.shapes import config_of, counts, write_model
from zoft.data.sets import load_data
from zoft.engine.build import order_for
from zoft.errors import ZoftError, first_line
from zoft.planning.memory.footprint import CUDA_CONTEXT
from zoft.planning.resolve import resolve, with_data
from zoft.planning.step_time import passes
from zoft.recipe.load import load_recipe
from zoft.runs.folder import RunFolder
from zoft.system.device import DTYPES, peak_memory_bytes
from zoft.training.load import base_files, build_engine, choose_placement, load_model
from zoft.training.trainer import Step, Trainer
from zoft.training.warm_start import tokenizer_for

DTYPE = {"llama-7b": "bfloat16", "opt-13b": "float16"}
BUDGETS = ("8GiB", "4GiB", "16GiB")
STEPS, WARM = 4, 1


def main() -> None:
    """Each shape inside each budget."""
    a = part(__doc__, "shapes")
    for shape in a.shapes:
        with TemporaryDirectory() as name:
            folder = Path(name)
            write_model(folder / "model", shape, DTYPES[DTYPE[shape]], rehearse=a.rehearse)
            for budget in BUDGETS[:1] if a.rehearse else BUDGETS:
                row: dict[str, object] = {"shape": shape, "budget": budget}
                try:
                    row |= figures(a, shape, folder, budget)
                except (ZoftError, RuntimeError, MemoryError) as error:  # leaves the other budgets
                    row["fails"] = first_line(error)
                a.results.emit("Offload", **row)


def recipe_in(folder: Path, shape: str, budget: str, tokens: int) -> Path:
    """The recipe of a step on one row of so many tokens, which are bytes."""
    text = json.dumps({"text": "word " * tokens})
    (folder / "train.jsonl").write_text(f"{text}\n" * 4, encoding="utf-8")
    path = folder / "recipe.yaml"
    keys = {"tune": "full", "residency": "auto", "dtype": DTYPE[shape], "batch": 1, "steps": STEPS}
    path.write_text(
        RECIPE.format(model=folder / "model", folder=folder, budget=budget, tokens=tokens, **keys),
        encoding="utf-8",
    )
    return path


def figures(a: argparse.Namespace, shape: str, folder: Path, budget: str) -> dict[str, object]:
    """What a run does up to its last step; its result is not saved, which takes longer than this."""
    forget_peak(a.device)
    tokens = 16 if a.rehearse else 2048
    changes = ["optimizer.paired=true", f"model.compute_dtype={DTYPE[shape]}"]
    changes += ["model.residency=host"] if a.rehearse else []
    recipe = resolve(load_recipe(str(recipe_in(folder, shape, budget, tokens)), changes))
    files = base_files(recipe, print)
    data = load_data(recipe, tokenizer_for(recipe, files), say=print, check=lambda: None)
    recipe, place = choose_placement(with_data(recipe, data), data, print)
    run = RunFolder(folder / "run")
    model = load_model(recipe, run, files, place, None, resumed=False)
    engine = build_engine(recipe, run, model, data, place, None, print)
    examples, taken = data.examples["train"], list[Step]()

    def note(trainer: Trainer, step: Step | None) -> None:  # noqa: ARG001  (a `Hook`)
        if step is not None:
            taken.append(step)

    trainer = Trainer(recipe, engine, examples, order_for(recipe, examples), lambda: None)
    with closing(engine), journal() as lines:
        trainer.fit(lines, [note])
    shutil.rmtree(run.path, ignore_errors=True)
    kept = taken[WARM:]
    seconds = statistics.median(step.seconds for step in kept)
    numbers, resident = counts(config_of(shape, rehearse=a.rehearse)), len(place.resident_blocks)
    streamed = numbers.blocks * (numbers.layers - resident) // numbers.layers
    by_bytes = floors.by_link(streamed * DTYPES[DTYPE[shape]].itemsize, passes(recipe))
    by_arithmetic = floors.by_arithmetic(numbers, 1, tokens, scored=tokens)
    planned = place.footprint.device - (CUDA_CONTEXT if a.device.type != "cpu" else 0)
    return {
        "tokens": tokens,
        "weights": place.residency,
        "resident blocks": f"{resident} of {numbers.layers}",
        "seconds": seconds,
        "waiting": statistics.median(step.waited / step.seconds for step in kept),
        "peak GB": peak_memory_bytes(a.device) / 1e9,
        "planned GB": planned / 1e9,
        "floor by bytes": by_bytes,
        "floor by arithmetic": by_arithmetic,
        "over floor": seconds / max(by_bytes, by_arithmetic),
    }


if __name__ == "__main__":
    main()
