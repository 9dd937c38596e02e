"""A trace of one step of zoft, to be opened in Perfetto, and the operators that took most.

python -m gpu.parts.trace --out DIR
"""

from __future__ import annotations

import torch

from gpu.contestants import CONTESTANTS, ZOFT
from gpu.measuring import part, profiled, timed
from gpu.results import TRACE
from gpu.shapes import config_of, llama

LARGEST = 8 * 2**20  # bytes of the trace
LAYERS = 4  # the same few launches again and again
SHOWN = 20


def main() -> None:
    """Trace a few layers of the 1B shape."""
    a = part(__doc__)
    config = config_of("llama-1b", rehearse=a.rehearse, num_hidden_layers=LAYERS)
    model = llama(config, torch.bfloat16, a.device)
    ids = torch.randint(0, config.vocab_size, (8, 16 if a.rehearse else 512), device=a.device)
    step = CONTESTANTS[ZOFT](model, ids)
    timed(step, 1, a.device)
    profile = profiled(step, a.device)
    device = a.device.type != "cpu"

    def taken(event: torch.autograd.profiler_util.FunctionEventAvg) -> float:
        return event.self_device_time_total if device else event.self_cpu_time_total

    for event in sorted(profile.key_averages(), key=taken, reverse=True)[:SHOWN]:
        row = {"operator": event.key[:60], "calls": event.count, "microseconds": taken(event)}
        a.results.emit(f"Trace, {ZOFT}, {LAYERS} layers", **row)
    file = a.out / TRACE
    profile.export_chrome_trace(str(file))
    size = file.stat().st_size
    if size > LARGEST:
        file.unlink()
    kept = f"{TRACE}, {size} bytes" if size <= LARGEST else f"{size} bytes were too many to keep"
    a.results.emit("Files", file=kept)


if __name__ == "__main__":
    main()
