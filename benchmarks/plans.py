"""What fits: computed memory of known models, at ZO2's setting and on cards of 8, 12, 24 and 80 GB.

    python benchmarks/plans.py

Computed from the models' configs (public model cards), not measured; no weights are needed. ZO2's
figures are its paper's (arXiv 2503.12668, table of OPT models; all of a step at batch 1, length 2048).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig, OPTConfig, PreTrainedConfig

from zoft.errors import OutOfMemory
from zoft.planning.memory.footprint import Footprint, footprint
from zoft.planning.placement import choose
from zoft.planning.resolve import resolve
from zoft.planning.workload import Shape, shape_of
from zoft.recipe.resolved import Resolved
from zoft.recipe.schema import Recipe

GB = 10**9  # ZO2 and the makers of cards count in these
HOST = 2**62  # the tables say what the host needs instead of limiting it
CARDS = (8, 12, 24, 80)


@dataclass(frozen=True)
class Model:
    """Hidden size, layers, heads and their keys and values, inner size; ZO2's GB where published."""

    name: str
    hidden: int
    layers: int
    heads: int
    inner: int
    kv: int = 0  # 0: an OPT
    zo2: float | None = None

    @property
    def config(self) -> PreTrainedConfig:
        if not self.kv:
            return OPTConfig(
                vocab_size=50272, hidden_size=self.hidden, word_embed_proj_dim=self.hidden,
                num_hidden_layers=self.layers, num_attention_heads=self.heads, ffn_dim=self.inner,
                max_position_embeddings=2048,
            )  # fmt: skip
        return LlamaConfig(
            vocab_size=128256, hidden_size=self.hidden, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.kv,
            intermediate_size=self.inner, max_position_embeddings=8192, tie_word_embeddings=False,
        )  # fmt: skip


OPT_1B = Model("OPT-1.3B", 2048, 24, 32, 8192)
OPT_7B = Model("OPT-6.7B", 4096, 32, 32, 16384)
LARGE = [
    Model("OPT-13B", 5120, 40, 40, 20480, zo2=6.18),
    Model("OPT-30B", 7168, 48, 56, 28672, zo2=8.86),
    Model("OPT-66B", 9216, 64, 72, 36864, zo2=12.07),
    Model("OPT-175B", 12288, 96, 96, 49152, zo2=18.04),
    Model("LLaMA-3-8B", 4096, 32, 32, 14336, kv=8),
    Model("LLaMA-3-70B", 8192, 80, 64, 28672, kv=8),
]
ZO2: dict[str, Any] = {
    "model": {"dtype": "float16", "compute_dtype": "float16"},
    "optimizer": {"name": "mezo", "perturbation": 1e-3},
    "train": {"batch_size": 1},
    "data": {"max_length": 2048},
}
WAYS: dict[str, dict[str, Any]] = {
    "LoRA": {"tune": {"method": "lora"}},
    "full": {"model": {"dtype": "bfloat16", "compute_dtype": "bfloat16"}},
}
BATCH: dict[str, Any] = {
    "model": {"compute_dtype": "bfloat16"}, "train": {"batch_size": 16}, "data": {"max_length": 256},
}  # fmt: skip


def main() -> None:
    """Print both tables."""
    print("\n".join(zo2_table()), end="\n\n")
    print("\n".join(cards_table()))


def planned(model: Model, *sections: dict[str, Any]) -> tuple[Resolved, Shape]:
    """The recipe for a GPU, and its shape."""
    values: dict[str, Any] = {
        "device": "cuda:0", "model": {}, "data": {"train": {"path": "none.jsonl"}, "format": "text"},
    }  # fmt: skip
    for section in sections:
        for key, value in section.items():
            values[key] = {**values.get(key, {}), **value}
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        values["model"] = {**values["model"], "name": folder}
        recipe = resolve(Recipe.model_validate(values), absent=True)
        return recipe, shape_of(recipe)


def zo2_setting(model: Model) -> Footprint:
    """Full tuning with MeZO, one example of 2,048 tokens, float16, every block on the host."""
    return footprint(*planned(model, ZO2), "host")


def zo2_table() -> list[str]:
    """Device and host memory at ZO2's setting, beside its own."""
    lines = [
        "| model | device, GB | ZO2's, GB | slots | head, embeddings | scratch | a pass | host |"
    ]
    lines.append("|---" * 8 + "|")
    for model in LARGE:
        found = zo2_setting(model)
        items = {x.name: x.device / GB for x in found.items}
        busiest = max(x.device for x in found.phases) / GB
        published = f"{model.zo2}" if model.zo2 else ""
        lines.append(
            f"| {model.name} | **{found.device / GB:.2f}** | {published} | "
            f"{items['slots for streamed blocks']:.2f} | {items['embeddings, norm, head']:.2f} | "
            f"{items['scratch']:.2f} | {busiest:.2f} | {found.host / GB:.0f} |"
        )
    return lines


def cards_table() -> list[str]:
    """For each model and card: what LoRA and full tuning do there."""
    lines = ["| model | tuning | " + " | ".join(f"{size} GB" for size in CARDS) + " | host |"]
    lines.append("|---" * (3 + len(CARDS)) + "|")
    for model in (OPT_1B, OPT_7B, LARGE[4], *LARGE[:3], LARGE[5], LARGE[3]):
        for way, sections in WAYS.items():
            recipe, shape = planned(model, BATCH, sections)
            cells = [_cell(recipe, shape, size) for size in CARDS]
            host = footprint(recipe, shape, "host").host / GB
            lines.append(f"| {model.name} | {way} | " + " | ".join(cells) + f" | {host:.0f} GB |")
    return lines


def _cell(recipe: Resolved, shape: Shape, card: int) -> str:
    try:
        found = choose(recipe, shape, int(0.95 * card * GB), HOST)
    except OutOfMemory:
        return "no"
    if found.residency == "device":
        return "resident"
    return f"streamed, {len(found.resident_blocks)}/{shape.blocks} stay"


if __name__ == "__main__":
    main()
