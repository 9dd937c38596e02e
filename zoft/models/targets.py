"""Which modules get an adapter, and which blocks learn: a recipe's words, found in a model."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection, Iterable, Set
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from peft import IA3Config, LoraConfig, inject_adapter_in_model
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)
from torch import nn
from transformers import PreTrainedModel

from zoft.errors import EnvironmentProblem, RecipeError
from zoft.models.blocks import find_blocks, find_towers
from zoft.models.mixers import Linears, linear_modules, observe_linears
from zoft.recipe.sections.tune import TuneSection
from zoft.system.silence import quiet

FAMILIES = {
    "lora": TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    "ia3": TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
}
_FAMILY_CODE = ("transformers.models.", "transformers_modules.")
USUAL = {"lora": ["q_proj", "v_proj"], "ia3": ["k_proj", "v_proj", "down_proj"]}


@dataclass(frozen=True)
class Targets:
    """Modules that get an adapter, by full name, and the name endings that stand for them."""

    endings: list[str]
    modules: dict[str, nn.Module]

    def words(self, model: nn.Module) -> list[str]:
        """The endings for peft, or full names where it would find more by these: in other blocks, in
        a tower, among modules that it cannot wrap."""
        found = {name for name, _ in model.named_modules() if _ends_with(name, self.endings)}
        return self.endings if found == self.modules.keys() else list(self.modules)


def find_targets(model: PreTrainedModel, tune: TuneSection) -> Targets:
    """The modules that `tune` gives an adapter; in a model of several modalities those of the decoder,
    unless none of it has the name.

    Raises as `target_endings` does, and RecipeError for blocks that the model does not have or in which
    no such module is, and for a module that no adapter fits.
    """
    if tune.target_modules == "all-linear":
        known = _offered(model, tune, observe_linears(model))
        endings = _last_parts(known)
    else:
        known = {**linear_modules(model), **_word_table(model)}
        endings = target_endings(model, tune)
    inside = block_prefixes(model, tune.layers) if tune.layers else ("",)
    decoder = _of_decoder(model, known)
    found: set[str] = set()
    for ending in endings:
        found |= _matches(decoder, ending) or _matches(known, ending)
    modules = {name: m for name, m in known.items() if name in found and name.startswith(inside)}
    _require_linear(model, modules)
    if not modules:
        raise RecipeError(f"tune.layers: no block of them has a module {', '.join(endings)}")
    return Targets(endings, modules)


def target_endings(model: PreTrainedModel, tune: TuneSection) -> list[str]:
    """The name endings that `tune.target_modules` means in this model; each matches a module.

    Raises RecipeError for one that does not, and if `auto` finds none.
    """
    linear = _of_decoder(model, linear_modules(model))
    if isinstance(tune.target_modules, list):
        known = {**linear_modules(model), **(_word_table(model) if tune.method == "lora" else {})}
        unknown = [target for target in tune.target_modules if not _matches(known, target)]
        if unknown:
            there = _last_parts(_offered(model, tune, observe_linears(model)))
            raise RecipeError(
                "\n".join(
                    f"tune.target_modules: {target!r} is no linear module of the model; "
                    f"there are: {', '.join(get_close_matches(target, there) or there)}"
                    for target in unknown
                )
            )
        return list(tune.target_modules)
    if tune.target_modules == "auto":
        for choice in (FAMILIES[tune.method].get(model.config.model_type), USUAL[tune.method]):
            if isinstance(choice, list) and all(_matches(linear, target) for target in choice):
                return _without_idle(model, linear.keys(), choice)
    seen = observe_linears(model)
    offered = _offered(model, tune, seen)
    if tune.target_modules == "all-linear":
        return _last_parts(offered)
    found = _by_place(offered, tune, seen)
    if not found:
        raise RecipeError(
            f"tune.target_modules: no default for {tune.method} and {model.config.model_type} models; "
            f"set it to some of: {', '.join(_last_parts(offered))}"
        )
    return _shortest_endings(found, linear.keys() - found)


def feedforward(model: PreTrainedModel, targets: list[str]) -> list[str]:
    """Of the targets, those whose input IA3 scales: the second matrix of a feed-forward network."""
    family = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(model.config.model_type)
    if family is not None:
        return [target for target in targets if _ends_with(target, family)]
    closing = observe_linears(model).closing
    return [target for target in targets if _matches(closing, target)]


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


def _require_linear(model: PreTrainedModel, modules: dict[str, nn.Module]) -> None:
    """Raise RecipeError for a module that a family derived from nn.Linear and that computes otherwise:
    products by group, a router's choice. peft takes it, and the forward pass fails."""
    own = {name for name, m in modules.items() if type(m).__module__.startswith(_FAMILY_CODE)}
    called = observe_linears(model).called if own else None
    wrong = sorted(own - called) if called is not None else []
    if wrong:
        raise RecipeError(
            f"tune.target_modules: {wrong[0]}, a {type(modules[wrong[0]]).__name__}, computes more than "
            "a linear layer: no adapter fits beside it"
        )


