"""The recipe: every choice of a run, with its meaning, its unit and what `auto` stands for.

The classes are closed (an unknown key is an error), strict (`"3"` is no number) and frozen. What
follows from the recipe alone is filled in by `defaults.with_defaults`, what needs the machine
(device, compute_dtype, perturbation of full tuning, paired) by the run.
"""

from __future__ import annotations

import re
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

Auto = Literal["auto"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Whole = Annotated[int, Field(ge=0)]
Counted = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]

LEAST_SIZE = 1_000_000  # a smaller number is one that lacks its unit
MAX_TERMS = 2048  # kernels/terms.py: so many directions in one sum are exact
WINDOW, SCALAR_WINDOW = 44, 22  # agree with the untruncated moments to a cosine of .996 and .995
ROLES = ("text", "label", "prompt", "completion", "messages")


def _text_keys(mapping: Any) -> Any:
    """YAML reads the keys of `{0: bad, true: good}` as numbers and bools; a label is text."""
    if not isinstance(mapping, dict):
        return mapping
    renamed = {str(key): value for key, value in mapping.items()}
    if len(renamed) < len(mapping):
        raise ValueError("two keys are the same text")
    return renamed


TextMap = Annotated[dict[str, str], BeforeValidator(_text_keys)]


def _has_a_unit(size: Any) -> Any:
    """pydantic takes `8` for eight bytes, `8 GiB or so` for 8 GiB, and `8GBit` for a gigabyte."""
    if isinstance(size, str) and re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]i?B", size.strip(), re.I):
        return size.strip()
    if isinstance(size, int) and not isinstance(size, bool) and size >= LEAST_SIZE:
        return size
    raise PydanticCustomError("byte_size", "a size such as 8GiB or 500MB")


# Bytes. In resolved.yaml a size is a plain number, so numbers are read as well.
Size = Annotated[ByteSize, BeforeValidator(_has_a_unit)]


