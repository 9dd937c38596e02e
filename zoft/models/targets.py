"""Which modules get an adapter, and which blocks learn: a recipe's words, found in a model."""

from __future__ import annotations

from difflib import get_close_matches

from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zoft.errors import EnvironmentProblem, RecipeError
from zoft.models.blocks import find_blocks
from zoft.recipe.sections.tune import TuneSection

FAMILIES = {
    "lora": TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    "ia3": TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
}


def target_endings(model: PreTrainedModel, tune: TuneSection) -> list[str]:
    """The name endings that `tune.target_modules` means in this model; each matches a module.

    Raises RecipeError for one that does not, EnvironmentProblem if `auto` finds none.
    """
    linear = _linear_modules(model)
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    endings = sorted({name.rpartition(".")[2] for name, m in linear.items() if m is not head})
    if tune.target_modules == "all-linear":
        return endings
    if tune.target_modules == "auto":
        family = FAMILIES[tune.method].get(model.config.model_type)
        others = [["q_proj", "v_proj"]] if tune.method == "lora" else []
        for choice in (family, *others):
            if isinstance(choice, list) and all(_matches(linear, target) for target in choice):
                return choice
        raise EnvironmentProblem(
            f"no default modules of {model.config.model_type} models for {tune.method}; "
            f"set tune.target_modules to some of: {', '.join(endings)}"
        )
    known = {**linear, **(_word_table(model) if tune.method == "lora" else {})}
    unknown = [target for target in tune.target_modules if not _matches(known, target)]
    if unknown:
        raise RecipeError(
            "\n".join(
                f"tune.target_modules: {target!r} is no linear module of the model; "
                f"there are: {', '.join(get_close_matches(target, endings) or endings)}"
                for target in unknown
            )
        )
    return list(tune.target_modules)


def target_names(model: PreTrainedModel, tune: TuneSection) -> dict[str, nn.Module]:
    """Full name -> every module that gets an adapter. Raises as `target_endings` does, and
    RecipeError for blocks that the model does not have or in which no such module is."""
    endings = target_endings(model, tune)
    inside = block_prefixes(model, tune.layers) if tune.layers else ("",)
    known = {**_linear_modules(model), **_word_table(model)}
    found = {
        name: module
        for name, module in known.items()
        if any(_ends_with(name, ending) for ending in endings) and name.startswith(inside)
    }
    if not found:
        raise RecipeError(f"tune.layers: no block of them has a module {', '.join(endings)}")
    return found


def feedforward(model: PreTrainedModel, targets: list[str]) -> list[str]:
    """Of the targets, those whose input IA3 scales: the second matrix of a feed-forward network."""
    family = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(model.config.model_type, [])
    return [target for target in targets if any(_ends_with(target, name) for name in family)]


def block_prefixes(model: nn.Module, layers: tuple[int, int]) -> tuple[str, ...]:
    """What the names of all parameters in blocks first to last (both included) begin with.

    Raises RecipeError if the model has fewer, or no list of blocks.
    """
    try:
        blocks = find_blocks(model)
    except EnvironmentProblem as error:
        raise RecipeError("tune.layers: the model has no list of blocks") from error
    first, last = layers
    if last >= len(blocks.modules):
        raise RecipeError(
            f"tune.layers: [{first}, {last}], the model has blocks 0 to {len(blocks.modules) - 1}"
        )
    return tuple(f"{blocks.name}.{i}." for i in range(first, last + 1))


def _linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the matrices that an adapter can change, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}


def _word_table(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The table of token embeddings, if it is a plain one: what peft can adapt beside matrices."""
    table = model.get_input_embeddings()
    plain = getattr(type(table), "forward", None) is nn.Embedding.forward
    return {n: m for n, m in model.named_modules() if plain and m is table}


def _matches(modules: dict[str, nn.Module], target: str) -> bool:
    return any(_ends_with(name, target) for name in modules)


def _ends_with(name: str, target: str) -> bool:
    """Whether the last parts of a dotted name are `target`."""
    return name == target or name.endswith(f".{target}")
