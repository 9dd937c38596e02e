"""What a recipe's model and data are in numbers: all that its memory follows from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from zoft.data.examples import Choice, Example, length
from zoft.engine.probe.forwards.experts import TENSORS
from zoft.errors import EnvironmentProblem
from zoft.models.activations import Pass, trace_pass, trace_saved
from zoft.models.adapters import of_adapter
from zoft.models.blocks import find_blocks, owned_parameters
from zoft.models.meta import build_outline, load_config, why_not_streamed
from zoft.models.storage.fetch import local_folder
from zoft.models.storage.safetensors import stored_tensors
from zoft.models.trainable import tail_parameters, tuned_parameters
from zoft.recipe.resolved import Resolved
from zoft.system.device import DTYPES

# As configs call them: the experts that a token goes through, and all of them.
CHOSEN = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts",
)  # fmt: skip
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

Sets = Mapping[str, Sequence[Example] | None]


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter. `block` is the number of the block that owns it, None outside the blocks.

    `kind` says how a probe meets it: in a product, in one for each expert, as a table of which rows are
    looked up, or as a whole (norms, biases, whatever else). `exact`: it learns by exact gradients.
    """

    name: str
    shape: tuple[int, ...]
    tuned: bool
    kind: Literal["product", "experts", "table", "whole"]
    block: int | None = None
    adapter: bool = False
    exact: bool = False

    @property
    def numel(self) -> int:
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclass(frozen=True, slots=True)
class Texts:
    """Examples in numbers: tokens of the longest, rows that one takes in a pass (several where its
    options are), positions of a row that go through the whole head (0: only the label words do),
    tokens of all of them, and their number (0: not known)."""

    longest: int
    rows: int = 1
    scored: int = 0
    tokens: int = 0
    number: int = 0

    @property
    def typical(self) -> int:
        """Tokens of a row on average: about the width of a batch of like lengths."""
        return -(-self.tokens // self.number) if self.number else self.longest


@dataclass(frozen=True)
class Shape:
    """A model (weights in order, the head's weight by name, bytes of buffers) and its examples.

    `known` is False where a set could not be read, so that `data.max_length` had to stand in.
    `cache` is bytes of keys and values of one token, while an evaluation writes. `fixed` says why its
    blocks cannot be streamed, if they cannot. `words` are those of the tokenizer (0: not known).
    `converted` is bytes of the file that is to be converted first, `mapped` of the files that a
    quantised base is read from, which are all in memory once it is; `active` is the share of its
    experts that a token goes through.
    """

    weights: tuple[Weight, ...]
    head: str
    hidden: int
    vocabulary: int
    buffers: int
    train: Texts
    evaluation: Texts | None
    known: bool = True
    cache: int = 0
    fixed: str = ""
    words: int = 0
    converted: int = 0
    mapped: int = 0
    active: float = 1.0
    outline: nn.Module | None = field(default=None, repr=False, compare=False)

    @cached_property
    def blocks(self) -> int:
        return 1 + max((w.block for w in self.weights if w.block is not None), default=-1)

    def computed(self, weight: Weight) -> float:
        """Multiplications of a token with a weight in a product: with some of the experts only."""
        share = self.active if weight.kind == "experts" else 1.0
        return share * weight.numel if weight.kind in ("product", "experts") else 0.0

    @cached_property
    def _passes(self) -> dict[tuple[int, int], Pass]:
        return {}

    def trace(self, rows: int, length: int) -> Pass:
        """What a pass over (rows, length) token ids holds, in the compute type; see `trace_pass`."""
        key = rows, length
        if key not in self._passes:
            self._passes[key] = self._trace(rows, length)
        return self._passes[key]

    def saved(self, learns: Set[str], rows: int, length: int) -> int:
        """Bytes that back-propagation to these keeps of a pass over (rows, length) token ids."""
        if self.outline is not None:
            with suppress(Exception):  # as in a trace
                return trace_saved(self.outline, learns, rows, length)
        return 2 * self.trace(rows, length).live

    def _trace(self, rows: int, length: int) -> Pass:
        if self.outline is not None:
            with suppress(Exception):  # a model that looks at its numbers may raise anything there
                return trace_pass(self.outline, rows, length)
        widest = max((max(w.shape) for w in self.weights if w.block is not None), default=0)
        return Pass(rows * length * (6 * self.hidden + 4 * widest) * 4, True)


def shape_of(recipe: Resolved, sets: Sets | None = None, words: int = 0) -> Shape:
    """From the config alone; `sets` are the examples of train, eval and test that will be used, None for
    one that could not be read, and `words` those of their tokenizer. Without `sets` none was read.

    `recipe` has no `auto` left in its types. Raises EnvironmentProblem, RecipeError.
    """
    config = load_config(recipe.model)
    model = build_outline(
        config,
        recipe.tune,
        # Activations come in the type that is computed in, so the outline does, too.
        stored=DTYPES[recipe.model.compute_dtype],
        adapter=DTYPES[recipe.model.dtype],
        trust_remote_code=recipe.model.trust_remote_code,
    )
    text = config.get_text_config(decoder=True)
    positions = getattr(text, "max_position_embeddings", None)
    guess = _guess(recipe, positions)
    if not sets:
        named = ("train", "eval", "test")
        sets = {name: None for name in named if getattr(recipe.data, name) is not None}
    texts = {name: texts_of(found) if found else guess for name, found in sets.items()}
    others = [_scored(texts[name], recipe) for name in ("eval", "test") if name in texts]
    head: nn.Linear = model.get_output_embeddings()  # type: ignore[operator]
    return Shape(
        weights=tuple(_weights(model, recipe)),
        head=next(name for name, p in model.named_parameters() if p is head.weight),
        hidden=head.weight.shape[1],
        vocabulary=head.weight.shape[0],
        buffers=sum(b.numel() * b.element_size() for b in model.buffers()),
        train=texts["train"],
        evaluation=_joined(others) if others else None,
        known=all(sets.values()),
        cache=_cache(text, DTYPES[recipe.model.compute_dtype].itemsize),
        fixed=_fixed(recipe, config),
        words=words,
        converted=_converted(recipe.model.name),
        mapped=_mapped(recipe),
        active=_active(text),
        outline=model,
    )


def with_tune(shape: Shape, recipe: Resolved) -> Shape:
    """The same model with the recipe's section tune, of the same method."""
    assert shape.outline is not None
    return replace(shape, weights=tuple(_weights(shape.outline, recipe)))


def _converted(name: str) -> int:
    file = Path(name).expanduser()
    new = file.suffix == ".gguf" and local_folder(name) is None and file.is_file()
    return file.stat().st_size if new else 0


def _mapped(recipe: Resolved) -> int:
    """0 for files that are not here yet, or not in safetensors."""
    folder = local_folder(recipe.model.name)
    if recipe.model.quantization != "none" and folder:
        with suppress(EnvironmentProblem):  # loading says what is wrong with them
            return sum(x.nbytes for x in stored_tensors(folder).values())
    return 0


def _active(config: PreTrainedConfig) -> float:
    """Of a mixture's experts; 1 for what says of itself no number of them."""
    chosen = next((n for x in CHOSEN if (n := getattr(config, x, None))), 0)
    experts = next((n for x in EXPERTS if (n := getattr(config, x, None))), 0)
    return min(1.0, chosen / experts) if chosen and experts else 1.0


def _fixed(recipe: Resolved, config: PreTrainedConfig) -> str:
    """Of a quantised base the codes are made in memory, and travel from there."""
    if recipe.tune.tail_blocks is not None:
        return "its last blocks learn by exact gradients; with tune.tail=head or none it can"
    if recipe.model.quantization != "none":
        return ""
    return why_not_streamed(config, recipe.model.trust_remote_code)


def texts_of(examples: Sequence[Example]) -> Texts:
    """The examples in numbers."""
    longest = max(map(length, examples))
    tokens, number = sum(map(length, examples)), len(examples)
    choices = [x for x in examples if isinstance(x, Choice)]
    if not choices:
        scored = max(len(x.supervised) for x in examples if not isinstance(x, Choice))
        return Texts(longest, 1, scored, tokens, number)
    first = choices[0].options
    if all(len(option) == 1 for option in first) and all(x.options == first for x in choices):
        return Texts(longest, 1, 0, tokens, number)
    rows = max(len(x.options) for x in choices)
    scored = max(len(option) for x in choices for option in x.options)
    return Texts(longest, rows, scored, tokens, number)


def _scored(texts: Texts, recipe: Resolved) -> Texts:
    """Of rows with options `lm` scores the right one's tokens as well, by the whole head."""
    if recipe.objective.name == "lm" and not texts.scored:
        return replace(texts, scored=1)
    return texts


def _cache(config: PreTrainedConfig, itemsize: int) -> int:
    """Keys and values of one token in all layers; of latent or linear attention, which keep less, too
    much."""
    layers = config.per_layer_config if config.is_heterogeneous else [config]
    found = [_cached(layer) for layer in layers]
    return int(itemsize * config.num_hidden_layers * sum(found) / len(found))


def _cached(layer: PreTrainedConfig) -> int:
    """Numbers that one layer keeps of a token."""
    heads, groups, each = (
        max(value) if isinstance(value := getattr(layer, name, None), list | tuple) else value or 0
        for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    return int(2 * (groups or heads) * (each or layer.hidden_size // max(1, heads)))


def _guess(recipe: Resolved, positions: int | None) -> Texts:
    longest = min(recipe.data.max_length, positions or recipe.data.max_length)
    scored = 0 if recipe.objective.name == "choice" else longest
    return Texts(longest, scored=scored)


def _joined(texts: Sequence[Texts]) -> Texts:
    return Texts(
        max(x.longest for x in texts),
        max(x.rows for x in texts),
        max(x.scored for x in texts),
        sum(x.tokens for x in texts),
        sum(x.number for x in texts),
    )


def _weights(model: nn.Module, recipe: Resolved) -> list[Weight]:
    tuned, exact = tuned_parameters(model, recipe.tune), tail_parameters(model, recipe.tune)
    kinds: dict[nn.Parameter, Literal["product", "experts", "table", "whole"]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight" and isinstance(module, nn.Linear | Conv1D):
                kinds.setdefault(parameter, "product")
            elif name in TENSORS and parameter.ndim == 3:
                kinds[parameter] = "experts"
            elif name == "weight" and type(module).forward is nn.Embedding.forward:
                kinds[parameter] = "table"  # a tied head comes in chunks, whatever it is
            else:
                kinds.setdefault(parameter, "whole")
    number: dict[str, int] = {}
    with suppress(EnvironmentProblem):  # without a list of blocks, nothing is streamed
        owned = owned_parameters(model, find_blocks(model))
        number = {name: i for i, names in enumerate(owned) for name in names}
    return [
        Weight(
            name,
            tuple(parameter.shape),
            name in tuned,
            kinds[parameter],
            number.get(name),
            of_adapter(name),
            name in exact,
        )
        for name, parameter in model.named_parameters()
    ]
