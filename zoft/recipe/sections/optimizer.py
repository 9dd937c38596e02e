"""Section `optimizer` of a recipe: one of the update rules, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import Discriminator, Tag

from zoft.recipe.sections.optimizers.fzoo import FZOO
from zoft.recipe.sections.optimizers.mezo import MeZO
from zoft.recipe.sections.optimizers.momentum import Momentum
from zoft.recipe.sections.optimizers.radazo import RAdaZO
from zoft.recipe.sections.optimizers.rule import OptimizerSection
from zoft.recipe.sections.optimizers.zoadamm import ZOAdaMM

DEFAULT = "r-adazo"


def _name(value: Any) -> str:
    """The rule that a section is of; the default where it has no name."""
    if isinstance(value, OptimizerSection):
        return value.name
    return str(value.get("name", DEFAULT)) if isinstance(value, Mapping) else DEFAULT


# Every update rule, one line each. (To mypy a section is of the class that all rules share.)
Rules = Annotated[
    Annotated[RAdaZO, Tag("r-adazo")]
    | Annotated[MeZO, Tag("mezo")]
    | Annotated[Momentum, Tag("momentum")]
    | Annotated[ZOAdaMM, Tag("zo-adamm")]
    | Annotated[FZOO, Tag("fzoo")],
    Discriminator(_name),
]  # fmt: skip
if TYPE_CHECKING:
    AnyOptimizer = OptimizerSection
else:
    AnyOptimizer = Rules
RULES: dict[str, type[OptimizerSection]] = {
    tag.tag: rule for rule, tag in map(get_args, get_args(get_args(Rules)[0]))
}


def own_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """The section without keys that are another rule's: zoft 0.1 wrote all keys whatever the rule."""
    rule = RULES.get(_name(values), OptimizerSection)
    others = {key for other in RULES.values() for key in other.model_fields}
    return {
        key: value for key, value in values.items() if key in rule.model_fields or key not in others
    }
