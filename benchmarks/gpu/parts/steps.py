"""Steps of zoft beside two plain passes, MeZO's procedure and ZO2's: seconds, launches, bytes, floors.

python -m gpu.parts.steps --out DIR --shapes llama-1b llama-7b --types bfloat16 float16
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from gpu import floors
from gpu.contestants import CONTESTANTS, Maker
from gpu.measuring import counted, forget_peak, part, peak, timed
from gpu.shapes import Counts, config_of, counts, llama
from zoft.errors import first_line
from zoft.system.device import DTYPES

ROW, REHEARSED_ROW = 512, 16  # tokens of a row


def main() -> None:
    """Every contestant at every number of tokens, for each shape and type."""
    a = part(__doc__, "shapes", "types")
    for shape in a.shapes:
        config = config_of(shape, rehearse=a.rehearse)
        for dtype in a.types:
            forget_peak(a.device)
            model = llama(config, DTYPES[dtype], a.device)
            measure(a, f"Step, {shape}, {dtype}", model, counts(config))
            del model


def measure(a: argparse.Namespace, table: str, model: LlamaForCausalLM, numbers: Counts) -> None:
    row = REHEARSED_ROW if a.rehearse else ROW
    for rows in (2,) if a.rehearse else (1, 8, 32):
        ids = torch.randint(0, model.config.vocab_size, (rows, row), device=a.device)
        base: float | None = None
        for name, make in CONTESTANTS.items():
            tokens = {"tokens": rows * row, "step": name}
            try:
                found = figures(a, make, model, ids)
            except RuntimeError as error:  # one that does not fit leaves the others
                a.results.emit(table, **tokens, fails=first_line(error))
                forget_peak(a.device)
                continue
            base = base or found["seconds"]
            by_bytes = floors.by_bytes(name, numbers, model.dtype.itemsize)
            by_arithmetic = floors.by_arithmetic(numbers, rows, row)
            a.results.emit(
                table,
                **tokens,
                **found,
                **{
                    "over two passes": found["seconds"] / base,
                    "floor by bytes": by_bytes,
                    "floor by arithmetic": by_arithmetic,
                    "over floor": found["seconds"] / max(by_bytes, by_arithmetic),
                },
            )


def figures(
    a: argparse.Namespace, make: Maker, model: LlamaForCausalLM, ids: Tensor
) -> dict[str, float]:
    """Seconds, launches, host synchronisations and peak GB of a contestant's step."""
    step = make(model, ids)
    seconds = timed(step, 1 if a.rehearse else 3, a.device)
    launches, syncs = counted(step, a.device)
    return {
        "seconds": seconds,
        "launches": launches,
        "host syncs": syncs,
        "peak GB": peak(step, a.device) / 1e9,
    }


if __name__ == "__main__":
    main()
