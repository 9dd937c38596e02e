"""Checkpoints: folders that are either complete, with a hash for every file, or not there.

A run's folder holds `checkpoint-000500/`; each is written beside its place, synced, closed by a
COMPLETE file and renamed. Names that begin with a dot and end in `.partial` are leftovers.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zoft.engine.optimizers.update import Weights
from zoft.errors import EnvironmentProblem, disk_words, first_line, system_error
from zoft.models.adapters import brings_tables
from zoft.models.blocks import is_placeholder
from zoft.models.storage.safetensors import Stored, Writer, tensors_in
from zoft.models.storage.save import save_tensor_by_tensor
from zoft.runs import complete
from zoft.system.atomic_io import delete, staged
from zoft.system.silence import quiet

_STATE, _META = "optimizer.safetensors", "trainer.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run_folder / f"checkpoint-{step:06d}"


def save(folder: Path, writer: Callable[[Path], None]) -> None:
    """Fill `folder` by `writer(temporary folder)`: whole and on the disk, or not changed at all.

    What stood there is replaced. Raises EnvironmentProblem if the disk refuses.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(".checkpoint-*.partial"):
            delete(leftover)
        with staged(folder) as partial:
            partial.mkdir()
            writer(partial)
            complete.write(partial)
    except Exception as error:  # tokenizers and safetensors have no class for a disk's refusal
        refused = system_error(error)
        if refused is None and not isinstance(error, (OSError, SafetensorError)):
            raise
        reason = disk_words(refused) if refused else first_line(error)
        raise EnvironmentProblem(f"cannot write {folder}: {reason}") from error


def verify(folder: Path) -> bool:
    """Whether every file that COMPLETE names is there with its size and its sha256."""
    return complete.intact(folder)


def find(run_folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first (sizes checked; `verify` reads the bytes)."""
    steps = {
        path: int(match[1])
        for path in (run_folder.iterdir() if run_folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name)) and complete.sizes_match(path)
    }
    return sorted(steps, key=steps.__getitem__)


def prune(run_folder: Path, keep_last: int, best: Collection[Path]) -> None:
    """Delete all but the `keep_last` newest complete checkpoints (at least one) and the best."""
    kept = {path.name for path in best}
    for path in find(run_folder)[: -max(keep_last, 1)]:
        if path.name not in kept:
            doomed = path.with_name(f".{path.name}.partial")  # never half of a checkpoint in sight
            path.rename(doomed)
            shutil.rmtree(doomed)


def require_space(folder: Path, needed: int) -> None:
    """Raise EnvironmentProblem unless `needed` bytes are free where `folder` is or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise EnvironmentProblem(
            f"{folder} needs {needed / 1e9:.2f} GB on its disk, {free / 1e9:.2f} GB are free"
        )


def write_model(
    folder: Path,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    streamed: Weights | None = None,
) -> None:
    """The model (or the adapter alone) and the tokenizer as Hugging Face files.

    Equal weights give equal bytes, in every process. If not all are in the model at once, `streamed`
    brings them.
    """
    if isinstance(model, PeftModel):
        # "auto" would ask the Hub whether the vocabulary grew; tuned parameters are the adapter's.
        with warnings.catch_warnings(
            action="ignore"
        ):  # what they say was checked by `load_adapter`
            state = _with_tables(model) if brings_tables(model) else None
            model.save_pretrained(str(folder), save_embedding_layers=bool(state), state_dict=state)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty form of a model card
        config = folder / "adapter_config.json"
        content = json.loads(config.read_text(encoding="utf-8"))
        for key in ("target_modules", "feedforward_modules"):  # peft's sets have no order
            if isinstance(content.get(key), list):  # a string is an expression
                content[key] = sorted(content[key])
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    else:
        cached = model.config.use_cache
        model.config.use_cache = True  # off while tuning; whoever loads the files wants to generate
        try:
            if streamed is not None:
                save_tensor_by_tensor(folder, model, _one_by_one(model, streamed))
            else:
                with quiet():
                    model.save_pretrained(folder)
        finally:
            model.config.use_cache = cached
    tokenizer.save_pretrained(folder)


def _with_tables(model: PeftModel) -> dict[str, Tensor]:
    """The state with tables of words in float32: the same bytes, whatever the base computes in."""
    base: Any = model.get_base_model()
    tables = (base.get_input_embeddings(), base.get_output_embeddings())
    wide = {table.weight: table.weight.float() for table in tables if table is not None}
    state = model.state_dict(keep_vars=True)  # what is tied stays one tensor
    return {name: wide.get(tensor, tensor) for name, tensor in state.items()}


def _one_by_one(model: PreTrainedModel, weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model's state, each when it is in place."""
    left = model.state_dict(keep_vars=True)
    for _ in weights.visits():
        for name in [name for name, tensor in left.items() if not is_placeholder(tensor)]:
            yield name, left.pop(name)


def write_state(folder: Path, weights: Weights, meta: Mapping[str, Any]) -> None:
    """What resuming needs beside the weights: what the update rule keeps, and values as JSON."""
    entries = {
        f"{tuned.name}/{what}": (torch.float32, tuple(tuned.parameter.shape))
        for tuned in weights
        for what in weights.names
    }
    with Writer(folder / _STATE, entries) as file:
        for kept in weights.visits() if entries else ():
            for name, tensor in kept.items():
                file.put(name, tensor)
    (folder / _META).write_text(json.dumps(meta, indent=2, sort_keys=True) + "\n")


def stored_state(folder: Path) -> dict[str, Stored]:
    """Where what the update rule kept lies in a checkpoint. Raises EnvironmentProblem."""
    return tensors_in(folder / _STATE)


def read_meta(folder: Path) -> dict[str, Any]:
    """The values that `write_state` wrote. Raises EnvironmentProblem."""
    try:
        meta: dict[str, Any] = json.loads((folder / _META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(
            f"cannot read the state in {folder}: {first_line(error)}"
        ) from error
    return meta
