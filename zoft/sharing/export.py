"""`zoft export`: a model as one file for llama.cpp, read back before it is kept."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import NoReturn

import torch
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel

from zoft.errors import EnvironmentProblem, RecipeError, ZoftError, first_line
from zoft.inference.locate import weights_of
from zoft.models.adapters import base_of, is_adapter
from zoft.models.load import load_model, load_tokenizer
from zoft.models.meta import load_config
from zoft.models.storage.fetch import local_safetensors
from zoft.models.storage.names import split_revision
from zoft.recipe.schema import ModelSection
from zoft.runs.checkpoint import require_space
from zoft.sharing.gguf.writer import Kind, llama_cpp_name, why_not_written, write_gguf
from zoft.sharing.logits import Merged, apart, logits, prompts_for, require_close
from zoft.sharing.merge import merged_model, new_place, recipe_of, require_memory
from zoft.system.signals import Stop, stop_on_signals
from zoft.system.silence import quiet

BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}  # of a weight


def export(target: str, out: str | None = None, kind: Kind = "f32") -> Path:
    """Write `target` (an adapter with its base) as a GGUF file, and return where.

    The file is read back by transformers; in f32 it must give the same logits. Raises RecipeError for
    a family that llama.cpp does not know, or that zoft leaves to llama.cpp's own converter.
    """
    where = weights_of(target)
    recipe = recipe_of(Path(target).expanduser())
    trust = recipe is not None and recipe.model.trust_remote_code
    adapted = is_adapter(where)
    name, revision = base_of(where) if adapted else split_revision(where)
    section = ModelSection(name=name, revision=revision, trust_remote_code=trust)
    config = load_config(section)
    place = Path(out or f"{_called(target)}-{kind}.gguf").expanduser()
    if place.suffix != ".gguf":
        raise RecipeError(f"{place}: name a .gguf file")
    if llama_cpp_name(config.model_type) is None:
        raise RecipeError(
            f"llama.cpp has no {config.model_type} models, so there is no GGUF file of this one; "
            + (f"`zoft merge {target} OUT` makes a folder" if adapted else f"{where} is a folder")
            + " that transformers and vLLM load"
        )
    if why := why_not_written(config):
        _hand_over(target, where, place, kind, adapted, why)
    with stop_on_signals() as stop, new_place(place) as partial:
        whole = merged_model(target, stop.check) if adapted else _whole(section, where, stop)
        size = sum(parameter.numel() for parameter in whole.model.parameters())
        require_space(place, int(BYTES[kind] * size))
        try:
            write_gguf(partial, _called(target), whole.model, whole.tokenizer, kind)
        except RecipeError as error:
            _hand_over(target, where, place, kind, adapted, str(error))
        except OSError as error:
            raise EnvironmentProblem(f"cannot write {place}: {error.strerror or error}") from error
        stop.check()
        whole.model.to("meta")  # type: ignore[arg-type]  # its memory is the next one's
        difference = apart(_read_back(partial), whole)
        print(
            f"logits of the file and of {target}, on {len(whole.prompts)} prompts of "
            f"{whole.prompts_of}:\nat most {difference:.2g} apart, computed in float32"
        )
        if kind == "f32":
            require_close(difference, target)
        elif not difference < float("inf"):
            raise ZoftError(f"{target} in {kind} gives no finite logits; nothing was kept")
        stop.check()
    print(f"file           {place}")
    return place


def _whole(section: ModelSection, where: str, stop: Stop) -> Merged:
    """A model that needs no adapter, and its logits."""
    folder = local_safetensors(
        section.name, section.revision, trust_remote_code=section.trust_remote_code
    )
    require_memory(folder)
    tokenizer = load_tokenizer(folder, section)
    stop.check()
    model = load_model(folder, section, dtype=torch.float32, device="cpu").model
    prompts, prompts_of = prompts_for(recipe_of(Path(where).parent), tokenizer)
    return Merged(model, tokenizer, prompts, prompts_of, logits(model, prompts))


def _read_back(file: Path) -> PreTrainedModel:
    try:
        with quiet(), redirect_stderr(io.StringIO()):  # this reader's bar has no switch
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                str(file.parent),
                gguf_file=file.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
    except Exception as error:  # transformers raises nearly every class
        raise ZoftError(f"the file cannot be read back: {first_line(error)}") from error
    return model.eval()  # type: ignore[no-untyped-call,no-any-return]


def _hand_over(
    target: str, where: str, place: Path, kind: Kind, adapted: bool, why: str
) -> NoReturn:
    """Print what llama.cpp's own converter takes. Raises RecipeError: no file was written."""
    folder = place.stem if adapted else where
    print("llama.cpp's own converter writes this model (github.com/ggml-org/llama.cpp):\n")
    if adapted:
        print(f"zoft merge {target} {folder}")
    print(f"python llama.cpp/convert_hf_to_gguf.py {folder} --outfile {place} --outtype {kind}\n")
    raise RecipeError(f"no file was written: {why}")


def _called(target: str) -> str:
    """The run's name, or the model's: runs/movies/final -> movies."""
    path = Path(split_revision(target)[0]).expanduser()
    inside = recipe_of(path) is not None and recipe_of(path.parent) is not None
    return path.resolve().parent.name if inside else path.name.removesuffix(".gguf") or "model"