def _offered(model: PreTrainedModel, tune: TuneSection, seen: Linears) -> dict[str, nn.Module]:
    """Return the decoder's linear modules that take an adapter: not the head, none whose weight the
    model reads without running it, none that peft refuses by name."""
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = {n: m for n, m in _of_decoder(model, linear_modules(model)).items() if m is not head}
    if seen.called is not None:
        linear = {name: module for name, module in linear.items() if name in seen.called}
    refused = _refused(model, tune, _last_parts(linear))
    return {name: m for name, m in linear.items() if name.rpartition(".")[2] not in refused}


def _refused(model: PreTrainedModel, tune: TuneSection, names: list[str]) -> list[str]:
    """Return the names that peft does not take in a model of this family (it tells Mamba's apart)."""
    if not names or _takes(model, tune, names):  # some it takes together only: parts of experts
        return []
    return [name for name in names if not _takes(model, tune, [name])]


def _without_idle(model: PreTrainedModel, linear: Set[str], choice: list[str]) -> list[str]:
    """Return endings that leave out modules which do not run on text: attention to an encoder or to
    images, in places of its own."""
    chosen = {name for name in linear if _ends_with(name, choice)}
    if len({re.sub(r"\.\d+\.", ".", name) for name in chosen}) == len(choice):
        return choice  # one place each, hence no need for the pass
    called = observe_linears(model).called
    if called is None or chosen <= called:
        return choice
    return _shortest_endings(chosen & called, linear - (chosen & called))


def _takes(model: PreTrainedModel, tune: TuneSection, names: list[str]) -> bool:
    stand_in: Any = nn.Module()
    stand_in.config = model.config
    for name in names:
        stand_in.add_module(name, nn.Linear(1, 1))
    config = (
        LoraConfig(target_modules=names)
        if tune.method == "lora"
        else IA3Config(target_modules=names, feedforward_modules=[])
    )
    try:
        with quiet(), warnings.catch_warnings(action="ignore"):
            inject_adapter_in_model(config, stand_in)
    except ValueError:
        return False
    return True


def _by_place(offered: dict[str, nn.Module], tune: TuneSection, seen: Linears) -> set[str]:
    """Return what a mixer reads its input with and, for IA3, what closes a feed-forward network."""
    mixing = offered.keys() & set(seen.mixing)
    if tune.method == "ia3":
        return mixing | (offered.keys() & set(seen.closing))
    # Gates and routers of a few outputs: their adapter would be larger than they are.
    return {name for name in mixing if _adapter_is_smaller(offered[name], tune.r)} or mixing


def _adapter_is_smaller(module: nn.Module, r: int) -> bool:
    weight: Any = module.weight  # which is packed in a quantised nn.Linear
    shape = (
        (module.out_features, module.in_features) if isinstance(module, nn.Linear) else weight.shape
    )
    return bool(r * sum(shape) < math.prod(shape))


def _shortest_endings(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return what the names end with, as short as leaves all others out."""
    taken = {ending for name in others for ending in _tails(name)}
    return sorted({next(end for end in _tails(name) if end not in taken) for name in names})


def _tails(name: str) -> list[str]:
    """Return the endings of a dotted name, the shortest first."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in reversed(range(len(parts)))]


def _of_decoder(model: nn.Module, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    towers = tuple(f"{tower}." for tower in find_towers(model))
    return {name: m for name, m in modules.items() if not f"{name}.".startswith(towers)}


def _word_table(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The table of token embeddings, if it is a plain one: what peft can adapt beside matrices."""
    table = model.get_input_embeddings()
    plain = getattr(type(table), "forward", None) is nn.Embedding.forward
    return {n: m for n, m in model.named_modules() if plain and m is table}


def _last_parts(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _matches(names: Iterable[str], target: str) -> set[str]:
    return {name for name in names if _ends_with(name, [target])}


def _ends_with(name: str, targets: Collection[str]) -> bool:
    """Whether the last parts of a dotted name are one of `targets`."""
    return f".{name}".endswith(tuple(f".{target}" for target in targets))
