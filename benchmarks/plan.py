"""Planned and measured peak memory, side by side, of short runs on models of four families.

    python benchmarks/plan.py [--only WORD] [--append]
    python benchmarks/plan.py --libraries      what a run takes whose model has no size

Models have random weights; the quickstart's is the demo model (`.demo/`, see recipes/). Each run is a
process of its own of 3 steps; measured is the peak that it wrote to run.json, planned what `zoft plan`
says of the same recipe before it. Raw numbers: runs/bench/plan.jsonl; a second call goes on from there.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import Log, arguments, report
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3MoeConfig,
)

from zoft.planning.memory.footprint import Footprint, footprint
from zoft.planning.placement import budgets, choose
from zoft.planning.plan import read_data
from zoft.planning.resolve import resolve
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
train: {{steps: 3, batch_size: 2}}
"""
LORA, MOMENTS, DISK = "tune.method=lora", "optimizer.moments=full", "model.residency=disk"
SHORT = ("train.steps=3", "checkpoint.every=2", "data.eval.limit=32")


@dataclass(frozen=True)
class Setting:
    """A model, a recipe's changes; `fresh`: a cache of its own, so that it is converted first."""

    family: str
    model: str
    changes: tuple[str, ...] = ()
    fresh: bool = False

    @property
    def name(self) -> str:
        usual = "as shipped" if self.model.startswith("quickstart") else "all weights"
        way = " ".join(x for x in self.changes if x not in SHORT) or usual
        return f"{way}, converted first" if self.fresh else way


def _settings() -> list[Setting]:
    def of(family: str, model: str, *ways: tuple[str, ...]) -> list[Setting]:
        return [Setting(family, model, way) for way in ways]

    return [
        Setting("dense", "quickstart", SHORT, fresh=True),
        Setting("dense", "quickstart", SHORT),
        Setting("LoRA", "quickstart-lora", SHORT),
        *of("dense", "135M, LLaMA", (), (MOMENTS,), ("tune.layers=[20,29]",), (DISK,)),
        *of("dense", "135M, LLaMA", ("model.compute_dtype=float32",), ("optimizer.structure=dense",)),
        *of("LoRA", "135M, LLaMA", (LORA,), ("tune.method=prefix",), (LORA, "tune.layers=[20,29]")),
        *of("dense", "356M, OPT", ()),
        *of("LoRA", "356M, OPT", (LORA,), (LORA, DISK)),
        *of("dense", "494M, Qwen2", ("model.dtype=bfloat16",)),
        *of("LoRA", "494M, Qwen2", (LORA,), ("tune.method=ia3",), (LORA, "model.quantization=int8")),
        *of("MoE", "258M, Qwen3-MoE", (), (LORA,), ("tune.layers=[4,7]",), (LORA, DISK)),
        *of("SSM", "129M, Mamba", (LORA,), (LORA, "tune.layers=[12,23]")),
        *of("SSM", "129M, Mamba2", (), (LORA,)),
        Setting("LoRA", "494M, Qwen2.gguf", (LORA,), fresh=True),
    ]  # fmt: skip


def main() -> None:
    """Run what has not run yet, and print a table."""
    parser = arguments(__doc__)
    parser.add_argument("--libraries", action="store_true", help="a model of no size alone")
    parser.add_argument("--only", default="", help="settings whose family or model holds this")
    a = parser.parse_args()
    chosen = [Setting("", "none")] if a.libraries else _settings()
    chosen = [x for x in chosen if a.only in f"{x.family}, {x.model}"]
    log = Log("plan")
    lines = ["| family | model | tuning | planned | measured | planned / measured |"]
    lines.append("|---" * 6 + "|")
    worst = 1.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write_data(folder)
        for setting in chosen:
            row = {"model": setting.model, "way": setting.name}
            if not log.find(**row):
                try:
                    log.add(**row, **_run(folder, setting))
                except subprocess.CalledProcessError as error:  # it said why
                    ended = f"ended with {error.returncode}"
                    named = f"{setting.family} | {setting.model} | {setting.name}"
                    lines.append(f"| {named} | | | {ended} |")
                    continue
            found = log.find(**row)[-1]
            planned, measured = found["planned"], found["measured"]
            worst = max(worst, planned / measured, measured / planned)
            lines.append(
                f"| {setting.family} | {setting.model} | {setting.name} | {planned / 2**20:,.0f} MiB "
                f"| {measured / 2**20:,.0f} MiB | **{planned / measured:.3f}** |"
            )
    lines += ["", f"{len(chosen)} settings; the worst is off by a factor of {worst:.3f}."]
    report("Planned and measured peak memory, models of four families", lines, to_file=a.append)


