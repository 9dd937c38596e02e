"""Planned and measured peak memory, side by side, of short runs on models with random weights.

    python benchmarks/plan.py [--streamed] [--append]
    python benchmarks/plan.py --libraries      what a run takes whose model has no size

Each run is a process of its own of 3 steps; measured is the peak that it wrote to run.json. Raw
numbers: runs/bench/plan.jsonl; a second call goes on from there.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import Log, arguments, report
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from zoft.planning.footprint import Footprint, footprint
from zoft.planning.placement import budgets, choose
from zoft.planning.plan import read_data
from zoft.planning.resolve import resolve
from zoft.planning.workload import shape_of
from zoft.recipe.load import load_recipe

WORDS = 50272  # of the vocabulary
RECIPE = """\
model: {{name: "{folder}/{model}"}}
device: cpu
output_dir: {folder}/run
data:
  train: {{path: {folder}/train.jsonl}}
  template: "{{text}} It was"
  labels: {{0: bad, 1: great}}
optimizer: {{scope: batch}}
train: {{steps: 3, batch_size: 8}}
"""
WAYS = {
    "all weights, scalar moments": [],
    "all weights, moments stored": ["optimizer.moments=full"],
    "LoRA": ["tune.method=lora"],
}
STREAMED = {
    f"{name}, blocks on the disk": [*changes, "model.residency=disk"]
    for name, changes in WAYS.items()
}


def main() -> None:
    """Run what has not run yet, and print a table."""
    parser = arguments(__doc__)
    parser.add_argument("--streamed", action="store_true", help="with blocks on the disk as well")
    parser.add_argument("--libraries", action="store_true", help="a model of no size alone")
    parser.add_argument("--models", nargs="+", default=None, choices=_configs())
    a = parser.parse_args()
    names = ["none"] if a.libraries else a.models or [x for x in _configs() if x != "none"]
    ways = {**WAYS, **(STREAMED if a.streamed else {})}
    log = Log("plan")
    lines = ["| model | tuning | planned | measured | planned / measured |", "|---" * 5 + "|"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write_data(folder)
        for model in names:
            for way, changes in ways.items():
                if not log.find(model=model, way=way):
                    if not (folder / model).exists():
                        _write_model(folder / model, _configs()[model])
                    log.add(model=model, way=way, **_run(folder, model, changes))
                row = log.find(model=model, way=way)[-1]
                planned, measured = row["planned"], row["measured"]
                lines.append(
                    f"| {model} | {way} | {planned / 2**20:,.0f} MiB | {measured / 2**20:,.0f} MiB "
                    f"| **{planned / measured:.3f}** |"
                )
    report(
        "Planned and measured peak memory, batch 8, two rows an example", lines, to_file=a.append
    )


def _configs() -> dict[str, PreTrainedConfig]:
    def opt(hidden: int, layers: int, heads: int) -> OPTConfig:
        return OPTConfig(
            vocab_size=WORDS, hidden_size=hidden, word_embed_proj_dim=hidden, ffn_dim=4 * hidden,
            num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=2048,
        )  # fmt: skip

    llama = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
        tie_word_embeddings=True,
    )  # fmt: skip
    none = OPTConfig(
        vocab_size=300, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    return {
        "65M, OPT": opt(512, 8, 8),
        "135M, LLaMA": llama,
        "356M, OPT": opt(1024, 24, 16),
        "none": none,
    }


def _write_model(folder: Path, config: PreTrainedConfig) -> None:
    from_config: Any = AutoModelForCausalLM.from_config
    from_config(config).save_pretrained(folder)
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """One that any vocabulary of 256 words fits."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # a token is a byte
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    wrapper: Any = PreTrainedTokenizerFast
    wrapper(tokenizer_object=core).save_pretrained(folder)


def _write_data(folder: Path) -> None:
    draw = random.Random(0)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for i in range(200):
            text = "".join(draw.choice("abcdefgh ") for _ in range(draw.randint(20, 120)))
            file.write(json.dumps({"text": text, "label": i % 2}) + "\n")


def _run(folder: Path, model: str, changes: list[str]) -> dict[str, int]:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, model=model), encoding="utf-8")
    output = Path(tempfile.mkdtemp(dir=folder))
    subprocess.run(
        [sys.executable, "-m", "zoft", "train", str(path), *changes, "--output-dir", str(output)],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    measured = json.loads((output / "run.json").read_text(encoding="utf-8"))["peak_memory_bytes"]
    return {"planned": _planned(path, changes).device, "measured": measured}


def _planned(path: Path, changes: list[str]) -> Footprint:
    recipe = resolve(load_recipe(path, changes))
    data = read_data(recipe)
    shape = shape_of(recipe, data.examples if data else None)
    if recipe.model.residency == "auto":
        return footprint(recipe, shape)
    return choose(recipe, shape, *budgets(recipe)).footprint


if __name__ == "__main__":
    main()
