"""A model's files as `save_pretrained` writes them, while its weights are not in memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from zoft.models.storage.safetensors import WEIGHTS, WEIGHTS_INDEX, Entry, Writer
from zoft.models.storage.tracing import Piece, Traced, trace
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
    once, in any order. What a file holds as one tensor of several is in memory until it is complete.
    Raises OSError.
    """
    kept = _saved(folder, model)
    split = split_state_dict_into_shards_factory(
        kept,
        get_storage_size=lambda traced: traced.like.untyped_storage().nbytes(),
        get_storage_id=lambda traced: traced.like.untyped_storage()._cdata,
        filename_pattern=WEIGHTS.replace(".safetensors", "{suffix}.safetensors"),
        max_shard_size=shard_bytes,
    )
    with ExitStack() as stack:
        files = {
            file: stack.enter_context(
                Writer(
                    folder / file, {name: _entry(kept[name]) for name in names}, {"format": "pt"}
                )
            )
            for file, names in split.filename_to_tensors.items()
        }
        for saved, tensor in _rearranged(kept, weights):
            files[split.tensor_to_filename[saved]].put(saved, tensor)
    if split.is_sharded:
        index = {
            "metadata": {"total_parameters": model.num_parameters(), **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _entry(traced: Traced) -> Entry:
    return traced.dtype, tuple(traced.shape)


def _rearranged(
    kept: Mapping[str, Traced], weights: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the files, by its name there, once all of it has come."""
    pieces: dict[str, list[tuple[str, Piece]]] = {}
    missing: dict[str, int] = {}
    for saved, traced in kept.items():
        missing[saved] = len(traced.pieces or ())
        for piece in traced.pieces or ():
            pieces.setdefault(piece.source, []).append((saved, piece))
    unfinished: dict[str, Tensor] = {}
    for name, tensor in weights:
        for saved, piece in pieces.get(name, ()):  # or it is tied to one that is saved
            own = tensor.detach().contiguous()
            box = own.as_strided(piece.shape, piece.strides, own.storage_offset() + piece.offset)
            if box.shape == kept[saved].shape:
                yield saved, box
                continue
            if saved not in unfinished:
                unfinished[saved] = torch.empty(kept[saved].shape, dtype=tensor.dtype)
            piece.place(unfinished[saved]).copy_(box)
            missing[saved] -= 1
            if not missing[saved]:
                yield saved, unfinished.pop(saved)


def _saved(folder: Path, model: PreTrainedModel) -> dict[str, Traced]:
    """Name in the files -> what of the model it is, in the order in which files are filled.

    transformers says so itself: it saves a number for each weight that is not left out, and then
    arranges traced ones as they lay in the checkpoint. What else it writes (configs, a model's own
    code) goes to `folder`.
    """
    state = model.state_dict(keep_vars=True)
    numbers: dict[int, Tensor] = {}  # tied weights share theirs, and transformers saves one name
    numbered = {
        name: numbers.setdefault(id(tensor), torch.tensor([number]))
        for number, (name, tensor) in enumerate(state.items())
    }
    chosen: set[str] = set()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        with quiet():
            model.save_pretrained(place, state_dict=numbered, save_original_format=False)
        for file in sorted(Path(place).iterdir()):
            if file.suffix == ".safetensors":
                chosen |= load_file(file).keys()
            else:
                file.rename(folder / file.name)
    traced = {
        name: trace(name, tensor.dtype, tensor.shape)
        for name, tensor in state.items()
        if name in chosen
    }
    return as_in_checkpoint(model, traced) or traced


def as_in_checkpoint(
    model: PreTrainedModel, traced: Mapping[str, Traced]
) -> dict[str, Traced] | None:
    """A model's tensors in the layout of its checkpoint; None if that is more than another order.

    transformers then loads the model's own names as well.
    """
    try:
        reverted: dict[str, Any] = revert_weight_conversion(model, dict(traced))
    except Exception:  # of a conversion that has to see numbers or cannot be reverted: any class
        return None
    return reverted if all(tensor.pieces is not None for tensor in reverted.values()) else None
