"""What the benchmarks measure: zoft's whole step, and the rows and the model of a recipe."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from zoft.data.encoding import encode
from zoft.data.examples import Choice, TextExample, gold
from zoft.data.sources import load_rows
from zoft.engine.estimator import Estimator
from zoft.engine.objectives.batch import Batch
from zoft.engine.objectives.objective import Objective, batch_losses, micro_batches, objective_for
from zoft.engine.optimizers.optimizer import optimizer_for
from zoft.engine.optimizers.update import Resident, tuned_weights
from zoft.engine.probe.directions import Directions
from zoft.engine.probe.structures.table import STRUCTURES
from zoft.engine.probe.view import ProbedModel
from zoft.models.load import load_tokenizer
from zoft.models.storage.fetch import local_safetensors
from zoft.models.trainable import parameter_ids, tuned_parameters
from zoft.recipe.load import load_recipe
from zoft.recipe.schema import Recipe
from zoft.recipe.sections.data import listed, with_task
from zoft.recipe.sections.optimizers.radazo import RAdaZO
from zoft.recipe.sections.tune import TuneSection
from zoft.runs.journal import Entry, Journal

RATE = 1e-9  # nothing is learnt here, and nothing may go astray
PERTURBATION = {"float32": 1e-3, "bfloat16": 3e-3}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Probes:
    """How the directions of a step look: the recipe's structure, scope, paired, directions."""

    structure: str
    per_example: bool = False
    paired: bool = False
    directions: int = 1

    @property
    def name(self) -> str:
        words = ["rank-1" if self.structure == "rank1" else "dense"]
        words += ["per example"] if self.per_example else []
        return ", ".join([*words, "paired"] if self.paired else words)


DENSE = Probes("dense")
RANK1 = Probes("rank1", per_example=True)


class Step:
    """Both probes, the journal's line, the update of all tuned weights (R-AdaZO)."""

    def __init__(
        self,
        model: nn.Module,
        compute: str,
        probes: Probes,
        journal: Journal,
        tune: TuneSection | None = None,
        moments: str = "scalar",
    ) -> None:
        tuned = tuned_parameters(model, tune or TuneSection())
        ids = parameter_ids(tuned)
        example = torch.tensor([[1, 2, 3, 4]])
        self.view = ProbedModel(model, tuned, ids, getattr(torch, compute), example)
        self.estimator = Estimator(
            self.view,
            Directions(0, False, STRUCTURES[probes.structure]),
            perturbation=PERTURBATION[compute],
            count=probes.directions,
            paired=probes.paired,
        )
        section = RAdaZO.model_validate(
            {"moments": moments, "window": 22, "structure": probes.structure}
        )
        weights = Resident(tuned_weights(tuned, ids, set()))
        self.optimizer = optimizer_for(section, 0, weights)
        self.probes, self.journal = probes, journal
        self.number, self.update_seconds = 0, 0.0

    def __call__(self, objective: Objective, batch: Batch) -> None:
        self.number += 1
        examples = batch.examples if self.probes.per_example else None
        found = replace(self.estimator, examples=examples).measure(
            self.number, lambda: batch_losses(objective, self.view, [batch])
        )
        begun = time.perf_counter()
        self.journal.append(Entry(found, RATE))
        self.optimizer.update(found, RATE)
        self.update_seconds = time.perf_counter() - begun


@contextmanager
def journal() -> Iterator[Journal]:
    """A journal in a folder that goes away."""
    with TemporaryDirectory() as folder, Journal.create(Path(folder) / "journal", {}, 5.0) as log:
        yield log


def rows_of(recipe: Recipe, limit: int | None = None) -> tuple[list[Choice], list[TextExample]]:
    """The training rows of a classification recipe, for `choice` and teacher-forced for `lm`."""
    where = local_safetensors(recipe.model.name, recipe.model.revision)
    tokenizer = load_tokenizer(where, recipe.model)
    (source,) = listed(recipe.data.train)
    rows = load_rows(source.model_copy(update={"limit": limit}))
    choices = encode(rows, with_task(recipe.data), tokenizer, choice=True).examples
    return [x for x in choices if isinstance(x, Choice)], [gold(x) for x in choices]


def batch_of(objective: Objective, examples: Sequence[Choice] | Sequence[TextExample]) -> Batch:
    """All examples in one batch."""
    [batch] = micro_batches(objective, examples, len(examples), CPU)
    return batch


def toy(width: int, layers: int, vocabulary: int, dtype: torch.dtype) -> LlamaForCausalLM:
    """A LLaMA of random weights, heads of 64, tied embeddings."""
    heads = max(1, width // 64)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.config.use_cache = False
    still: Any = model
    still.to(dtype).eval().requires_grad_(False)
    return model


def random_batch(rows: int, columns: int, vocabulary: int, seed: int) -> Batch:
    """A `choice` batch of equally long rows with two options."""
    drawn = torch.randint(8, vocabulary, (rows, columns), generator=torch.manual_seed(seed))
    examples = [Choice(tuple(x), ((6,), (7,)), i % 2) for i, x in enumerate(drawn.tolist())]
    return batch_of(objective_for("choice"), examples)


def warm(compute: str, probes: Probes, moments: str = "scalar") -> None:
    """Compile, load and run every kernel of such a step once, on a model of some thousand weights."""
    with journal() as log:
        step = Step(toy(128, 1, 64, torch.float32), compute, probes, log, moments=moments)
        step(objective_for("choice"), random_batch(4, 8, 64, seed=0))
    del step
    gc.collect()


def recipe_of(name: str) -> Recipe:
    """A packaged recipe or a file."""
    return load_recipe(name)
