"""`choice`: every label word is scored, and cross-entropy is taken over the words.

An option's score is the mean log-probability of its tokens (MeZO's). When all options are single
tokens, one row serves them all: the log-sum-exp over the vocabulary is common to them and cancels, so
only the options' rows of the head are needed. Otherwise each option gets a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoft.data.examples import Choice, Example
from zoft.engine.estimator import Losses
from zoft.engine.objectives.batch import Batch, Forward, pad


class ChoiceObjective:
    """One row per example or per option, weight 1 an example; hits: the best option is the right one."""

    def width(self, examples: Sequence[Example]) -> int:
        return max(
            len(x.prompt) + max(len(option) for option in x.options)
            for x in examples
            if isinstance(x, Choice)
        )

    def collate(self, examples: Sequence[Example], width: int) -> Batch:
        """One row per example if all share the same single-token options, else one per option."""
        choices = [x for x in examples if isinstance(x, Choice)]
        labels = torch.tensor([x.label for x in choices])
        first = choices[0].options
        if all(len(option) == 1 for option in first) and all(x.options == first for x in choices):
            # The right option's token fills the column that is predicted; nothing is read from it.
            return pad(
                [(*x.prompt, *x.options[x.label]) for x in choices],
                [[len(x.prompt)] for x in choices],
                width,
                examples=len(choices),
                labels=labels,
                vocab=torch.tensor([option[0] for option in first]),
            )
        numbers = [len(x.options) for x in choices]
        # An example with fewer options than others repeats its last one, which is then left out.
        filled = [
            (x, option)
            for x in choices
            for option in (*x.options, *x.options[-1:] * (max(numbers) - len(x.options)))
        ]
        return pad(
            [(*x.prompt, *option) for x, option in filled],
            [range(len(x.prompt), len(x.prompt) + len(option)) for x, option in filled],
            width,
            examples=len(choices),
            labels=labels,
            options=None if len(set(numbers)) == 1 else torch.tensor(numbers),
        )

    def losses(self, view: Forward, batch: Batch, mask: Tensor | None) -> tuple[Losses, Tensor]:
        assert batch.labels is not None
        rows = batch.example_of_row
        if batch.vocab is not None:
            scores = view.logits(batch.input_ids, batch.positions, batch.vocab, mask, rows).float()
        else:
            logs = -view.token_losses(batch.input_ids, batch.positions, batch.targets, mask, rows)
            copies = len(logs) // len(batch.targets)
            # Row by row, not by index_add_: atomics add in any order on a GPU.
            counts = batch.counts.repeat(copies)
            scores = torch.segment_reduce(logs, "mean", lengths=counts, unsafe=True).view(
                copies * batch.examples, -1
            )
            if batch.options is not None:
                places = torch.arange(scores.shape[1], device=scores.device)
                real = places < batch.options[:, None]
                scores = scores.masked_fill(~real.repeat(copies, 1), -torch.inf)
        labels = batch.labels.repeat(len(scores) // batch.examples)
        lost = nn.functional.cross_entropy(scores, labels, reduction="none").double()
        hits = (scores.argmax(dim=1) == labels).view(-1, batch.examples)
        sums = lost.view(-1, batch.examples)
        return Losses(sums, torch.ones_like(sums[0])), hits
