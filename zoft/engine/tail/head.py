"""The rows of the output head that a choice between single words reads, by their exact gradient.

One plain pass over a training row gives its last hidden state h, and with it the loss of every value
of these rows: logits = W h. Cross-entropy in W is convex, so it is minimised to the end on the hidden
states that were collected, before the first step, and held from then on. A pull towards the start
W0, strength * mean variance of h * |W - W0|^2, keeps few rows of data from moving it far; its strength
is the one with the least loss on rows that were left out, in five folds.
Source: docs/methods.md#the-tail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoft.data.examples import Choice, Example
from zoft.engine.objectives.batch import Batch
from zoft.engine.probe.view import ProbedModel
from zoft.errors import RecipeError

STRENGTHS = (
    3.0,
    1.0,
    0.3,
    0.1,
    0.03,
    0.01,
    3e-3,
    1e-3,
)  # from the start outwards: each begins where one ended
FOLDS, ITERATIONS = 5, 60
FIRST = 1000  # rows after which many more of them are worth a first answer
FILE = "tail.safetensors"

Batches = Callable[[Sequence[Example], int], list[Batch]]  # of examples, so many at a time
Told = Callable[[int], None]  # how many rows had their pass


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Values (n, d) float32 of the head's rows of the tokens `words` (n,)."""

    words: Tensor
    values: Tensor

    def put(self, model: nn.Module) -> None:
        """Write them into the model's head, rounded to its type; a tied table of words has them too."""
        weight = head_of(model).weight
        assert isinstance(weight, Tensor)
        weight.detach()[self.words.to(weight.device)] = self.values.to(weight)

    def write(self, folder: Path) -> None:
        save_file({"words": self.words, "values": self.values}, folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> HeadRows:
        return cls(**load_file(folder / FILE))


@dataclass(frozen=True, slots=True)
class Solved:
    """The rows, on how many examples they were solved, the pull's strength, and loss and accuracy on
    examples that were left out: before, and with rows that were solved on the others."""

    rows: HeadRows
    examples: int
    strength: float
    before: tuple[float, float]
    after: tuple[float, float]

    def summary(self) -> dict[str, Any]:
        """For run.json."""
        (loss, hits), (new_loss, new_hits) = self.before, self.after
        return {
            "rows": self.examples,
            "strength": self.strength,
            "before": {"loss": loss, "accuracy": hits},
            "left_out": {"loss": new_loss, "accuracy": new_hits},
        }


def head_of(model: nn.Module) -> nn.Module:
    """The output head."""
    found: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    return found


def solve_head(
    view: ProbedModel,
    batches: Batches,
    examples: Sequence[Example],
    tokens: int,
    told: Told,
) -> Iterator[Solved]:
    """Solve the label words' rows on `examples`, in passes over so many tokens; nothing is changed. Of
    more than twice FIRST examples these are solved on their own first.

    `told` is called between passes. Raises as `label_words` and `require_open` do.
    """
    words = label_words(examples)
    require_open(view)
    head: Any = head_of(view.model)
    start = head.weight.detach()[words.to(head.weight.device)].double().cpu()
    bias = (
        0.0 if head.bias is None else head.bias.detach()[words.to(head.bias.device)].double().cpu()
    )
    labels = torch.tensor([x.label for x in examples if isinstance(x, Choice)])
    hidden = torch.empty(len(examples), start.shape[1], dtype=torch.float64)
    done = 0
    for end in (FIRST, len(examples)) if len(examples) > 2 * FIRST else (len(examples),):
        for rows, states in _hidden_states(view, batches, examples, range(done, end), tokens):
            hidden[rows] = states.double().cpu()
            done += len(rows)
            told(done)
        problem = _Problem.of(hidden[:end], labels[:end], start, bias)
        strength, after = problem.best_strength()
        before = score(problem.logits, problem.labels)
        solved = HeadRows(words, problem.solve(strength).float())
        yield Solved(solved, end, strength, before, after)


def score(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    hits = (logits.argmax(1) == labels).double().mean()
    return float(nn.functional.cross_entropy(logits, labels)), float(hits)


def label_words(examples: Sequence[Example]) -> Tensor:
    """The tokens (n,) whose rows are solved. Raises RecipeError where the examples are not a choice
    between the same single tokens."""
    choices = [x.options for x in examples if isinstance(x, Choice)]
    first = choices[0] if len(choices) == len(examples) else ()
    if not first or any(len(option) != 1 for option in first) or any(x != first for x in choices):
        raise RecipeError(
            "tune.tail: the head's rows are solved for a choice between the same words of one token "
            "each (objective choice); set tune.tail=none"
        )
    return torch.tensor([option[0] for option in first])


def require_open(view: ProbedModel) -> None:
    """Raises RecipeError if the model changes its logits behind the head."""
    if not view.head_ends_the_model:
        raise RecipeError(
            "tune.tail: this model changes its logits behind the head; set tune.tail=none"
        )


def _hidden_states(
    view: ProbedModel, batches: Batches, examples: Sequence[Example], numbers: range, tokens: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield some of the examples' `numbers`, and the states (n, d) that the head reads of these: plain
    passes over at most so many tokens, of rows of like length."""
    # The longest first: memory that one pass leaves free fits the next one.
    order = sorted(numbers, key=lambda i: len(_prompt(examples[i])), reverse=True)
    with view.plain():
        while order:
            width = len(_prompt(examples[order[0]])) + 1  # the option's token takes a column
            rows = order[: max(1, tokens // width)]
            order = order[len(rows) :]
            [batch] = batches([examples[i] for i in rows], len(rows))
            mask = batch.attention_mask() if view.masked else None
            yield rows, view.hidden(batch.input_ids, batch.positions, mask)


def _prompt(example: Example) -> Sequence[int]:
    assert isinstance(example, Choice)
    return example.prompt


@dataclass(frozen=True, slots=True)
class _Problem:
    """Hidden states (N, d), labels (N,), the rows at the start (n, d) and their logits (N, n), the
    variance of a hidden state's entries, and which examples count: 1 or 0, (N,). All float64 but labels;
    a fold copies no hidden states."""

    hidden: Tensor
    labels: Tensor
    start: Tensor
    logits: Tensor
    variance: float
    used: Tensor

    @classmethod
    def of(cls, hidden: Tensor, labels: Tensor, start: Tensor, bias: Tensor | float) -> _Problem:
        everyone = torch.ones(len(hidden), dtype=torch.float64)
        variance = float(hidden.var(0).mean())
        return cls(hidden, labels, start, hidden @ start.T + bias, variance, everyone)

    def solve(self, *strengths: float) -> Tensor:
        """The rows with the pull of the last of `strengths`, one after the other."""
        *_, change = self._path(strengths)
        return self.start + change

    def best_strength(self) -> tuple[float, tuple[float, float]]:
        """The strength with the least loss on folds that were left out, and its score there."""
        fold = torch.arange(len(self.labels)) % FOLDS
        logits = torch.empty(len(STRENGTHS), *self.logits.shape, dtype=torch.float64)
        for number in range(FOLDS):
            out = fold == number
            part = replace(self, used=(~out).double())
            for found, change in zip(logits, part._path(STRENGTHS), strict=True):
                found[out] = (self.logits + self.hidden @ change.T)[out]
        scores = [score(found, self.labels) for found in logits]
        best = min(range(len(STRENGTHS)), key=lambda i: scores[i][0])
        return STRENGTHS[best], scores[best]

    def _path(self, strengths: Sequence[float]) -> list[Tensor]:
        """How far the rows go from the start with each pull, each begun where the one before ended."""
        change = torch.zeros_like(self.start)
        found = []
        for strength in strengths:
            change = self._minimise(change, strength)
            found.append(change)
        return found

    def _minimise(self, begin: Tensor, strength: float) -> Tensor:
        change = begin.clone().requires_grad_()
        pull, share = strength * self.variance, self.used / self.used.sum()
        optimizer = torch.optim.LBFGS(
            [change], max_iter=ITERATIONS, line_search_fn="strong_wolfe", tolerance_grad=1e-6
        )

        def closure() -> Tensor:
            logits = self.logits + self.hidden @ change.detach().T
            losses = nn.functional.cross_entropy(logits, self.labels, reduction="none")
            away = torch.softmax(logits, 1)
            away[torch.arange(len(away)), self.labels] -= 1
            away *= share[:, None]
            change.grad = away.T @ self.hidden + 2 * pull * change.detach()
            return losses @ share + pull * change.detach().square().sum()

        with torch.no_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        return change.detach()
