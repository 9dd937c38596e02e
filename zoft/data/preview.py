"""`zoft data preview`: what the model will read, what of it is learnt, and what became of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from zoft.data.encoding import Encoded, endings
from zoft.data.examples import Choice, Example, TextExample, length
from zoft.data.sets import prepare
from zoft.data.tokens import Tokens
from zoft.recipe.load import load_recipe
from zoft.recipe.resolved import with_defaults
from zoft.recipe.schema import Recipe
from zoft.recipe.sections.data import listed

MOST = 600  # characters of one stretch of text that are shown
TRAINED = "bold underline green"

Stretch = tuple[str, bool]  # text, and whether it is learnt


def preview(
    source: str,
    overrides: Sequence[str] = (),
    *,
    number: int = 3,
    begin: Callable[[Recipe], Recipe],
    tokenizer: Callable[[Recipe], PreTrainedTokenizerBase],
) -> None:
    """Print the first examples of each set and an account of its rows. Raises ZoftError.

    `begin` puts in what the recipe's names of runs and adapters stand for, `tokenizer` finds the one
    that a run would use; no weights are needed.
    """
    recipe = with_defaults(begin(load_recipe(source, overrides)))
    console = Console(highlight=False)
    console.soft_wrap = not console.is_terminal  # a pipe gets whole lines
    spelled = tokenizer(recipe)
    asked = recipe.data.format
    recipe, sets = prepare(recipe, spelled)
    how = ", by the columns" if asked == "auto" else ""
    console.print(Text(f"format  {recipe.data.format}{how}"))
    for name, found in sets.items():
        _print_set(name, found, recipe, spelled, console, number)


def _print_set(
    name: str,
    found: Encoded,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    console: Console,
    number: int,
) -> None:
    paths = ", ".join(source.path for source in listed(getattr(recipe.data, name)))
    console.print()
    console.print(Text.assemble((name, "bold"), f"  {paths}"))
    for title, value in facts(found, recipe, tokenizer):
        console.print(Text(f"  {title:8}{value}"))
    for i, example in enumerate(found.examples[:number], 1):
        console.print(Text(f"\n  example {i}, {length(example)} tokens", style="dim"))
        line = Text()
        for text, trained in parts(example, tokenizer):
            mark = trained and not console.is_terminal
            shown = f"⟦{escaped(text)}⟧" if mark else escaped(text)
            line.append(shown, style=TRAINED if trained else "")
        console.print(line)
        if isinstance(example, Choice):
            others = [
                repr(_decode(tokenizer, option))
                for i, option in enumerate(example.options)
                if i != example.label
            ]
            console.print(Text(f"  against {', '.join(others)}", style="dim"))


def facts(
    found: Encoded, recipe: Recipe, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, str]]:
    """What is said of a set beside its examples: title and value."""
    examples, tokens = found.examples, Tokens.of(tokenizer)
    counts = found.counts
    yield "rows", f"{counts.kept:,} of {counts.read:,} kept, {counts.truncated:,} of them truncated"
    if counts.kept < counts.read:
        left_out = f"{counts.too_long:,} too long, {counts.untrained:,} without a trained token"
        yield "", f"dropped: {left_out}"
    if len(examples) != counts.kept:
        yield "", f"{len(examples):,} examples by weight"
    lengths = np.array([length(example) for example in examples])
    p50, p90, p99 = (int(p) for p in np.percentile(lengths, [50, 90, 99], method="higher"))
    yield (
        "tokens",
        f"p50 {p50}, p90 {p90}, p99 {p99}, longest {lengths.max()} "
        f"(max_length {recipe.data.max_length})",
    )
    begins = Counter(_starts(example, tokens) for example in examples)
    yield (
        "BOS",
        _counted(begins, len(examples)) if tokens.start else "none: the tokenizer adds none",
    )
    yield "EOS", _ends(examples, tokenizer)
    first = examples[0]
    if isinstance(first, Choice) and recipe.data.labels:
        rows = Counter(example.label for example in examples if isinstance(example, Choice))
        named = zip(recipe.data.labels, first.options, strict=True)
        for i, (label, option) in enumerate(named):
            word = repr(_decode(tokenizer, option))
            ids = " ".join(map(str, option))
            yield "" if i else "labels", f"{label} → {word}, ids {ids}; {rows[i]:,} rows"
    elif isinstance(first, Choice):
        numbers = [len(example.options) for example in examples if isinstance(example, Choice)]
        yield "options", _counted(Counter(numbers), len(numbers))


def parts(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[Stretch]:
    """The text in stretches that are learnt or not. Of options, only the right one is shown."""
    match example:
        case Choice(prompt=prompt, options=options, label=label):
            ids, trained = (
                (*prompt, *options[label]),
                set(range(len(prompt), len(prompt) + len(options[label]))),
            )
        case TextExample(ids=ids, supervised=supervised):
            trained = set(supervised)

    def upto(end: int) -> str:
        """The text of the tokens before; one that ends within a character leaves it to the next."""
        text = _decode(tokenizer, ids[:end])
        return text if end == len(ids) else text.rstrip("\ufffd")

    found: list[Stretch] = []
    begin = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (end in trained) != (begin in trained):
            # From the text of the tokens before: alone, a stretch may lose its first blank.
            text = upto(end)[len(upto(begin)) :]
            found.append((text, begin in trained))
            begin = end
    return found


def escaped(text: str) -> str:
    """Control characters as they are written in Python; the middle of a long text left out."""
    if len(text) > MOST:
        left_out = f" … {len(text) - MOST:,} characters … "
        text = text[: MOST // 2] + left_out + text[-MOST // 2 :]
    return "".join("\\n\n" if c == "\n" else c if c.isprintable() else repr(c)[1:-1] for c in text)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _starts(example: Example, tokens: Tokens) -> int:
    """How often what the tokenizer puts in front stands before the first learnt token."""
    prompt = example.prompt if isinstance(example, Choice) else example.ids[: example.supervised[0]]
    return sum(prompt[i : i + len(tokens.start)] == tokens.start for i in range(len(prompt)))


def _ends(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> str:
    if isinstance(examples[0], Choice):
        return "not trained: words are compared"
    found = endings(examples, tokenizer)
    if not found and tokenizer.eos_token_id is None:
        return "not trained: the tokenizer has none"
    token, rows = next(iter(found.most_common(1)), (tokenizer.eos_token, 0))
    hint = "" if rows else ": the model does not learn to stop"
    return f"{token!r} trained at the end of {rows:,} of {len(examples):,} rows{hint}"


def _counted(numbers: Counter[int], rows: int) -> str:
    """1 in every row; or: 1 in 5, 2 in 3 rows."""
    if len(numbers) == 1:
        return f"{next(iter(numbers))} in every row"
    each = [f"{number} in {count:,}" for number, count in sorted(numbers.items())]
    return f"{', '.join(each)} of {rows:,} rows"
