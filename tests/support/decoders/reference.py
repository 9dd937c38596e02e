"""Losses of the plain model with its weights really moved: what a probe has to find."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoft.data.examples import Choice, Example, TextExample
from zoft.engine.probe.directions import Direction
from zoft.engine.probe.structures.table import values_of
from zoft.models.trainable import parameter_ids, tuned_parameters
from zoft.recipe.sections.tune import TuneSection


@dataclass
class Reference:
    """A model that no part of zoft has run, and copies of it at theta + scale * z.

    `dtype` is the type that the copies are cast to before they run; sums are taken in float64.
    """

    model: nn.Module
    tune: TuneSection
    dtype: torch.dtype = torch.float32
    _twins: dict[tuple[str, int, int, float], nn.Module] = field(default_factory=dict)

    def twin(self, z: Direction, scale: float) -> nn.Module:
        """A deep copy of the plain model at theta + scale * z."""
        key = (type(z.directions.structure).__name__, z.step, z.k, scale)
        if key not in self._twins:
            twin = copy.deepcopy(self.model)
            tuned = tuned_parameters(twin, self.tune)
            ids = parameter_ids(tuned)
            for name, parameter in tuned.items():
                parameter.data += scale * values_of(z, parameter.data, ids[name])
            self._twins[key] = twin.to(self.dtype)
        return self._twins[key]

    def in_float64(self) -> Reference:
        """The same model in float64."""
        model: Any = copy.deepcopy(self.model).double()
        base = getattr(model, "get_base_model", lambda: model)()
        base.set_experts_implementation("eager")  # torch's product by group takes no float64
        return Reference(model, self.tune, torch.float64)

    def losses(self, z: Direction, scale: float, examples: Sequence[Example]) -> list[float]:
        """The mean loss of each example, all of them in one padded batch."""
        return losses(self.twin(z, scale), examples)

    def alone(
        self, zs: Sequence[Direction], scale: float, examples: Sequence[Example]
    ) -> list[float]:
        """The mean loss of each example, alone in a model that moved along its own direction."""
        return [
            losses(self.twin(z, scale), [example])[0]
            for z, example in zip(zs, examples, strict=True)
        ]


def weight(example: Example) -> int:
    """What an example counts in the mean of a batch: its scored tokens; a choice counts once."""
    return len(example.supervised) if isinstance(example, TextExample) else 1


@torch.no_grad()
def losses(model: nn.Module, examples: Sequence[Example]) -> list[float]:
    """The mean loss of each example, from the full logits of all their rows in one pass."""
    rows = [row for example in examples for row, _ in _rows(example)]
    logs = iter(log_probabilities(model, rows))
    found = []
    for example in examples:
        sums = [
            torch.stack([next_logs[p - 1, row[p]] for p in scored])
            for (row, scored), next_logs in zip(_rows(example), logs, strict=False)
        ]
        if isinstance(example, Choice):
            scores = torch.stack([x.mean() for x in sums])
            found.append(float(scores.logsumexp(0) - scores[example.label]))
        else:
            found.append(float(-sums[0].mean()))
    return found


def log_probabilities(model: nn.Module, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Of each row, the log-probabilities of its next tokens: (tokens, vocabulary) float64."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    forward: Any = getattr(model, "get_base_model", lambda: model)().forward
    masked = len({len(row) for row in rows}) > 1
    known = "attention_mask" in inspect.signature(forward).parameters
    more = {"attention_mask": mask} if masked and known else {}
    logits = model(input_ids=ids, use_cache=False, **more).logits.double().log_softmax(-1)
    return [x[: len(row)] for x, row in zip(logits, rows, strict=True)]


def _rows(example: Example) -> list[tuple[tuple[int, ...], Sequence[int]]]:
    """The rows of an example, each with the columns that are scored."""
    if isinstance(example, TextExample):
        return [(example.ids, example.supervised)]
    begin = len(example.prompt)
    return [
        ((*example.prompt, *option), range(begin, begin + len(option)))
        for option in example.options
    ]