def _configs() -> dict[str, PreTrainedConfig]:
    """Configs by name, without the quickstart's."""
    attention: dict[str, Any] = {"num_attention_heads": 16, "max_position_embeddings": 2048}
    return {
        "135M, LLaMA": LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
            tie_word_embeddings=True,
        ),
        "356M, OPT": OPTConfig(
            vocab_size=WORDS, hidden_size=1024, word_embed_proj_dim=1024, ffn_dim=4096,
            num_hidden_layers=24, **attention,
        ),
        "494M, Qwen2": Qwen2Config(
            vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
            num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=2048,
            tie_word_embeddings=True,
        ),
        "258M, Qwen3-MoE": Qwen3MoeConfig(
            vocab_size=WORDS, hidden_size=512, num_hidden_layers=8, num_attention_heads=8,
            num_key_value_heads=2, num_experts=16, num_experts_per_tok=4,
            moe_intermediate_size=1024, intermediate_size=1024, tie_word_embeddings=False,
        ),
        "129M, Mamba": MambaConfig(vocab_size=WORDS, hidden_size=768, num_hidden_layers=24),
        "129M, Mamba2": Mamba2Config(
            vocab_size=WORDS, hidden_size=768, num_hidden_layers=24, num_heads=24, n_groups=1,
            tie_word_embeddings=True,
        ),
        "none": OPTConfig(
            vocab_size=300, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=256,
        ),
    }  # fmt: skip


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
            text = "".join(draw.choice("abcdefgh ") for _ in range(draw.randint(10, 30)))
            file.write(json.dumps({"text": text, "label": i % 2}) + "\n")


def _recipe(folder: Path, setting: Setting) -> str:
    """The recipe's path or packaged name; its model is written if it is not there yet."""
    if setting.model.startswith("quickstart"):
        return setting.model
    model = setting.model.removesuffix(".gguf")
    if not (folder / model).exists():
        _write_model(folder / model, _configs()[model])
    if setting.model.endswith(".gguf") and not (folder / setting.model).exists():
        _zoft("export", str(folder / model), str(folder / setting.model))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, model=setting.model), encoding="utf-8")
    return str(path)


def _run(folder: Path, setting: Setting) -> dict[str, int]:
    recipe, changes = _recipe(folder, setting), list(setting.changes)
    output = Path(tempfile.mkdtemp(dir=folder))
    if setting.fresh:
        os.environ["XDG_CACHE_HOME"] = str(output / "cache")
    planned = _planned(recipe, changes).device
    _zoft("train", recipe, *changes, "--output-dir", str(output / "run"))
    record = json.loads((output / "run" / "run.json").read_text(encoding="utf-8"))
    shutil.rmtree(output / "run")
    return {"planned": planned, "measured": record["peak_memory_bytes"]}


def _zoft(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "zoft", *arguments], stdout=subprocess.DEVNULL, check=True
    )


def _planned(source: str, changes: list[str]) -> Footprint:
    recipe = resolve(load_recipe(source, changes))
    read = read_data(recipe)
    recipe, shape = read.recipe, read.shape
    if recipe.model.residency == "auto":
        return footprint(recipe, shape)
    return choose(recipe, shape, *budgets(recipe)).footprint


if __name__ == "__main__":
    main()
