"""The model with weights that are really moved, by which a probe is checked.

It shares nothing with probes but the directions: for each block that runs, theta + scale * z is written
into tensors of its own, and the model's own forward computes with these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from zoft.engine.probe.attention import bounded_attention
from zoft.engine.probe.directions import Direction
from zoft.engine.probe.structures.table import values_of
from zoft.errors import EnvironmentProblem
from zoft.models.adapters import of_adapter
from zoft.models.blocks import find_blocks, owned_parameters
from zoft.models.meta import kept_in_float32
from zoft.system.accelerator import send


@dataclass(frozen=True)
class MovedModel:
    """A causal language model whose weights can be moved along a direction, in place and back.

    `ids` maps a tuned parameter's name to its id in the directions' address. What is stored in another
    type than `compute_dtype` is cast, but for what transformers keeps in float32 and for an adapter's
    weights, whose modules cast their inputs. `masked`: as of `ProbedModel`.
    """

    model: nn.Module
    ids: Mapping[str, int]
    compute_dtype: torch.dtype
    masked: bool

    @cached_property
    def _in_float32(self) -> set[nn.Parameter]:
        return kept_in_float32(self.model, self.compute_dtype)

    @property
    def extra_bytes(self) -> int:
        """Memory that moving takes: the largest block's copy, that of what is in no block, and the
        float32 directions of the largest parameter."""
        groups, rest = self._groups()
        largest = max((self._bytes(group) for _, group in groups), default=0)
        directions = max((p.numel() for n, p in self._named().items() if n in self.ids), default=0)
        return largest + self._bytes(rest) + 8 * directions

    @contextmanager
    def at(self, direction: Direction, scale: float) -> Iterator[None]:
        """Inside, the model computes at theta + scale * z."""
        groups, rest = self._groups()
        undo: dict[str, Tensor] = {}
        handles = []

        def move(group: Mapping[str, nn.Parameter]) -> None:
            for name, parameter in group.items():
                undo[name] = parameter.data
                parameter.data = self._moved(name, parameter, direction, scale)

        def move_back(group: Mapping[str, nn.Parameter]) -> None:
            for name, parameter in group.items():
                if name in undo:
                    parameter.data = undo.pop(name)

        def hook(act: Callable[..., None], group: Mapping[str, nn.Parameter]) -> Any:
            return lambda *_: act(group)

        for module, group in groups:
            handles += [
                # A streamed block's weights are there once its own hooks have run, and until they do.
                module.register_forward_pre_hook(hook(move, group)),
                module.register_forward_hook(hook(move_back, group), prepend=True),
            ]
        try:
            move(rest)
            yield
        finally:
            for handle in handles:
                handle.remove()
            move_back({name: self._named()[name] for name in tuple(undo)})

    @torch.no_grad()
    def logits(
        self,
        input_ids: Tensor,
        positions: Tensor,
        vocab: Tensor | None = None,
        attention_mask: Tensor | None = None,
        examples: Sequence[int] | None = None,
    ) -> Tensor:
        """As `ProbedModel.logits`, from the logits of all positions."""
        del examples
        config: Any = self.model.config
        with bounded_attention(config, *input_ids.shape):
            output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        rows, tokens = input_ids.shape
        logits: Tensor = output.logits[:, -tokens:]  # virtual tokens stand in front
        logits = logits.reshape(rows * tokens, -1)[send(positions, logits.device)]
        return logits if vocab is None else logits[:, vocab]

    def token_losses(
        self,
        input_ids: Tensor,
        positions: Tensor,
        targets: Tensor,
        attention_mask: Tensor | None = None,
        examples: Sequence[int] | None = None,
    ) -> Tensor:
        """As `ProbedModel.token_losses`."""
        logits = self.logits(input_ids, positions, None, attention_mask, examples)
        return nn.functional.cross_entropy(logits.double(), targets, reduction="none")

    def _named(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def _groups(
        self,
    ) -> tuple[list[tuple[nn.Module, dict[str, nn.Parameter]]], dict[str, nn.Parameter]]:
        """The parameters to move or to cast: (block, its own), and the rest."""
        wanted = {
            name: p
            for name, p in self._named().items()
            if name in self.ids or (p.is_floating_point() and self._dtype(name, p) != p.dtype)
        }
        try:
            blocks = find_blocks(self.model)
        except EnvironmentProblem:  # it has no list of blocks
            return [], wanted
        owned = owned_parameters(self.model, blocks)
        groups = [
            (module, {name: wanted[name] for name in own if name in wanted})
            for module, own in zip(blocks.modules, owned, strict=True)
        ]
        inside = {name for _, group in groups for name in group}
        return groups, {name: p for name, p in wanted.items() if name not in inside}

    def _dtype(self, name: str, parameter: nn.Parameter) -> torch.dtype:
        stays = of_adapter(name) or parameter in self._in_float32
        return parameter.dtype if stays else self.compute_dtype

    def _bytes(self, group: Mapping[str, nn.Parameter]) -> int:
        return sum(p.numel() * self._dtype(name, p).itemsize for name, p in group.items())

    def _moved(
        self, name: str, parameter: nn.Parameter, direction: Direction, scale: float
    ) -> Tensor:
        weight = parameter.detach()
        if name in self.ids:
            z = values_of(direction, weight, self.ids[name])
            weight = z.mul_(scale).add_(weight)
        return weight.to(self._dtype(name, parameter))
