"""The recipe keys that all update rules share, and the interfaces that a rule is written against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, ValidationInfo, create_model, field_validator

from zoft.recipe.sections.base import Auto, NotNegative, Positive, Section, Whole

MAX_TERMS = 2048  # engine/kernels/numerics/exact_sum.py: so many directions in one sum are exact

Structure = Literal["dense", "rank1"]
Scope = Literal["batch", "example"]


# -- what a rule is written against -----------------------------------------------------------------


# sum_i a_i z_i, as `Directions.total` makes it and a `Weight` takes it; a rule only passes it on.
DirectionSum = Any


class Directions(Protocol):
    """The directions of a run."""

    def total(
        self, addresses: Sequence[tuple[int, int]], coefficients: Sequence[float]
    ) -> DirectionSum:
        """The sum of the directions at `addresses`, pairs (step, k), with these coefficients."""


@dataclass(frozen=True, slots=True)
class AdamConstants:
    """The constants of one element-wise update, each used in float32 (docs/methods.md#r-adazo)."""

    beta1: float
    beta2: float
    lr: float  # times 1 / (1 - beta1**t) under `bias_correction: adam`
    correction: float  # of v: 1 - beta2**t, or 1
    eps: float  # the paper's zeta

    def constants(self) -> tuple[float, float, float, float, float, float, float]:
        """beta1, beta2, 1 - beta1, 1 - beta2, lr, correction, eps, as the kernels take them."""
        rest = (1.0 - self.beta1, 1.0 - self.beta2)
        return (self.beta1, self.beta2, *rest, self.lr, self.correction, self.eps)


class Weight(Protocol):
    """A tuned weight in an update, with the float32 tensors that the rule keeps for it (its state).

    Decoupled weight decay and stochastic rounding are the caller's: a rule moves the weight once.
    """

    def add(self, total: DirectionSum) -> None:
        """weight += total."""

    def add_state(self, name: str, factor: float) -> None:
        """weight += factor * state[name]."""

    def accumulate(self, name: str, total: DirectionSum, decay: float) -> None:
        """state[name] = decay * state[name] + total."""

    def adam(self, gradient: DirectionSum, constants: AdamConstants) -> None:
        """R-AdaZO's update with stored moments; the state is (m, v). Of ZO-AdaMM it is (m, v, the
        largest v), and v is of g, not of m."""

    def adam_window(self, gradients: Sequence[DirectionSum], constants: AdamConstants) -> None:
        """R-AdaZO's update with m and v recomputed from the last gradients, oldest first."""


class UpdateRule(Protocol):
    """Moves weights by the slopes of a step. Its own state is numbers; tensors are with the weights."""

    def update(
        self, step: int, projected_grad: Sequence[float], lr: float, directions: Directions
    ) -> Callable[[Weight], None]:
        """The update of every weight by the slopes c_k along the directions (step, k)."""

    def state_dict(self) -> dict[str, Any]:
        """Numbers for trainer.json."""

    def load_state_dict(self, numbers: dict[str, Any]) -> None:
        """The inverse of `state_dict`. Raises KeyError if the state is of another rule."""


def gradient(
    step: int, projected_grad: Sequence[float], directions: Directions, factor: float = 1.0
) -> DirectionSum:
    """factor * (1/K) sum_k c_k z_k, the gradient estimate of a step."""
    K = len(projected_grad)
    addresses = [(step, k) for k in range(K)]
    return directions.total(addresses, [factor * c / K for c in projected_grad])


# -- the recipe's section ---------------------------------------------------------------------------


class Rate(Section):
    """The first keys of every rule. (Fields of base classes come in the order of these classes.)"""

    name: str
    lr: Positive | Auto = Field(
        "auto",
        description="Learning rate. r-adazo: about how far (RMS) a weight moves in a step; with folded "
        "momentum 4.4 times as far, for steps across each other instead of along a mean. auto: "
        "r-adazo 2e-4 with scope example, else 1e-4 (LoRA 5e-5); mezo 1e-6 (LoRA 1e-4); other rules "
        "and kinds of tuning: docs/tuning.md.",
    )


class OptimizerSection(Rate):
    """The keys of every rule: how directions are drawn and probed, decay, schedule.

    A rule is a class NAME(OptimizerSection, NAMEKeys); NAMEKeys(Rate) has its own keys, which thereby
    stand between `lr` and `perturbation`.
    """

    TITLE: ClassVar[str]  # the method's name
    CITATION: ClassVar[str]  # the paper's arXiv number
    # Default rate by what learns (`resolved.what_learns`).
    LEARNING_RATES: ClassVar[Mapping[str, float]]
    # Whether the automatic choice for full tuning is rank-1 directions of the examples' own.
    PER_EXAMPLE: ClassVar[bool] = False
    # The override that frees the state, if there is one.
    WITHOUT_STATE: ClassVar[str | None] = None
    # Whether steps are proportional to the slopes, as those of plain SGD are.
    PROPORTIONAL: ClassVar[bool] = False

    perturbation: Positive | Auto = Field(
        "auto",
        description="How far a probe moves each weight (the papers' epsilon). auto: LoRA 1e-2, "
        "full tuning 1e-3, or more where compute_dtype would round that away; other kinds of tuning: "
        "docs/tuning.md.",
    )
    structure: Literal["auto", "dense", "rank1"] = Field(
        "auto",
        description="What a direction is for a matrix. dense: a sign (or normal number) for every "
        "weight; rank1: the product u v^T of two vectors of signs, so that a probe builds no "
        "perturbed copy. auto: rank1 for scope example, and for full tuning with r-adazo and signs.",
    )
    scope: Literal["auto", "batch", "example"] = Field(
        "auto",
        description="batch: one direction for all examples; example: each example has its own, so "
        "that one pair of passes measures batch_size slopes (needs rank1). auto: example for "
        "r-adazo with rank1.",
    )
    distribution: Literal["rademacher", "gaussian"] = Field(
        "rademacher", description="Directions of random signs, or of normal numbers."
    )
    directions: Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        validate_default=True,
        description="Directions averaged in one step; with scope example, those of each example. "
        "The cost grows with them.",
    )
    sides: Literal[2, 1] = Field(
        2, description="2: central difference, two forwards a direction; 1: one, and a shared one."
    )
    paired: bool | Auto = Field(
        "auto",
        description="Run both signs of a probe as one batch of twice the rows. auto: where a check "
        "at the start shows that it gives the same losses.",
    )
    weight_decay: NotNegative = Field(
        0.0, description="Decoupled decay per step, times the rate; not on norms and biases."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="The rate after the warm-up: constant, or down to zero."
    )
    warmup_steps: Whole = Field(0, description="Steps over which the rate rises from zero.")

    # -- what a rule may override -------------------------------------------------------------------

    def rule(self) -> UpdateRule:
        """The rule with these settings, at its first step."""
        raise TypeError(f"{type(self).__name__} has no rule")

    def state(self) -> tuple[str, ...]:
        """Names of the float32 tensors that the rule keeps for every tuned weight."""
        return ()

    def own_choices(self, method: str) -> dict[str, Any]:
        """The values of the rule's own `auto`s, for a tune.method."""
        del method
        return {}

    def default_lr(self, learns: str, scope: Scope) -> float:
        """The rate that `auto` means, by what learns (`resolved.what_learns`)."""
        del scope
        return self.LEARNING_RATES[learns]

    @classmethod
    def summed_steps(cls, values: Mapping[str, Any]) -> int:
        """How many steps' directions an update adds up in one sum, by the section's values."""
        del values
        return 1

    def step_rms(self, gradient_rms: float) -> float:
        """RMS of an update of one weight in units of lr, by the RMS of the gradient estimate."""
        return gradient_rms

    def walk_rms(self, gradient_rms: float) -> float:
        """RMS of an update if updates that overlap (momentum) are counted as independent ones."""
        return self.step_rms(gradient_rms)

    # -- what all rules check and choose ------------------------------------------------------------

    @field_validator("scope")
    @classmethod
    def _needs_rank1(cls, scope: str, info: ValidationInfo) -> str:
        if scope == "example" and info.data.get("structure") == "dense":
            raise ValueError("example needs optimizer.structure rank1, not dense")
        return scope

    @field_validator("distribution")
    @classmethod
    def _signs_for_rank1(cls, distribution: str, info: ValidationInfo) -> str:
        rank1 = info.data.get("structure") == "rank1" or info.data.get("scope") == "example"
        if distribution == "gaussian" and rank1:
            raise ValueError("rank1: u v^T of normal numbers has other moments: use rademacher")
        return distribution

    @field_validator("directions")
    @classmethod
    def _sums_exactly(cls, directions: int, info: ValidationInfo) -> int:
        steps = cls.summed_steps(info.data)
        if directions * steps > MAX_TERMS:
            raise ValueError(
                f"{directions} directions times the window is {directions * steps} in one sum, at "
                f"most {MAX_TERMS} are exact; lower one of them, or set fold_momentum: true"
            )
        return directions

    @field_validator("paired")
    @classmethod
    def _has_two_sides(cls, paired: bool | Auto, info: ValidationInfo) -> bool | Auto:
        if paired is True and info.data.get("sides") == 1:
            raise ValueError("one-sided probes have no pair; set sides: 2")
        return paired

    def structure_and_scope(self, method: str) -> tuple[Structure, Scope]:
        """structure and scope with `auto` replaced, for a tune.method."""
        structure, scope = self.structure, self.scope
        if structure == "auto":
            fits = method == "full" and self.PER_EXAMPLE and self.distribution == "rademacher"
            structure = "rank1" if scope == "example" or fits else "dense"
        if scope == "auto":
            scope = "example" if structure == "rank1" and self.PER_EXAMPLE else "batch"
        return structure, scope


class ResolvedOptimizer(OptimizerSection):
    """The section of any rule without `auto`, but for `paired`, which the preflight measures."""

    lr: Positive
    perturbation: Positive
    structure: Structure
    scope: Scope


def resolved_optimizer(section: OptimizerSection, **choices: Any) -> ResolvedOptimizer:
    """`section` with these values in place of its `auto`s."""
    return _resolved(type(section)).model_validate({**dict(section), **choices})


@cache
def _resolved(rule: type[OptimizerSection]) -> type[ResolvedOptimizer]:
    if issubclass(rule, ResolvedOptimizer):
        return rule
    return create_model(f"Resolved{rule.__name__}", __base__=(ResolvedOptimizer, rule))  # type: ignore[arg-type]
