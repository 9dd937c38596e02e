"""A tokenizer and a model as the loop wants them: still, complete, and in memory of their own."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from zoft.errors import EnvironmentProblem, ZoftError, first_line, lacks_memory
from zoft.models.blocks import Block, find_blocks, owned_parameters, placeholder
from zoft.models.empty_weights import build_empty_model
from zoft.models.quantization import is_quantized, load_quantized, quantized_tensors
from zoft.models.storage.faults import explained
from zoft.models.storage.fetch import local_folder, local_tokenizer
from zoft.models.storage.gathered import Source, read
from zoft.models.storage.safetensors import Reader, stored_tensors
from zoft.recipe.schema import ModelSection
from zoft.system.silence import misfit, quiet, reports_kept

# Where the words of a tokenizer may lie.
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")


def load_tokenizer(
    location: Path | str, section: ModelSection, *, gguf: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights, or in the file `gguf` there. Raises EnvironmentProblem."""
    try:
        with quiet(), redirect_stderr(io.StringIO()):  # the bar of a file's words has no switch
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(location),
                trust_remote_code=section.trust_remote_code,
                local_files_only=True,
                **({"gguf_file": gguf} if gguf else {}),
            )
    except Exception as error:  # transformers, tokenizers and a model's own code: any class
        problem = f"cannot load the tokenizer of {section.name}: {explained(error, location)}"
        if not gguf and not any(next(Path(location).glob(name), None) for name in VOCABULARIES):
            problem = (
                f"{section.name} holds no tokenizer ({', '.join(VOCABULARIES)}): copy the files of the "
                "model that it was made from into its folder"
            )
        raise EnvironmentProblem(problem) from error
    return tokenizer


def find_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model wherever that is: in a folder, in a `.gguf` file that was not
    converted yet, on the Hub; no weights are fetched or converted. Raises EnvironmentProblem."""
    if (folder := local_folder(section.name)) is not None:
        return load_tokenizer(folder, section)
    path = Path(section.name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return load_tokenizer(path.parent, section, gguf=path.name)
    where = local_tokenizer(
        section.name, section.revision, trust_remote_code=section.trust_remote_code
    )
    return load_tokenizer(where, section)


def load_adapters_tokenizer(
    adapter: Path | str | None, base: Path | str | None, section: ModelSection
) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with an adapter, whose template it learnt; else the one of its base, whose
    files lie in `base` (None: wherever they are)."""
    if adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file():
        return load_tokenizer(adapter, section)
    return find_tokenizer(section) if base is None else load_tokenizer(base, section)


@dataclass(frozen=True)
class Loaded:
    """A model, and where the weights lie that are not in it.

    `sources` has the parameters of the streamed `blocks` by their names in the model; each is one NaN
    in its full shape, of the type that it is kept in.
    """

    model: PreTrainedModel
    blocks: dict[int, Block]
    sources: dict[str, Source]


def load_model(
    location: Path | str,
    section: ModelSection,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    streamed: Callable[[int], bool] | None = None,
) -> Loaded:
    """The decoder at `location`: eval mode, no gradients, no cache, attention by SDPA if it can.

    Weights come one by one from the files into memory of their own; those of the blocks whose
    number is `streamed` stay there. What blocks share, buffers and all else are read as ever.

    A quantised model is loaded whole even so.

    Raises EnvironmentProblem for an unknown architecture, a checkpoint that does not hold exactly
    the model's weights, and one to be streamed whose weights are computed as they are loaded; what
    `load_quantized` raises.
    """
    sources: dict[str, Source] = {}
    said: list[str] = []
    try:
        with reports_kept(said):
            if section.quantization != "none":
                model, report = load_quantized(location, section, dtype=dtype, device=device)
                _require_exact(section.name, report)
            else:
                model, sources = _load(location, section, dtype, whole=streamed is None)
    except ZoftError:
        raise
    except Exception as error:  # transformers raises nearly every class for a folder it dislikes
        if lacks_memory(error):
            raise
        reason = misfit("\n".join(said)) or explained(error, location)
        raise EnvironmentProblem(f"cannot load {section.name}: {reason}") from error
    blocks: dict[int, Block] = {}
    if streamed is not None:
        found_blocks = find_blocks(model)
        owned = owned_parameters(model, found_blocks)
        for i, (module, parameters) in enumerate(zip(found_blocks.modules, owned, strict=True)):
            if streamed(i) and parameters:
                plain = {name: p for name, p in parameters.items() if not is_quantized(p)}
                blocks[i] = Block(module, {**plain, **quantized_tensors(module)})
    left = {name for block in blocks.values() for name in block.parameters}
    # A model that is loaded whole may be loaded again soon; one that is streamed shares the memory.
    with Reader(drop_pages=streamed is not None) as reader:
        _fill(model, sources, left, torch.device(device), reader)
    model.train(False).requires_grad_(False)
    model.config.use_cache = False
    # What an adapter's config will call its base: the Hub id and commit, else the folder itself.
    at_hub = not Path(section.name).expanduser().exists()
    model.name_or_path = section.name if at_hub else str(Path(location).resolve())
    snapshot = Path(location).name if Path(location).parent.name == "snapshots" else None
    model.config._commit_hash = (snapshot or section.revision) if at_hub else None
    return Loaded(model, blocks, {name: sources[name] for name in sources if name in left})


