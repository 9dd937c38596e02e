"""`choice`: every label word is scored, and cross-entropy is taken over the words.

An option's score is the mean log-probability of its tokens (MeZO's). When all options are single
tokens, one row serves them all: the log-sum-exp over the vocabulary is common to them and cancels, so
only the options' rows of the head are needed. Otherwise each option gets a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from torch import Tensor, nn

from zoft.data.examples import Choice, Example
from zoft.objectives.batch import Batch, pad
from zoft.objectives.lm import token_losses
from zoft.objectives.score import Score


def width(examples: Many[Example]) -> int:
    return max(
        len(x.prompt) + max(len(option) for option in x.options)
        for x in examples
        if isinstance(x, Choice)
    )


def collate(examples: Many[Example], width: int) -> Batch:
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
    rows = [(*x.prompt, *option) for x in choices for option in x.options]
    scored = [
        range(len(x.prompt), len(x.prompt) + len(option)) for x in choices for option in x.options
    ]
    return pad(rows, scored, width, examples=len(choices), labels=labels)


def score(logits: Tensor, batch: Batch) -> Score:
    """logits (N, options) or (N, V); weight = examples, hits = examples whose best option is right."""
    assert batch.labels is not None
    if batch.vocab is not None:
        scores = logits.float()
    else:
        logs = -token_losses(logits, batch.targets)
        counts = batch.row.bincount(minlength=batch.input_ids.shape[0]).tolist()
        # Row by row, not by index_add_: atomics add in any order on a GPU.
        scores = torch.stack([part.mean() for part in torch.split(logs, counts)])
        scores = scores.view(batch.examples, -1)
    losses = nn.functional.cross_entropy(scores, batch.labels, reduction="none")
    hits = int((scores.argmax(dim=1) == batch.labels).sum())
    return Score(losses.double().sum().item(), float(batch.examples), hits)
