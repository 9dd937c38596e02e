"""Section `optimizer` of a recipe: how the weights move, and what its `auto`s mean."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from zoft.recipe.sections.base import Auto, Counted, Decay, NotNegative, Positive, Section, Whole

MAX_TERMS = 2048  # engine/kernels/numerics/exact_sum.py: so many directions in one sum are exact
WINDOW, SCALAR_WINDOW = 44, 22  # agree with the untruncated moments to a cosine of .996 and .995


class OptimizerSection(Section):
    name: Literal["r-adazo", "mezo"] = Field(
        "r-adazo",
        description="r-adazo: moments of the estimated gradient (arXiv 2502.01014); mezo: plain "
        "zeroth-order SGD (arXiv 2305.17333).",
    )
    lr: Positive | Auto = Field(
        "auto",
        description="Learning rate. r-adazo: about how far (RMS) a weight moves in a step; with folded "
        "momentum 4.4 times as far, for steps across each other instead of along a mean. auto: "
        "r-adazo 2e-4 with scope example, else 1e-4 (LoRA 5e-5); mezo 1e-6 (LoRA 1e-4); other kinds "
        "of tuning: docs/tuning.md.",
    )
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        (0.9, 0.99), description="r-adazo: decay of the first and the second moment."
    )
    eps: Annotated[float, Field(ge=1e-30)] = Field(
        1e-8, description="r-adazo: keeps the denominator from zero (the paper's zeta)."
    )
    bias_correction: Literal["v", "none", "adam"] = Field(
        "v",
        description="r-adazo: correct the second moment for its start at zero; none: the paper; "
        "adam: correct both moments.",
    )
    moments: Literal["auto", "full", "window", "scalar"] = Field(
        "auto",
        description="r-adazo. full: m and v stored, 8 bytes per tuned weight; window: recomputed "
        "from the last steps; scalar: one v for all. auto: full for adapters, scalar for full tuning.",
    )
    window: Counted | Auto = Field(
        "auto",
        description="r-adazo: past steps that moments window (auto: 44) and unfolded scalar "
        "(auto: 22) look back.",
    )
    fold_momentum: bool = Field(
        True,
        description="r-adazo, scalar: fold the momentum into the rate; a sweep adds up one step's "
        "directions, and no window of them.",
    )
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
        found = info.data
        steps = summed_steps(
            found.get("name", "mezo"),
            found.get("moments", "auto"),
            found.get("window", "auto"),
            fold_momentum=found.get("fold_momentum", True),
        )
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


def summed_steps(name: str, moments: str, window: int | Auto, *, fold_momentum: bool) -> int:
    """How many steps' directions an update adds up in one sum; `auto` moments count as scalar."""
    if name != "r-adazo" or moments not in ("auto", "scalar") or fold_momentum:
        return 1
    return SCALAR_WINDOW if window == "auto" else window


def moments_of(method: str, optimizer: OptimizerSection) -> Literal["full", "window", "scalar"]:
    """optimizer.moments with `auto` replaced, for one tune.method."""
    if optimizer.moments == "auto":
        return "scalar" if method == "full" else "full"
    return optimizer.moments


def structure_and_scope(
    method: str, optimizer: OptimizerSection
) -> tuple[Literal["dense", "rank1"], Literal["batch", "example"]]:
    """optimizer.structure and .scope with `auto` replaced, for one tune.method."""
    structure, scope = optimizer.structure, optimizer.scope
    adazo, signs = optimizer.name == "r-adazo", optimizer.distribution == "rademacher"
    if structure == "auto":
        fits = method == "full" and adazo and signs
        structure = "rank1" if scope == "example" or fits else "dense"
    if scope == "auto":
        scope = "example" if structure == "rank1" and adazo else "batch"
    return structure, scope
