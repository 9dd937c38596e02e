"""The steps that are compared: zoft's, two plain passes, MeZO's procedure and ZO2's.

MeZO's procedure walks the weights +eps, -2 eps, +eps and draws the noise of every parameter anew
(peers.py); ZO2's does the same walk block by block, inside one pass of which the first half runs at +eps
and the second at -eps. Only the last token of a row is scored, for everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peers import MezoProcedure
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from gpu.measuring import Step
from zoft.engine.estimator import Estimator, Losses
from zoft.engine.kernels.numerics.exact_sum import Rounding
from zoft.engine.probe.directions import Directions
from zoft.engine.probe.structures.table import STRUCTURES, structure_of
from zoft.engine.probe.view import ProbedModel

EPSILON, RATE = 1e-3, 1e-6

Maker = Callable[[LlamaForCausalLM, Tensor], Step]


@torch.no_grad()
def plain(model: LlamaForCausalLM, ids: Tensor) -> float:
    """The untouched model's loss of each row's last token, read on the host."""
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=2).logits[:, 0]
    return nn.functional.cross_entropy(logits.float(), ids[:, -1]).item()


def zoft_step(
    model: LlamaForCausalLM, ids: Tensor, structure: str, *, paired: bool, per_example: bool = False
) -> Step:
    """Both probes and MeZO's update by zoft."""
    tuned = dict(model.named_parameters())
    numbers = {name: i for i, name in enumerate(tuned)}
    view = ProbedModel(model, tuned, numbers, model.dtype, ids[:1, :8])
    directions = Directions(0, False, STRUCTURES[structure])
    examples = len(ids) if per_example else None
    estimator = Estimator(view, directions, EPSILON, examples=examples, paired=paired)
    last = torch.arange(1, len(ids) + 1, device=ids.device) * ids.shape[1] - 2
    weights = torch.ones(len(ids), dtype=torch.float64, device=ids.device)
    number = 0

    def losses() -> Losses:
        found = view.token_losses(ids, last, ids[:, -1])
        return Losses(found.double().view(-1, len(ids)), weights)

    def step() -> None:
        nonlocal number
        number += 1
        grads = estimator.measure(number, losses).projected_grad
        update = [-RATE * c for c in grads]
        total = directions.total([(number, k) for k in range(len(grads))], update)
        for name, parameter in tuned.items():
            structure_of(parameter, directions.structure).update(
                parameter.detach(), [total], param=numbers[name], decay=1.0,
                rounding=Rounding(0, number),
            )  # fmt: skip

    return step


def mezo_step(model: LlamaForCausalLM, ids: Tensor) -> Step:
    """MeZO's procedure, in place."""
    procedure = MezoProcedure(model, EPSILON)
    return lambda: procedure.step(lambda: plain(model, ids), 1, RATE)


def zo2_step(model: LlamaForCausalLM, ids: Tensor) -> Step:
    """ZO2's: each block runs the rows at +eps and their twins at -eps before the next one does."""
    blocks: list[nn.Module] = [*model.model.layers, model.model.embed_tokens, model.model.norm]

    def walk(i: int, scale: float) -> None:
        generator = torch.Generator(ids.device).manual_seed(1 + i)
        for parameter in blocks[i].parameters():
            z = torch.normal(0.0, 1.0, parameter.shape, generator=generator, device=ids.device,
                             dtype=parameter.dtype)  # fmt: skip
            parameter.add_(z, alpha=scale)

    def dual(i: int) -> Callable[..., Any]:
        forward = blocks[i].forward

        def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            halves = x.chunk(2)
            walk(i, EPSILON)
            plus = forward(halves[0], *args, **kwargs)
            walk(i, -2 * EPSILON)
            minus = forward(halves[1], *args, **kwargs)
            walk(i, EPSILON)
            if isinstance(plus, tuple):
                return tuple(torch.cat(pair) for pair in zip(plus, minus, strict=True))
            return torch.cat([plus, minus])

        return run

    @contextmanager
    def doubled() -> Iterator[None]:
        try:
            for i, block in enumerate(blocks):
                block.forward = dual(i)
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)

    @torch.no_grad()
    def step() -> None:
        with doubled():  # the tied head runs at theta itself, to our disadvantage
            logits = model(input_ids=ids.repeat(2, 1), use_cache=False, logits_to_keep=2).logits
        loss = nn.functional.cross_entropy(
            logits[:, 0].float(), ids[:, -1].repeat(2), reduction="none"
        )
        plus, minus = loss.view(2, -1).mean(1).tolist()
        for i in range(len(blocks)):
            walk(i, -RATE * (plus - minus) / (2 * EPSILON))

    return step


ZOFT = "zoft rank-1, paired"
CONTESTANTS: dict[str, Maker] = {
    "two plain passes": lambda model, ids: lambda: (plain(model, ids), plain(model, ids)),
    ZOFT: partial(zoft_step, structure="rank1", paired=True),
    "zoft rank-1, per example, paired": partial(
        zoft_step, structure="rank1", paired=True, per_example=True
    ),
    "zoft dense, paired": partial(zoft_step, structure="dense", paired=True),
    "zoft rank-1": partial(zoft_step, structure="rank1", paired=False),
    "zoft dense": partial(zoft_step, structure="dense", paired=False),
    "MeZO": mezo_step,
    "ZO2": zo2_step,
}
