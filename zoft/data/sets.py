"""The sets of a recipe, read and encoded: the one place that train, eval and plan get them from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from transformers import PreTrainedTokenizerBase

from zoft.data.encoding import Counts, Encoded, TemplateSeed, encode, endings
from zoft.data.examples import Choice, Example
from zoft.data.files import Check, never
from zoft.data.formats.table import detect
from zoft.data.mixing import mixed
from zoft.data.sources import Rows, load_rows
from zoft.errors import DataError, RecipeError
from zoft.recipe.schema import EvalSection, Recipe
from zoft.recipe.sections.base import Auto
from zoft.recipe.sections.data import DataSource, FormatName, Sources, listed

_Recipe = TypeVar("_Recipe", bound=Recipe)
SETS = ("train", "eval", "test")
Metric = Literal["loss", "accuracy", "f1", "exact_match"]


def silent(_line: str) -> None:
    """For callers who show the counts in their own way."""


@dataclass(frozen=True)
class Data:
    """The sets of a recipe as token ids, the tokenizer that made them, and what their rows are."""

    tokenizer: PreTrainedTokenizerBase
    format: FormatName | Auto
    sets: Mapping[str, Encoded]

    @property
    def examples(self) -> dict[str, tuple[Example, ...]]:
        """The examples of each set by its name: train, eval, test."""
        return {name: encoded.examples for name, encoded in self.sets.items()}


def load_data(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    names: Sequence[str] = SETS,
    say: Callable[[str], None] = silent,
    check: Check = never,
) -> Data:
    """The sets that the recipe names; see `prepare`."""
    settled, sets = prepare(recipe, tokenizer, names=names, say=say, check=check)
    return Data(tokenizer, settled.data.format, sets)


def metric_of(settings: EvalSection, examples: Sequence[Example]) -> Metric:
    """What `eval.metric` means for these rows. Raises RecipeError for accuracy without options."""
    options = all(isinstance(example, Choice) for example in examples)
    match settings.metric:
        case "auto":
            return "accuracy" if options else "loss"
        case "accuracy" if not options:
            raise RecipeError("eval.metric: accuracy needs rows with options; set loss, or f1")
        case metric:
            return metric


def prepare(
    recipe: _Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    names: Sequence[str] = SETS,
    say: Callable[[str], None] = silent,
    check: Check = never,
) -> tuple[_Recipe, dict[str, Encoded]]:
    """The sets that the recipe names, and the recipe with `data.format` settled.

    `auto` is settled by the first rows of the first source, for all sets. `say` gets a line per set,
    `check` is called every few hundred rows and may raise. Raises DataError, RecipeError,
    EnvironmentProblem; what is wrong with rows names their source.
    """
    found: dict[str, Encoded] = {}
    for name in names:
        sources: Sources | None = getattr(recipe.data, name)
        if sources is None:
            continue
        needed = recipe.train.steps * recipe.train.batch_size if name == "train" else None
        rows = [load_rows(source, check, needed) for source in listed(sources)]
        detected = recipe.data.format == "auto"
        if detected:
            recipe = _settled(recipe, listed(sources)[0], rows[0])
        parts = _parts(name, recipe, listed(sources), rows, tokenizer, check)
        found[name] = _joined(parts, listed(sources), recipe.seed)
        say(f"{name}: {in_words(found[name].counts)}" + _format(recipe, detected))
        if any(source.weight is not None for source in listed(sources)):
            say(f"{name}: {len(found[name].examples):,} by weight")
        if (
            name == "train"
            and recipe.data.format != "classification"
            and not endings(found[name].examples, tokenizer)
        ):
            say(f"warning: {_endless(tokenizer)}, so the model does not learn to stop")
    return recipe, found


def keeps_options(recipe: Recipe, name: str) -> bool:
    """Whether rows of the set `name` (train, eval, test) that have options are encoded with them all:
    to be learnt from as a choice, or to be scored as one whatever is learnt."""
    scored = name != "train" and recipe.eval.metric in ("auto", "accuracy")
    return recipe.objective.name == "choice" or scored


def in_words(counts: Counts) -> str:
    left_out = [
        f"{number:,} {what}"
        for number, what in (
            (counts.truncated, "truncated"),
            (counts.too_long, "too long, dropped"),
            (counts.untrained, "without a trained token, dropped"),
        )
        if number
    ]
    return ", ".join([f"{counts.kept:,} of {counts.read:,} rows", *left_out])


def _format(recipe: Recipe, detected: bool) -> str:
    return f"; format {recipe.data.format}, by its columns" if detected else ""


def _endless(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.eos_token_id is None:
        return "the tokenizer has no EOS"
    return "no reply is learnt with a special token behind it, by the chat template"


def _settled(recipe: _Recipe, source: DataSource, rows: Rows) -> _Recipe:
    try:
        form = detect(rows, recipe.data)
    except (DataError, RecipeError) as error:
        raise type(error)(f"{source.path}: {error}") from error
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"format": form})})


def _parts(
    name: str,
    recipe: Recipe,
    sources: Sequence[DataSource],
    rows: Sequence[Rows],
    tokenizer: PreTrainedTokenizerBase,
    check: Check,
) -> list[Encoded]:
    """Each source encoded by itself, so that a row is numbered as in its file."""
    parts = []
    for number, (source, own) in enumerate(zip(sources, rows, strict=True)):
        try:
            parts.append(
                encode(
                    own,
                    recipe.data,
                    tokenizer,
                    choice=keeps_options(recipe, name),
                    seed=TemplateSeed(recipe.seed, number) if name == "train" else None,
                    check=check,
                )
            )
        except DataError as error:
            raise DataError(f"{source.path}: {error}") from error
    return parts


def _joined(parts: Sequence[Encoded], sources: Sequence[DataSource], seed: int) -> Encoded:
    if len(parts) == 1:
        return parts[0]
    given = mixed([part.examples for part in parts], [source.weight for source in sources], seed)
    counts = [part.counts for part in parts]
    return Encoded(
        tuple(example for examples in given for example in examples),
        Counts(
            sum(x.read for x in counts),
            sum(x.kept for x in counts),
            sum(x.truncated for x in counts),
            sum(x.too_long for x in counts),
            sum(x.untrained for x in counts),
        ),
    )
