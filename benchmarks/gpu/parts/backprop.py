"""Back-propagation by torch alone on the same rows: all weights with a fused backward pass, and LoRA.

    python -m gpu.parts.backprop --out DIR --shapes llama-1b llama-7b

As LOMO does (arXiv 2306.09782), a weight moves by SGD as soon as its gradient is there, which is then
dropped; activations are computed again in the backward pass. LoRA's adapter is peft's, tuned by AdamW,
with and without that. These are the least that back-propagation takes: two floors for memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peers import gradients
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from gpu.contestants import RATE
from gpu.measuring import Step, forget_peak, part, peak, timed
from gpu.shapes import config_of, llama
from zoft.errors import first_line
from zoft.models.adapters import attach_adapter
from zoft.recipe.sections.tune import TuneSection


def main() -> None:
    """Each way at 512, 4,096 and 16,384 tokens."""
    a = part(__doc__, "shapes")
    for shape in a.shapes:
        config = config_of(shape, rehearse=a.rehearse)
        for name, way in WAYS.items():
            forget_peak(a.device)
            model = llama(config, torch.bfloat16, a.device)
            with way(model) as step:
                measure(a, f"Backprop, {shape}, bfloat16", name, model, step)
            del model, step


def measure(
    a: argparse.Namespace,
    table: str,
    name: str,
    model: LlamaForCausalLM,
    step: Callable[[Tensor], None],
) -> None:
    row = 16 if a.rehearse else 512
    for rows in (2,) if a.rehearse else (1, 8, 32):
        ids = torch.randint(0, model.config.vocab_size, (rows, row), device=a.device)

        def one(ids: Tensor = ids) -> None:
            step(ids)

        found: dict[str, object] = {"tokens": rows * row, "step": name}
        try:
            run: Step = one
            found["seconds"] = timed(run, 1 if a.rehearse else 5, a.device)
            found["peak GB"] = peak(run, a.device) / 1e9
        except RuntimeError as error:  # out of memory is a figure, too
            found["fails"] = first_line(error)
        a.results.emit(table, **found)


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """The loss of each row's last token, as the other steps score it."""
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=2).logits[:, 0]
    return nn.functional.cross_entropy(logits.float(), ids[:, -1])


@contextmanager
def fused_backward(model: LlamaForCausalLM) -> Iterator[Callable[[Tensor], None]]:
    """SGD inside the backward pass, with checkpointed activations."""

    def move(parameter: Tensor) -> None:
        with torch.no_grad():
            assert parameter.grad is not None
            parameter.add_(parameter.grad, alpha=-RATE)
        parameter.grad = None

    def step(ids: Tensor) -> None:
        loss = loss_of(model, ids)
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()

    with gradients(model), checkpointed(model):
        tensors: list[Any] = list(model.parameters())
        hooks = [p.register_post_accumulate_grad_hook(move) for p in tensors]
        yield step
        for hook in hooks:
            hook.remove()


@contextmanager
def lora(model: LlamaForCausalLM) -> Iterator[Callable[[Tensor], None]]:
    """AdamW on peft's adapter; the model's own weights stay as they are."""
    tuned = attach_adapter(model, TuneSection(method="lora"), 0)
    with gradients(tuned, only="lora_"):
        moved = [p for p in tuned.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(moved, lr=RATE)

        def step(ids: Tensor) -> None:
            loss = loss_of(tuned, ids)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()

        yield step


@contextmanager
def lora_checkpointed(model: LlamaForCausalLM) -> Iterator[Callable[[Tensor], None]]:
    """The same with activations that are computed again."""
    with checkpointed(model), lora(model) as step:
        yield step


@contextmanager
def checkpointed(model: LlamaForCausalLM) -> Iterator[None]:
    """Inside, a block keeps its input alone for the backward pass (the model has no dropout)."""
    still: Any = model
    still.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    still.train()
    try:
        yield
    finally:
        still.gradient_checkpointing_disable()
        still.eval()


WAYS = {
    "all weights, fused backward, checkpointed": fused_backward,
    "LoRA, AdamW": lora,
    "LoRA, AdamW, checkpointed": lora_checkpointed,
}


if __name__ == "__main__":
    main()
