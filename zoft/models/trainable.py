"""Which parameters learn, the number each has in the directions, and which of them decay."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Set
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from zoft.errors import RecipeError
from zoft.models.adapters import of_adapter
from zoft.models.blocks import Blocks, find_blocks, find_towers, owned_parameters
from zoft.models.targets import block_prefixes
from zoft.recipe.sections.tune import TuneSection


def tuned_parameters(model: nn.Module, tune: TuneSection) -> dict[str, nn.Parameter]:
    """Name -> parameter in model order, tied ones once, by their first name.

    Full tuning: all floating parameters, or those that `only` and `layers` name; else the adapter's.
    Of these the ones that match a glob of `include` and none of `exclude`, without towers of another
    modality. None where a tail of exact gradients has all blocks, or all that would learn. Raises
    RecipeError for a glob that matches nothing, for blocks that the model does not have, and if
    nothing is left.
    """
    towers = _of_towers(model, tune)
    names = _learning(model, tune, towers)
    if tune.tail != "none":  # the head's rows are solved; what a probe adds to the others' is noise
        apart = {*_head_and_table(model), *tail_parameters(model, tune).values()}
        names = {name: p for name, p in names.items() if p not in apart}
        if tune.tail_blocks and (not names or tune.tail_blocks == len(find_blocks(model).modules)):
            return {}  # all that learns does so by exact gradients
    problems = [
        f"tune.{key}: {glob!r} matches no parameter{_near(glob, names)}"
        for key, globs in (("include", tune.include), ("exclude", tune.exclude))
        for glob in globs
        if not any(fnmatchcase(name, glob) for name in (*names, *towers))
    ]
    if problems:
        raise RecipeError("\n".join(problems))
    tuned = {
        name: parameter
        for name, parameter in names.items()
        if any(fnmatchcase(name, glob) for glob in tune.include)
        and not any(fnmatchcase(name, glob) for glob in tune.exclude)
    }
    if not tuned:
        raise RecipeError(f"tune.include and tune.exclude leave none of {len(names)} parameters")
    return tuned


def tail_parameters(model: nn.Module, tune: TuneSection) -> dict[str, nn.Parameter]:
    """Name -> parameter of the last blocks that `tune.tail` names, and of the norm behind all blocks.

    Raises EnvironmentProblem if the model has no blocks, RecipeError if it has fewer.
    """
    number = tune.tail_blocks
    if number is None:
        return {}
    blocks = find_blocks(model)
    if number > len(blocks.modules):
        raise RecipeError(f"tune.tail: {tune.tail}, but the model has {len(blocks.modules)} blocks")
    first = len(blocks.modules) - number
    owned = owned_parameters(model, blocks)[first:]
    inside = {name: p for block in owned for name, p in block.items() if p.is_floating_point()}
    return {**inside, **_final_norm(model, blocks)}


def _final_norm(model: nn.Module, blocks: Blocks) -> dict[str, nn.Parameter]:
    """Of the norms outside the blocks the one that is as wide as what the head reads and is no
    embedding's: models name it norm, ln_f, final_layer_norm."""
    found = {}
    for name, module in model.named_modules():
        outside = not name.startswith(f"{blocks.name}.") and is_norm(module)
        if outside and "emb" not in name and not name.startswith(find_towers(model)):
            found.update({f"{name}.{own}": p for own, p in module.named_parameters()})
    return found


def _head_and_table(model: nn.Module) -> set[nn.Parameter]:
    """The output head's weight, which a table of words may be tied to."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    return {head.weight}


def idle_towers(model: nn.Module, tune: TuneSection) -> list[str]:
    """The base model's names of the modules for images and sound that `tuned_parameters` leaves out."""
    tuned = tuned_parameters(model, tune)
    return [
        tower.removeprefix("base_model.model.")
        for tower in find_towers(model)
        if not any(name.startswith(f"{tower}.") for name in tuned)
    ]


def _of_towers(model: nn.Module, tune: TuneSection) -> set[str]:
    """Names of the parameters for other modalities; without those that a glob of `include` asks for,
    and for nothing else."""
    towers = tuple(f"{tower}." for tower in find_towers(model))
    names = [name for name, _ in model.named_parameters()]
    outside = {name for name in names if name.startswith(towers)}
    asked = [
        glob
        for glob in tune.include
        if not any(fnmatchcase(name, glob) for name in names if name not in outside)
    ]
    return {name for name in outside if not any(fnmatchcase(name, glob) for glob in asked)}


def _learning(model: nn.Module, tune: TuneSection, towers: Set[str]) -> dict[str, nn.Parameter]:
    """Return the parameters that `method`, `only` and `layers` let learn. Raises RecipeError."""
    floating = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    if tune.method != "full":  # an adapter stands in a tower only if the recipe names it
        return {name: p for name, p in floating.items() if of_adapter(name)}
    floating = {name: p for name, p in floating.items() if name not in towers}
    if tune.layers:
        inside = block_prefixes(model, tune.layers)
        floating = {name: p for name, p in floating.items() if name.startswith(inside)}
    if tune.only == "all":
        return floating
    kinds = {name: _kind(module) for name, module in model.named_modules()}
    found = {}
    for name, parameter in floating.items():
        module, _, own = name.rpartition(".")
        of_bias = own == "bias" and kinds[module] is not None
        if (tune.only == "bias" and of_bias) or (tune.only == "norm" and kinds[module] == "norm"):
            found[name] = parameter
    if not found:
        where = " in these blocks" if tune.layers else ""
        raise RecipeError(f"tune.only: {type(model).__name__} has no {tune.only}{where}")
    return found


def parameter_ids(names: Iterable[str]) -> dict[str, int]:
    """Name -> 32-bit word of its directions (docs/methods.md#random-numbers): CRC-32 of the name.

    The id does not depend on what else is tuned, unless two names collide: then the later one in
    sorted order takes the next free number.
    """
    ids: dict[str, int] = {}
    names = list(names)
    taken: set[int] = set()
    for name in sorted(names):
        number = zlib.crc32(name.encode())
        while number in taken:
            number = (number + 1) % 2**32
        taken.add(number)
        ids[name] = number
    return {name: ids[name] for name in names}


def decays(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay may shrink: no vectors (IA3 keeps its factors as
    matrices of one row or column), nothing inside a norm."""
    norms = {name for name, module in model.named_modules() if is_norm(module)}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and name.rpartition(".")[0] not in norms and ".ia3_" not in name
    }


def _kind(module: nn.Module) -> Literal["norm", "product"] | None:
    """Of a module whose vector `bias` is added to what it computes; None for any other."""
    if is_norm(module):
        return "norm"
    products = nn.Linear | Conv1D | nn.Conv1d
    return "product" if isinstance(module, products) else None


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a normalisation, of whatever family."""
    # Families define their own (LlamaRMSNorm); what they share with torch's is the class name.
    return "norm" in type(module).__name__.lower() and not list(module.children())


def _near(glob: str, names: Iterable[str]) -> str:
    """Say which names are close to the glob, if any is."""
    near = get_close_matches(glob.strip("*"), list(names), n=3, cutoff=0.3)
    return f"; near: {', '.join(near)}" if near else ""
