"""What the untuned model scores on SST-2 with examples in its prompt: the baseline without any step.

    python benchmarks/in_context.py --sst2 DIR [--shots 16] [--split test] [--append]

DIR is as for convergence.py, whose template and words these are. Every seed draws as many training rows
of each label, puts them in front of every row that is scored, in random order, and takes no step.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path

from machine import report

from zoft.inference.evaluate import evaluate

WORDS = ("terrible", "great")


def main() -> None:
    """Score every seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sst2", type=Path, required=True)
    parser.add_argument("--model", default=".demo/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--runs", type=Path, default=Path("runs/in-context"))
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--append", action="store_true", help="append the table to RESULTS.md")
    a = parser.parse_args()
    a.runs.mkdir(parents=True, exist_ok=True)
    lines = ["| seed | accuracy | loss |", "|---|---|---|"]
    scores = []
    for seed in a.seeds:
        recipe = a.runs / f"shots{a.shots}-seed{seed}.yaml"
        recipe.write_text(text(a, seed), encoding="utf-8")
        found = evaluate(a.model, str(recipe))["test"]
        scores.append(found["accuracy"])
        lines.append(f"| {seed} | {found['accuracy']:.3f} | {found['loss']:.3f} |")
    lines.append(f"| mean | **{statistics.mean(scores):.3f}** | |")
    report(f"SST-2 {a.split}, {a.shots} examples in the prompt", lines, to_file=a.append)


def text(a: argparse.Namespace, seed: int) -> str:
    """The recipe, in JSON, which is YAML."""
    recipe = {
        "model": {"name": a.model},
        "data": {
            "train": {"path": str(a.sst2 / "train.jsonl")},
            "test": {"path": str(a.sst2 / f"{a.split}.jsonl")},
            "template": f"{shots(a.sst2 / 'train.jsonl', a.shots, seed)}{{text}} It was",
            "labels": dict(enumerate(WORDS)),
            "max_length": 2048,
        },
        "eval": {"batch_size": 8},
    }
    return json.dumps(recipe)


def shots(file: Path, number: int, seed: int) -> str:
    """So many rows with their answers, half of each label; braces doubled, as a template has them."""
    drawn, rows = random.Random(seed), [json.loads(x) for x in file.read_text().splitlines()]
    some = [
        row
        for label in range(len(WORDS))
        for row in drawn.sample([x for x in rows if x["label"] == label], number // len(WORDS))
    ]
    drawn.shuffle(some)
    said = "".join(f"{row['text']} It was {WORDS[row['label']]}\n\n" for row in some)
    return said.replace("{", "{{").replace("}", "}}")


if __name__ == "__main__":
    main()
