"""The recipe: every choice of a run, with its meaning, its unit and what `auto` stands for.

The classes are closed (an unknown key is an error), strict (`"3"` is no number) and frozen. What
follows from the recipe alone is filled in by `resolved.with_defaults`, what needs the machine
(device, compute_dtype, perturbation of full tuning, paired) by the run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from zoft.recipe.sections.base import (
    Auto,
    Counted,
    DType,
    NotNegative,
    Section,
    Size,
    Whole,
)
from zoft.recipe.sections.data import DataSection, with_task
from zoft.recipe.sections.hub import HubSection
from zoft.recipe.sections.optimizer import AnyOptimizer
from zoft.recipe.sections.optimizers.radazo import RAdaZO
from zoft.recipe.sections.optimizers.rule import MAX_TERMS
from zoft.recipe.sections.tune import TuneSection

GENERATED = ("f1", "exact_match")  # metrics for which the model writes answers


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
        description="Keep the frozen matrices under an adapter as codes of 8 bits (torchao) or 4 "
        "(bitsandbytes); they compute in compute_dtype. Embeddings and head stay as they are.",
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Only for authors you trust."
    )


class ObjectiveSection(Section):
    name: Literal["auto", "choice", "lm"] = Field(
        "auto",
        description="What is minimised. choice: cross-entropy over the label words; lm: "
        "cross-entropy on the learnt tokens. auto: choice for classification, else lm.",
    )


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
    metric: Literal["auto", "loss", "accuracy", "f1", "exact_match"] = Field(
        "auto",
        description="What is printed first and decides which checkpoint is the best. accuracy: the "
        "right one of a row's options; f1, exact_match: the model's own greedy answer against the "
        "row's, as SQuAD compares them. auto: accuracy where rows have options, else loss.",
    )
    max_new_tokens: Counted = Field(
        50,
        description="f1, exact_match: longest answer, in tokens; it ends at EOS or a line's end.",
    )


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
        "writes them back, or the host, where they are stored. auto: device.",
    )


class JournalSection(Section):
    sync_seconds: NotNegative = Field(
        5.0, description="Longest time that a power cut can undo, in seconds. 0: sync every step."
    )


class LoggingSection(Section):
    every: Counted = Field(10, description="Steps between lines of progress.")
    trackers: list[Literal["wandb", "tensorboard", "trackio"]] = Field(
        [],
        description="Where metrics go beside metrics.jsonl. None of them can stop or slow a run; wandb "
        "without a login keeps it offline.",
    )
    project: str = Field(
        "zoft", min_length=1, description="The trackers' project; the run has its folder's name."
    )


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
        pattern=r"^[a-z]+(:[0-9]+)?$",
        description="auto, cpu, cuda, cuda:N, or what else torch has streams for (xpu). auto: the first "
        "GPU, else the CPU.",
    )
    model: ModelSection = Field(description="The model that is tuned.")
    tune: TuneSection = Field(
        TuneSection(), validate_default=True, description="Which of its weights learn."
    )
    data: DataSection = Field(description="What it learns from.")
    objective: ObjectiveSection = Field(ObjectiveSection(), description="What is minimised.")
    optimizer: AnyOptimizer = Field(RAdaZO(), description="How the weights move.")
    train: TrainSection = Field(
        TrainSection(), validate_default=True, description="How long, and how much at once."
    )
    eval: EvalSection = Field(EvalSection(), description="When the eval set is scored.")
    checkpoint: CheckpointSection = Field(CheckpointSection(), description="What is kept.")
    memory: MemorySection = Field(MemorySection(), description="How much memory may be used.")
    offload: OffloadSection = Field(OffloadSection(), description="How blocks are streamed.")
    journal: JournalSection = Field(JournalSection(), description="The log a run resumes from.")
    logging: LoggingSection = Field(LoggingSection(), description="What is printed.")
    hub: HubSection = Field(
        HubSection(), description="What goes to the Hugging Face Hub, and when."
    )

    @field_validator("tune")
    @classmethod
    def _no_codes_move(cls, tune: TuneSection, info: ValidationInfo) -> TuneSection:
        model = info.data.get("model")
        if model and model.quantization != "none" and tune.method == "full":
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
        if objective.name == "choice" and data and with_task(data).format != "classification":
            raise ValueError(f"choice needs data.format classification, not {data.format}")
        return objective

    @field_validator("eval")
    @classmethod
    def _has_what_it_scores(cls, section: EvalSection, info: ValidationInfo) -> EvalSection:
        data = info.data.get("data")
        form = with_task(data).format if data else "auto"
        if section.metric == "accuracy" and form not in ("auto", "classification"):
            raise ValueError(f"metric accuracy needs rows with options, not {form}")
        if section.metric in GENERATED and form == "text":
            raise ValueError(f"metric {section.metric} needs rows with a prompt, not text")
        return section

    @field_validator("train")
    @classmethod
    def _sums_exactly(cls, train: TrainSection, info: ValidationInfo) -> TrainSection:
        tune, optimizer = info.data.get("tune"), info.data.get("optimizer")
        if not tune or not optimizer or optimizer.structure_and_scope(tune.method)[1] == "batch":
            return train
        steps = optimizer.summed_steps({**dict(optimizer), **optimizer.own_choices(tune.method)})
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
