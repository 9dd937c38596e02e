"""A tokenizer and a model as the loop wants them: still, complete, and in memory of their own."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from zoft.errors import EnvironmentProblem
from zoft.models.quiet import first_line, quiet
from zoft.offload.safetensors_files import Reader, stored_tensors
from zoft.recipe.schema import ModelSection


def load_tokenizer(location: Path | str, section: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside the weights. Raises EnvironmentProblem."""
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(location), trust_remote_code=section.trust_remote_code, local_files_only=True
            )
    except Exception as error:
        problem = f"cannot load the tokenizer of {section.name}: {first_line(error)}"
        raise EnvironmentProblem(problem) from error
    return tokenizer


def load_model(
    location: Path | str,
    section: ModelSection,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> PreTrainedModel:
    """The decoder at `location`: eval mode, no gradients, no cache, attention by SDPA if it can.

    Raises EnvironmentProblem for an unknown architecture, one that sees later tokens, and a
    checkpoint that does not hold exactly the model's weights.
    """
    try:
        with quiet():  # SDPA is transformers' own first choice; asking for it bars who lacks it
            answer: Any = AutoModelForCausalLM.from_pretrained(
                str(location),
                dtype=dtype,
                trust_remote_code=section.trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
            )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers raises nearly every class for a folder it dislikes
        raise EnvironmentProblem(f"cannot load {section.name}: {first_line(error)}") from error
    model, report = answer
    _require_exact(section.name, report)
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        # As loaded they are views of the mapped file: at any alignment, which MKL's results may
        # depend on, and gone if it is rewritten. Tied weights are one Parameter and stay tied.
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    # What an adapter's config will call its base: the Hub id and commit, else the folder itself.
    at_hub = not Path(section.name).expanduser().exists()
    model.name_or_path = section.name if at_hub else str(Path(location).resolve())
    snapshot = Path(location).name if Path(location).parent.name == "snapshots" else None
    model.config._commit_hash = (snapshot or section.revision) if at_hub else None
    loaded: PreTrainedModel = model.to(device)
    _require_causal(section.name, loaded)
    return loaded


def fingerprint(location: Path | str) -> str:
    """sha256 over config and weights: name, type, shape and bytes of each tensor in name order.

    Independent of how the tensors are dealt out to files; nothing is loaded.
    """
    folder = Path(location)
    digest = hashlib.sha256()
    try:
        digest.update((folder / "config.json").read_bytes())
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {folder}: {first_line(error)}") from error
    with Reader() as reader:
        for name, stored in sorted(stored_tensors(folder).items()):
            digest.update(json.dumps([name, stored.code, stored.shape]).encode())
            for piece in reader.pieces(stored):
                digest.update(piece)
    return digest.hexdigest()


def _require_exact(name: str, report: dict[str, Any]) -> None:
    """transformers would initialise what is missing at random, and drop what it does not know."""
    problems = [
        f"{what} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for what, entry in (("lacks", "missing_keys"), ("holds unknown", "unexpected_keys"))
        if (keys := sorted(report[entry]))
    ]
    if problems:
        raise EnvironmentProblem(f"the checkpoint of {name} {' and '.join(problems)}")


def _require_causal(name: str, model: PreTrainedModel) -> None:
    """No config says it reliably (BERT has a CausalLM class): change a token, look before it."""
    rows = torch.tensor([[[1, 2, 3]], [[1, 2, 4]]], device=model.device)
    with torch.inference_mode():  # one by one: equal shapes give equal bits, equal rows may not
        a, b = (model(input_ids=row, use_cache=False).logits[0].float() for row in rows)
    change = (a - b).abs().amax(dim=1)
    if change[:2].max() > 1e-3 * change[2]:
        raise EnvironmentProblem(f"{name} is not a decoder: it sees the tokens that come later")
