"""The last blocks and the final norm by their exact gradient, from the passes that probes make anyway.

While a step is measured, hooks keep what enters each of these blocks, without a graph. Afterwards the
gradient is carried from the loss through the head to the last block and on from block to block: each is
run again on what entered it, its gradient moves its weights and is dropped before the next one's turn.
So the inputs of N blocks are in memory, and the activations and the gradient of one (the update inside
the backward pass is LOMO's, Lv et al., arXiv 2306.09782). Probes leave these weights alone; the gradient
is the mean over the probed points of the rest, which is that at theta up to epsilon^2.
Source: docs/methods.md#the-tail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoft.engine.objectives.batch import Batch
from zoft.engine.objectives.objective import Objective, batch_losses
from zoft.engine.probe.view import ProbedModel

Update = Callable[[str, Tensor, Tensor], None]  # name, parameter, gradient in float32


@dataclass(frozen=True, slots=True)
class Call:
    """What a block was called with, hidden states first, and what it gave."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class LastBlocks:
    """The last of `blocks`, `number` of them (0: none), and the modules between them and the head.

    `parameters` are the tail's, by their names in the model: those of the blocks, and others (the final
    norm) which take the gradient that the loss has at once.
    """

    def __init__(
        self,
        view: ProbedModel,
        blocks: Sequence[nn.Module],
        number: int,
        parameters: dict[str, nn.Parameter],
    ) -> None:
        self.view, self.blocks, self.number = view, list(blocks), number
        self.parameters = parameters
        inside = [set(block.parameters()) for block in self.tail]
        self._of_block = [
            {name: p for name, p in parameters.items() if p in mine} for mine in inside
        ]
        everything = set[nn.Parameter]().union(*inside)
        self._outside = {name: p for name, p in parameters.items() if p not in everything}
        self._calls: list[list[Call]] = []  # of each block, pass after pass

    @property
    def tail(self) -> list[nn.Module]:
        return self.blocks[len(self.blocks) - self.number :]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, what enters and leaves the blocks in every pass is kept."""
        watched = self.tail or self.blocks[-1:]
        self._calls = [[] for _ in watched]
        handles = [
            block.register_forward_hook(partial(_keep, calls), with_kwargs=True)
            for block, calls in zip(watched, self._calls, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def step(self, objective: Objective, batches: Sequence[Batch], update: Update) -> None:
        """Move the tail by the mean gradient over the recorded passes of `batches`, block by block from
        the last; `update` is called once for each parameter."""
        last = self._calls[-1]
        items = sum(map(_items, batches))
        passes = len(last) // len(batches)
        gradients = []
        with _learning(self._outside):
            for number, call in enumerate(last):
                batch = batches[number % len(batches)]
                copies = call.hidden.shape[0] // batch.input_ids.shape[0]
                gradients.append(self._from_loss(objective, batch, call, copies, items * passes))
            assert all(p.grad is not None for p in self._outside.values()), "cut off from the loss"
            _move(self._outside, update)
        if not self.number:
            self._calls.clear()
            return
        for block, calls, mine in zip(
            reversed(self.tail), reversed(self._calls), reversed(self._of_block), strict=True
        ):
            with _learning(mine):
                gradients = [
                    self._through(block, call, gradient)
                    for call, gradient in zip(calls, gradients, strict=True)
                ]
                _move(mine, update)
            calls.clear()

    def _from_loss(
        self, objective: Objective, batch: Batch, call: Call, copies: int, items: int
    ) -> Tensor:
        """The gradient of the mean loss with respect to what the last block gave, by the model's own
        way from there to its logits; gradients of parameters on it are left in them."""
        hidden = _hidden(call.output).detach().requires_grad_()
        with (
            self.view.probe(None, *[0.0] * copies),
            self.view.with_graph(),
            self._bypassed(call.output, hidden),
        ):
            losses = batch_losses(objective, self.view, [batch])
            torch.autograd.backward(losses.sums.sum() / (items * copies))
        assert hidden.grad is not None
        return hidden.grad

    @contextmanager
    def _bypassed(self, output: Any, hidden: Tensor) -> Iterator[None]:
        """Inside, a pass leaves the blocks out: what the last one gives is `hidden`."""
        before = [block.__dict__.get("forward") for block in self.blocks]
        given = (hidden, *output[1:]) if isinstance(output, tuple) else hidden
        try:
            for block in self.blocks:
                block.forward = lambda *_, **__: given
            yield
        finally:
            for block, forward in zip(self.blocks, before, strict=True):
                if forward is None:
                    block.__dict__.pop("forward", None)
                else:
                    block.forward = forward

    def _through(self, block: nn.Module, call: Call, gradient: Tensor) -> Tensor:
        """The gradient with respect to what entered the block, from that of what it gave; those of its
        parameters are left in them."""
        hidden = call.hidden.detach().requires_grad_()
        computing, device = self.view.compute_dtype, hidden.device.type
        stored = {p.dtype for p in block.parameters() if p.is_floating_point()}
        with (
            torch.enable_grad(),
            torch.autocast(device, computing, enabled=stored != {computing}),
        ):
            output = _hidden(block(hidden, *call.args, **call.kwargs))
        torch.autograd.backward(output, gradient.to(output.dtype))
        assert hidden.grad is not None
        return hidden.grad


def _items(batch: Batch) -> int:
    """Tokens or, of choices, examples that the mean loss is over."""
    return int(batch.counts.sum()) if batch.labels is None else batch.examples


def _keep(
    calls: list[Call], _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    if args:
        calls.append(Call(args[0], args[1:], kwargs, output))
    else:
        others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        calls.append(Call(kwargs["hidden_states"], (), others, output))


def _hidden(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


@contextmanager
def _learning(parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """Inside, backward passes leave the gradients of these."""
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None


def _move(parameters: dict[str, nn.Parameter], update: Update) -> None:
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            with torch.no_grad():
                update(name, parameter, parameter.grad.float())
            parameter.grad = None
