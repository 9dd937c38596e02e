"""A model's files as `save_pretrained` writes them, while its weights are not in memory."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from zoft.models.storage.safetensors import WEIGHTS, WEIGHTS_INDEX, Entry, Writer
from zoft.system.silence import quiet

SHARD_BYTES = 50_000_000_000  # where save_pretrained begins another file


def save_tensor_by_tensor(
    folder: Path,
    model: PreTrainedModel,
    weights: Iterable[tuple[str, Tensor]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """The files of `model.save_pretrained(folder)`, byte for byte, one tensor in memory at a time.

    Types and shapes are the model's own; `weights` gives the numbers by the name in the model, each
    once, in any order. Raises OSError.
    """
    state = model.state_dict()
    named = _saved_names(folder, model)
    kept: dict[str, Entry] = {
        saved: (state[name].dtype, tuple(state[name].shape)) for saved, name in named.items()
    }
    split = split_state_dict_into_shards_factory(
        kept,
        get_storage_size=lambda entry: math.prod(entry[1]) * entry[0].itemsize,
        filename_pattern=WEIGHTS.replace(".safetensors", "{suffix}.safetensors"),
        max_shard_size=shard_bytes,
    )
    saved_as = {name: saved for saved, name in named.items()}
    with ExitStack() as stack:
        files = {
            file: stack.enter_context(
                Writer(folder / file, {name: kept[name] for name in names}, {"format": "pt"})
            )
            for file, names in split.filename_to_tensors.items()
        }
        for name, tensor in weights:
            if name in saved_as:  # or it is tied to one that is
                files[split.tensor_to_filename[saved_as[name]]].put(saved_as[name], tensor)
    if split.is_sharded:
        index = {
            "metadata": {"total_parameters": model.num_parameters(), **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _saved_names(folder: Path, model: PreTrainedModel) -> dict[str, str]:
    """Name in the files -> name in the model, in the order in which files are filled.

    transformers says so itself: it saves a number for each weight, one in a file. What else it
    writes (configs, a model's own code) goes to `folder`.
    """
    state = model.state_dict(keep_vars=True)
    names = list(state)
    numbers: dict[int, Tensor] = {}  # tied weights share theirs, and transformers saves one name
    numbered = {
        name: numbers.setdefault(id(tensor), torch.tensor([number]))
        for number, (name, tensor) in enumerate(state.items())
    }
    with tempfile.TemporaryDirectory(dir=folder) as place:
        with quiet():
            model.save_pretrained(place, state_dict=numbered, max_shard_size=8)
        found: dict[str, str] = {}
        for file in sorted(Path(place).iterdir()):
            if file.suffix == ".safetensors":
                found |= {saved: names[int(number)] for saved, number in load_file(file).items()}
            elif file.name != WEIGHTS_INDEX:
                file.rename(folder / file.name)
    return found
