"""Which parameters learn, the number each has in the directions, and which of them decay."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from zoft.errors import RecipeError
from zoft.recipe.schema import TuneSection


def tuned_parameters(model: nn.Module, tune: TuneSection) -> dict[str, nn.Parameter]:
    """Name -> parameter in model order, tied ones once, by their first name.

    Full tuning: all floating parameters; LoRA: the adapter's. Of these the ones that match a glob
    of `include` and none of `exclude`. Raises RecipeError for a glob that matches nothing, and
    if nothing is left.
    """
    names = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and (tune.method == "full" or _of_adapter(name))
    }
    problems = [
        f"tune.{key}: {glob!r} matches no parameter{_near(glob, names)}"
        for key, globs in (("include", tune.include), ("exclude", tune.exclude))
        for glob in globs
        if not any(fnmatchcase(name, glob) for name in names)
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


def parameter_ids(names: Iterable[str]) -> dict[str, int]:
    """Name -> 32-bit counter word of its directions (METHODS §1): the CRC-32 of the name.

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
    """Names of the parameters that weight decay may shrink: no vectors, nothing inside a norm."""
    norms = {name for name, module in model.named_modules() if _is_norm(module)}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and name.rpartition(".")[0] not in norms
    }


def _of_adapter(name: str) -> bool:
    return any(part.startswith("lora_") for part in name.split("."))


def _is_norm(module: nn.Module) -> bool:
    # Families define their own (LlamaRMSNorm); what they share with torch's is the class name.
    return "norm" in type(module).__name__.lower() and not list(module.children())


def _near(glob: str, names: Iterable[str]) -> str:
    near = get_close_matches(glob.strip("*"), list(names), n=3, cutoff=0.3)
    return f"; near: {', '.join(near)}" if near else ""
