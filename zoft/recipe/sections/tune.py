"""Section `tune` of a recipe: which weights learn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from zoft.recipe.sections.base import Counted, Positive, Section, Whole

AUTO_BLOCKS = "blocks:auto"


class TuneSection(Section):
    method: Literal["full", "lora", "ia3", "prefix", "prompt"] = Field(
        "full",
        description="Which weights learn. full: the model's own; lora: low-rank matrices beside them; "
        "ia3: factors of keys, values and feed-forward activations; prefix: keys and values of virtual "
        "tokens in every block; prompt: embeddings of virtual tokens.",
    )
    only: Literal["all", "bias", "norm"] = Field(
        "all",
        description="full: of the model's weights, all, the biases alone (BitFit), or the norms alone.",
    )
    layers: Annotated[tuple[Whole, Whole], Field(strict=False)] | None = Field(
        None,
        description="full, lora, ia3: only these blocks learn, first and last, counted from 0, e.g. "
        "[16, 23]. Empty: the whole model.",
    )
    adapter: str | None = Field(
        None,
        min_length=1,
        validate_default=True,
        description="Go on tuning this adapter: a run, a checkpoint, a folder or a Hub id "
        "(USER/NAME or USER/NAME@REVISION). It says r, "
        "alpha, target_modules and virtual_tokens.",
    )
    r: Counted = Field(8, description="LoRA: rank of the adapter.")
    alpha: Positive = Field(16.0, description="LoRA: the adapter is scaled by alpha / r.")
    target_modules: list[str] | Literal["auto", "all-linear"] = Field(
        "auto",
        description="lora, ia3: name endings of the modules that get an adapter. auto: peft's choice "
        "for the model family, else what attention or a state-space layer reads its input with; "
        "all-linear: every linear module of the decoder that takes an adapter, but the head.",
    )
    virtual_tokens: Counted = Field(
        5, description="prefix, prompt: tokens that stand in front of every example."
    )
    tail: Annotated[str, Field(pattern=r"^(none|head|norm|blocks:([1-9]\d*|auto))$")] = Field(
        "none",
        description="full: what learns by exact gradients instead of probes. head: the label words' "
        "rows of the output head, for a choice between single words, solved before the first step from "
        "one plain pass over `tail_rows` training rows, and held. The rest of the head, and a table of "
        "words tied to it, do not learn then. norm: the final norm too, with every step. blocks:N: the "
        "last N blocks as well, by "
        "back-propagation through these alone, one after the other, from the passes that a step takes "
        "anyway; for `lm` and options of several tokens these without the head. blocks:auto: as many "
        "as the device has room for. With all blocks nothing is left to probes: that is first-order "
        "tuning, of one pass a step.",
    )
    tail_rows: Counted = Field(
        1000, description="tail: training rows that the head's rows are solved on, at most."
    )
    tail_lr: Annotated[float, Field(gt=0)] = Field(
        1e-4,
        description="tail=norm, blocks:N: their rate, in units of the weights; it follows the schedule.",
    )
    include: list[str] = Field(
        ["*"], description="Tune the parameters whose name matches one of these globs ..."
    )
    exclude: list[str] = Field([], description="... and none of these.")

    @field_validator("only")
    @classmethod
    def _of_the_models_own(cls, only: str, info: ValidationInfo) -> str:
        method = info.data.get("method", "full")
        if only != "all" and method != "full":
            raise ValueError(f"{only} chooses among the model's own weights, not of {method}")
        return only

    @field_validator("layers")
    @classmethod
    def _a_range_of_blocks(
        cls, layers: tuple[int, int] | None, info: ValidationInfo
    ) -> tuple[int, int] | None:
        method = info.data.get("method", "full")
        if layers and layers[0] > layers[1]:
            raise ValueError(f"the first block, {layers[0]}, comes after the last, {layers[1]}")
        if layers and method in ("prefix", "prompt"):
            raise ValueError(f"virtual tokens stand in front of every block: not with {method}")
        return layers

    @property
    def tail_blocks(self) -> int | None:
        """How many of the last blocks learn by exact gradients with the norm behind them; None: not
        even that. Of `blocks:auto` one, until the plan says how many."""
        if self.tail in ("none", "head"):
            return None
        number = self.tail.partition(":")[2] or "0"
        return 1 if self.tail == AUTO_BLOCKS else int(number)

    @field_validator("tail")
    @classmethod
    def _of_full_tuning(cls, tail: str, info: ValidationInfo) -> str:
        method = info.data.get("method", "full")
        if tail != "none" and method != "full":
            raise ValueError(
                f"{tail} writes to the model's own weights: not with {method}; set tune.tail=none"
            )
        return tail

    @field_validator("adapter")
    @classmethod
    def _of_an_adapters_method(cls, adapter: str | None, info: ValidationInfo) -> str | None:
        if adapter is not None and info.data.get("method") == "full":
            raise ValueError("full tuning has no adapter: set tune.method, e.g. to lora")
        return adapter
