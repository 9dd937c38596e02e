"""A mixture of experts: zoft's step beside two plain passes, with a direction for every example.

    python benchmarks/experts.py [--repeats 6] [--append]

A Qwen3-MoE of random weights with 32 experts in each layer. In each repeat every contestant takes one
step on the same rows, in an order that turns; a ratio is taken repeat by repeat. A plain pass is that of
an untouched transformers model with the same lean head as zoft. Medians with quartiles; raw seconds:
runs/bench/experts.jsonl.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from machine import Log, arguments, ratios, report, spread
from peers import inference
from subject import RANK1, Step, journal, random_batch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from zoft.engine.objectives.batch import Batch
from zoft.engine.objectives.objective import objective_for
from zoft.system.host_memory import keep_freed_memory

VOCABULARY, EXPERTS, WARM = 1024, 32, 2
ZOFT = {probes.name: probes for probes in (RANK1, replace(RANK1, paired=True))}


def main() -> None:
    """Measure both compute types and print a table."""
    parser = arguments(__doc__, rows=16, columns=32, repeats=6)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    a = parser.parse_args()
    keep_freed_memory()
    log = Log("experts", rows=a.rows, columns=a.columns)
    for dtype in a.dtypes:
        _measure(dtype, a.rows, a.columns, a.repeats, log)
    lines = ["| compute | directions | two passes | step | step / two passes |", "|---" * 5 + "|"]
    for dtype in a.dtypes:
        found = [x for x in log.find(dtype=dtype) if x["repeat"] < a.repeats]
        for name in ZOFT:
            two, step = (spread([x[what] for x in found]) for what in ("two passes", name))
            ratio = spread(ratios(found, name, "two passes"))
            lines.append(f"| {dtype} | {name} | {two} s | {step} s | {ratio} |")
    title = (
        f"Mixture of {EXPERTS} experts, {a.rows} rows of {a.columns} tokens, {a.repeats} repeats"
    )
    report(title, lines, to_file=a.append)


def _measure(dtype: str, rows: int, columns: int, repeats: int, log: Log) -> None:
    tuned, objective = _model(), objective_for("choice")
    plain: Any = copy.deepcopy(tuned)
    plain.to(getattr(torch, dtype))
    with journal() as lines:
        steps = {name: Step(tuned, dtype, probes, lines) for name, probes in ZOFT.items()}
        for repeat in range(-WARM, repeats):
            batch = random_batch(rows, columns, VOCABULARY, seed=WARM + repeat)
            runs: dict[str, Callable[[], Any]] = {
                name: partial(step, objective, batch) for name, step in steps.items()
            }
            runs["two passes"] = partial(_two_passes, plain, batch)
            names, seconds = list(runs), {}
            turn = repeat % len(names)
            for name in names[turn:] + names[:turn]:
                begun = time.perf_counter()
                runs[name]()
                seconds[name] = round(time.perf_counter() - begun, 5)
            if repeat >= 0 and not log.find(dtype=dtype, repeat=repeat):
                log.add(dtype=dtype, repeat=repeat, **seconds)


def _two_passes(plain: Any, batch: Batch) -> None:
    for _ in range(2):
        inference(plain, batch)


def _model() -> Any:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY, hidden_size=512, moe_intermediate_size=256, num_experts=EXPERTS,
        num_experts_per_tok=4, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
        decoder_sparse_step=1, norm_topk_prob=True, tie_word_embeddings=True,
        use_cache=False,
    )  # fmt: skip
    model: Any = Qwen3MoeForCausalLM(config)
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