def _load(
    location: Path | str, section: ModelSection, dtype: torch.dtype, *, whole: bool
) -> tuple[PreTrainedModel, dict[str, Source]]:
    """The model without its weights and where these lie; with them only if it has to be `whole`."""
    with quiet():
        found = build_empty_model(
            location, stored_tensors(Path(location)), dtype, section.trust_remote_code
        )
        if found is not None:
            _require_exact(section.name, found.report)
            if not found.unmapped:
                return found.model, found.sources
        if not whole:
            computed = f"{found.unmapped[0]} is computed as it is loaded" if found else ""
            raise EnvironmentProblem(
                cannot_stream(section.name, computed or "its checkpoint is quantised")
            )
        return _load_by_transformers(location, section, dtype), {}


def cannot_stream(name: str, why: str) -> str:
    """The problem in words, and the way out."""
    return f"{name} cannot be streamed, {why}; set model.residency=device"


def _load_by_transformers(
    location: Path | str, section: ModelSection, dtype: torch.dtype
) -> PreTrainedModel:
    """With all weights, for what is more than a copy: computed weights, quantised checkpoints."""
    answer: Any = AutoModelForCausalLM.from_pretrained(
        str(location),
        dtype=dtype,
        trust_remote_code=section.trust_remote_code,
        local_files_only=True,
        output_loading_info=True,
    )
    model, report = answer
    _require_exact(section.name, report)
    loaded: PreTrainedModel = model
    return loaded


def _fill(
    model: PreTrainedModel,
    sources: dict[str, Source],
    left: set[str],
    device: torch.device,
    reader: Reader,
) -> None:
    """Give each tensor memory of its own on the device, in the order of the files."""
    tensors: dict[str, Tensor] = {
        **{name: p for name, p in model.named_parameters() if not is_quantized(p)},
        **dict(model.named_buffers()),
        **quantized_tensors(model),
    }
    for name in tensors.keys() - sources.keys():
        # Views of a mapped file if transformers loaded them: at any alignment, which MKL's results
        # may depend on, and gone if it is rewritten. Tied weights are one Parameter and stay tied.
        kept = tensors[name].data
        tensors[name].data = kept.to(device, copy=True, memory_format=torch.contiguous_format)
    for name in sorted(sources, key=lambda name: (sources[name].file, sources[name].begin)):
        tensor = tensors[name]
        if name in left:
            tensor.data = placeholder(tensor.data, device)
            continue
        own = torch.empty(tensor.shape, dtype=tensor.dtype)
        read(reader, sources[name], own)
        tensor.data = own.to(device)


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
    with Reader(drop_pages=False) as reader:
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


@contextmanager
def forward_explained(name: str, compute_dtype: str = "float32") -> Iterator[None]:
    """Turn whatever a model's own code raises in a forward pass into EnvironmentProblem."""
    try:
        yield
    except ZoftError:
        raise
    except Exception as error:  # any class
        if lacks_memory(error):
            raise
        cause = f"{type(error).__name__}: {first_line(error)}"
        way_out = "" if compute_dtype == "float32" else "; model.compute_dtype=float32 may work"
        problem = f"{name}: a forward pass fails in this model ({cause}){way_out}"
        raise EnvironmentProblem(problem) from error


def require_causal(name: str, model: PreTrainedModel, *, tuned: bool = False) -> None:
    """Raise EnvironmentProblem if the model sees later tokens, fails, or writes its own weights, which
    are to be `tuned`, as it runs. It takes two small passes.

    No config says it reliably (BERT has a CausalLM class): change a token, look before it.
    """
    a, b, c, d = _plain_tokens(model)
    rows = torch.tensor([[[a, b, c]], [[a, b, d]]], device=model.device)
    versions = {name: p._version for name, p in model.named_parameters()}
    with forward_explained(name), torch.inference_mode():
        # One by one: equal shapes give equal bits, equal rows may not.
        one, other = (model(input_ids=row, use_cache=False).logits[0].float() for row in rows)
    written = [name for name, p in model.named_parameters() if p._version != versions[name]]
    if written and tuned:
        raise EnvironmentProblem(
            f"{name} writes its own weights as it runs ({written[0]}, say), so zoft cannot tune it: "
            "what it learns would belong to other weights than those in the files"
        )
    change = (one - other).abs().amax(dim=1)
    if change[:2].max() > 1e-3 * change[2]:
        raise EnvironmentProblem(f"{name} is not a decoder: it sees the tokens that come later")


def _plain_tokens(model: PreTrainedModel) -> list[int]:
    """Return four ids, no special tokens if there are so many: XLM leaves out what stands at and after
    one for padding."""
    text = model.config.get_text_config(decoder=True)
    named = (getattr(text, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos"))
    special = {i for found in named for i in (found if isinstance(found, list) else [found])}
    ids = sorted(range(text.vocab_size), key=lambda i: (i in special, i == 0))
    return [ids[i % len(ids)] for i in range(4)]