class Section(BaseModel):
    """What all sections share: closed, frozen, no type coercion, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        """A section whose keys are all commented out is null in YAML, and means the defaults."""
        return {} if value is None else value


class ModelSection(Section):
    name: str = Field(
        min_length=1,
        description="The base model: a Hub id, a folder, or a .gguf file (converted once).",
    )
    revision: str | None = Field(
        None, description="Branch, tag or commit of a Hub model. Empty: its main branch."
    )
    dtype: DType = Field(
        "auto", description="Type of the tuned weights. auto: float32, where no update is lost."
    )
    compute_dtype: DType = Field(
        "auto",
        description="Type the forward passes compute in. auto: what the device does fast.",
    )
    residency: Literal["auto", "device", "host", "disk"] = Field(
        "auto",
        description="Where the weights of the blocks wait for their turn: on the device, in the "
        "host's memory, or on the disk. auto: the fastest that fits the memory budgets, and as many "
        "blocks on the device as these hold.",
    )
    quantization: Literal["none", "int8", "nf4"] = Field(
        "none",
        description="Keep the frozen matrices under a LoRA adapter as codes of 8 bits (torchao) or 4 "
        "(bitsandbytes); they compute in compute_dtype. Embeddings and head stay as they are.",
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Only for authors you trust."
    )


class TuneSection(Section):
    method: Literal["full", "lora"] = Field(
        "full", description="Which weights learn: all of them, or a LoRA adapter beside them."
    )
    r: Counted = Field(8, description="LoRA: rank of the adapter.")
    alpha: Positive = Field(16.0, description="LoRA: the adapter is scaled by alpha / r.")
    target_modules: list[str] | Auto = Field(
        "auto",
        description="LoRA: name endings of the modules that get an adapter. auto: peft's choice "
        "for the model family, else q_proj and v_proj.",
    )
    include: list[str] = Field(
        ["*"], description="Tune the parameters whose name matches one of these globs ..."
    )
    exclude: list[str] = Field([], description="... and none of these.")


class DataSource(Section):
    path: str = Field(
        min_length=1,
        description="A .jsonl, .json, .csv or .parquet file, a folder of those, or a Hub set.",
    )
    name: str | None = Field(None, description="Configuration of a Hub set, e.g. sst2 of glue.")
    split: str | None = Field(None, description="Split, e.g. train or validation[:1000].")
    limit: Counted | None = Field(None, description="Use the first so many rows. Empty: all.")


class DataSection(Section):
    train: DataSource = Field(description="Rows to learn from.")
    eval: DataSource | None = Field(
        None, description="Rows scored before, during (eval.every) and after the run."
    )
    test: DataSource | None = Field(None, description="Rows scored once, at the end.")
    format: Literal["classification", "prompt-completion", "messages", "text"] = Field(
        "classification",
        description="What a row is. classification: columns text and label, scored over label "
        "words; prompt-completion: the completion is learnt; messages: a chat, the assistant's "
        "turns are learnt; text: every token is learnt.",
    )
    columns: TextMap = Field(
        {},
        description="Role to column name, where they differ. Roles: text, label, prompt, "
        "completion, messages.",
    )
    template: str | None = Field(
        None,
        validate_default=True,
        description="classification: the prompt, with {column} for a column of the row, e.g. "
        '"{text} It was". The label word follows it.',
    )
    labels: TextMap = Field(
        {},
        validate_default=True,
        description="classification: label value to label word, e.g. {0: terrible, 1: great}.",
    )
    max_length: int = Field(512, ge=2, description="Longest example, in tokens.")
    on_overflow: Literal["error", "drop", "truncate"] = Field(
        "error",
        description="A longer example stops the run, is dropped, or loses the start of its prompt "
        "(never its completion).",
    )

    @field_validator("columns")
    @classmethod
    def _known_roles(cls, columns: dict[str, str]) -> dict[str, str]:
        if unknown := [role for role in columns if role not in ROLES]:
            raise ValueError(f"no role {', '.join(unknown)}: the roles are {', '.join(ROLES)}")
        return columns

    @field_validator("template")
    @classmethod
    def _fits_a_row(cls, template: str | None, info: ValidationInfo) -> str | None:
        if template is None:
            if info.data.get("format") == "classification":
                raise ValueError('data.format classification needs one, e.g. "{text} It was"')
            return None
        try:
            fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
        except ValueError as error:
            raise ValueError(f"{error}; a literal brace is written twice") from error
        if not fields or any(not field or field.isdigit() for field in fields):
            raise ValueError(f"{template!r} must name a column in braces, e.g. {{text}}")
        return template

    @field_validator("labels")
    @classmethod
    def _tells_labels_apart(cls, labels: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if info.data.get("format") == "classification" and len(labels) < 2:
            raise ValueError(
                "data.format classification needs at least two, e.g. {0: terrible, 1: great}"
            )
        if len(set(labels.values())) < len(labels):
            raise ValueError("two labels have the same word")
        return labels


class ObjectiveSection(Section):
    name: Literal["auto", "choice", "lm"] = Field(
        "auto",
        description="What is minimised. choice: cross-entropy over the label words; lm: "
        "cross-entropy on the learnt tokens. auto: choice for classification, else lm.",
    )


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
        "r-adazo 2e-4 with scope example, else 1e-4 (LoRA 5e-5); mezo 1e-6 (LoRA 1e-4).",
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
        "from the last steps; scalar: one v for all. auto: LoRA full, full tuning scalar.",
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
        "full tuning 1e-3, or more where compute_dtype would round that away.",
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
        return "full" if method == "lora" else "scalar"
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


class TrainSection(Section):
    steps: Annotated[int, Field(ge=1, lt=2**32)] = Field(1000, description="Updates to make.")
    batch_size: Counted = Field(16, description="Examples in one step.")
    micro_batch_size: Counted | Auto = Field(
        "auto",
        description="Examples in one forward pass. auto: the whole batch. Less saves memory.",
    )
    group_by_length: bool | Auto = Field(
        "auto",
        description="Batches of examples of like length, so that less of a pass is padding. auto: "
        "true.",
    )
    max_nonfinite: Counted = Field(
        10, description="Give up after so many steps in a row whose loss is not finite."
    )

    @field_validator("micro_batch_size")
    @classmethod
    def _within_the_batch(cls, size: int | Auto, info: ValidationInfo) -> int | Auto:
        batch = info.data.get("batch_size", size)
        if isinstance(size, int) and size > batch:
            raise ValueError(f"{size} is more than train.batch_size {batch}")
        return size


class EvalSection(Section):
    every: Whole = Field(0, description="Steps between evaluations. 0: at the start and the end.")
    batch_size: Counted = Field(32, description="Examples in one forward pass of an evaluation.")


class CheckpointSection(Section):
    every: Whole = Field(0, description="Steps between checkpoints. 0: none, the journal resumes.")
    keep_last: Counted = Field(2, description="Newest checkpoints to keep.")
    keep_best: Whole = Field(1, description="Best checkpoints (by the eval set) to keep as well.")


class MemorySection(Section):
    device_budget: Auto | Size = Field(
        "auto",
        description="Memory to use of the device, e.g. 8GiB (on a CPU: of the host). auto: what is "
        "free when the run begins.",
    )
    host_budget: Auto | Size = Field(
        "auto", description="With a GPU: memory to use of the host. auto: what is free."
    )


class OffloadSection(Section):
    writeback: Literal["auto", "device", "host"] = Field(
        "auto",
        description="Who applies an update to weights that are streamed: the device, which then "
        "writes them back, or the host, where they are at home. auto: device.",
    )


class JournalSection(Section):
    sync_seconds: NotNegative = Field(
        5.0, description="Longest time that a power cut can undo, in seconds. 0: sync every step."
    )


class LoggingSection(Section):
    every: Counted = Field(10, description="Steps between lines of progress.")


class Recipe(Section):
    version: Literal[1] = Field(1, description="Version of this schema.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Directions, data order and initial adapter depend on it alone."
    )
    output_dir: str | None = Field(
        None, min_length=1, description="The run's folder. Empty: runs/ and the recipe's name."
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$",
        description="auto, cpu, cuda or cuda:N. auto: the first GPU, else the CPU.",
    )
    model: ModelSection = Field(description="The model that is tuned.")
    tune: TuneSection = Field(
        TuneSection(), validate_default=True, description="Which of its weights learn."
    )
    data: DataSection = Field(description="What it learns from.")
    objective: ObjectiveSection = Field(ObjectiveSection(), description="What is minimised.")
    optimizer: OptimizerSection = Field(OptimizerSection(), description="How the weights move.")
    train: TrainSection = Field(
        TrainSection(), validate_default=True, description="How long, and how much at once."
    )
    eval: EvalSection = Field(EvalSection(), description="When the eval set is scored.")
    checkpoint: CheckpointSection = Field(CheckpointSection(), description="What is kept.")
    memory: MemorySection = Field(MemorySection(), description="How much memory may be used.")
    offload: OffloadSection = Field(OffloadSection(), description="How blocks are streamed.")
    journal: JournalSection = Field(JournalSection(), description="The log a run resumes from.")
    logging: LoggingSection = Field(LoggingSection(), description="What is printed.")

    @field_validator("tune")
    @classmethod
    def _no_codes_move(cls, tune: TuneSection, info: ValidationInfo) -> TuneSection:
        model = info.data.get("model")
        if model and model.quantization != "none" and tune.method != "lora":
            raise ValueError(
                f"full tuning moves every weight, and the codes of model.quantization "
                f"{model.quantization} are never perturbed: set tune.method: lora"
            )
        return tune

    @field_validator("objective")
    @classmethod
    def _choice_needs_labels(
        cls, objective: ObjectiveSection, info: ValidationInfo
    ) -> ObjectiveSection:
        data = info.data.get("data")
        if objective.name == "choice" and data and data.format != "classification":
            raise ValueError(f"choice needs data.format classification, not {data.format}")
        return objective

    @field_validator("train")
    @classmethod
    def _sums_exactly(cls, train: TrainSection, info: ValidationInfo) -> TrainSection:
        tune, optimizer = info.data.get("tune"), info.data.get("optimizer")
        if not tune or not optimizer or structure_and_scope(tune.method, optimizer)[1] == "batch":
            return train
        steps = summed_steps(
            optimizer.name,
            moments_of(tune.method, optimizer),
            optimizer.window,
            fold_momentum=optimizer.fold_momentum,
        )
        terms = train.batch_size * optimizer.directions * steps
        if terms > MAX_TERMS:
            window = f" times the window {steps}" if steps > 1 else ""
            fold = " or optimizer.fold_momentum: true" if steps > 1 else ""
            raise ValueError(
                f"batch_size {train.batch_size} times {optimizer.directions} directions{window} is "
                f"{terms} in one sum, at most {MAX_TERMS} are exact; lower one of them, or set "
                f"optimizer.scope: batch{fold}"
            )
        return train
