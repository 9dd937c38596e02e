"""Quantised bases: the frozen matrices as codes under an adapter; activations are left as they are.

`nf4` is bitsandbytes' (Dettmers et al., arXiv 2305.14314: blocks of 64, their scales quantised again),
`int8` torchao's (a float32 scale per output row). A module turns its codes back into numbers once per
pass, hence once for both signs of a paired probe. Schemes that round activations to as few levels
(bitsandbytes' own int8) are not offered: they hide the difference of two nearby losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    TorchAoConfig,
)

from zoft.errors import EnvironmentProblem, RecipeError
from zoft.recipe.schema import ModelSection
from zoft.system.silence import quiet

BLOCK = 64  # weights that share a scale in nf4
LIBRARIES = {"nf4": ("bitsandbytes", "0.50"), "int8": ("torchao", "0.18")}


def library_of(quantization: str) -> str | None:
    """The package and version that make the codes, e.g. `bitsandbytes 0.50.2`; None without codes.

    Raises EnvironmentProblem, with the pip command, if it is missing or too old.
    """
    if quantization == "none":
        return None
    package, least = LIBRARIES[quantization]
    try:
        found = version(package)
    except PackageNotFoundError:
        found = ""
    if not found or Version(found) < Version(least):
        there = f", not {found}" if found else ""
        raise EnvironmentProblem(
            f"model.quantization {quantization} needs {package} {least} or newer{there}: "
            f'pip install "{package}>={least}"'
        )
    return f"{package} {found}"


def load_quantized(
    location: Path | str, section: ModelSection, *, dtype: torch.dtype, device: torch.device | str
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model at `location` on `device`, each matrix quantised as it is read, and transformers'
    report of missing and unknown tensors.

    Head, embeddings, norms and biases stay in `dtype`, in which the codes are multiplied. Equal files,
    `dtype`, library and device give equal codes. Raises EnvironmentProblem without the library,
    RecipeError if there is nothing to quantise, or nothing that the library quantises rightly.
    """
    library_of(section.quantization)
    options: dict[str, Any] = {
        "trust_remote_code": section.trust_remote_code,
        "local_files_only": True,
    }
    with quiet():
        found = AutoConfig.from_pretrained(str(location), **options)
        if getattr(found, "quantization_config", None) is not None:
            raise RecipeError(
                f"model.quantization: {section.name} is quantised already; name the model that it "
                "was made from"
            )
        answer: Any = AutoModelForCausalLM.from_pretrained(
            str(location),
            dtype=dtype,
            quantization_config=_config(section.quantization, dtype),
            device_map={"": device},
            output_loading_info=True,
            **options,
        )
    model, report = answer
    if section.quantization == "nf4":
        _settle_nf4(section.name, model)
    if not quantized_tensors(model):
        raise RecipeError(
            f"model.quantization: {section.quantization} finds no linear layer in {section.name}"
            + ("; try nf4" if section.quantization == "int8" else "")
        )
    return model, report


def quantized_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Name -> every tensor that quantised parameters below `module` are made of: codes, scales,
    tables, the nested state of the scales.

    Each is a tensor with a storage, or (nf4's codes) the Parameter itself. Give all of them other memory
    by `tensor.data = copy`, and the modules compute from there. After `load_model` each has memory
    of its own, tables included.
    """
    return {
        f"{name}{part}": tensor
        for name, parameter in module.named_parameters()
        for part, tensor in _parts(parameter)
    }


def is_quantized(parameter: Tensor) -> bool:
    """Whether the parameter is made of codes."""
    return any(True for _ in _parts(parameter))


def _settle_nf4(name: str, model: nn.Module) -> None:
    """Keep bitsandbytes 0.50 from what it does wrong on CPUs. Raises RecipeError for a layer that its
    kernels there misread: they find a weight's scale by row, as if every row began a block."""
    from bitsandbytes.nn import Linear4bit  # an extra

    for path, module in model.named_modules():
        if not isinstance(module, Linear4bit):
            continue
        if module.in_features % BLOCK:
            raise RecipeError(
                f"model.quantization: nf4 needs layers with a multiple of {BLOCK} inputs, {path} of "
                f"{name} has {module.in_features}; use int8"
            )
        # With AVX512-BF16 the first pass would repack the codes, lose the state they came with, and from
        # then on round scales and activations to bfloat16, whatever the compute type.
        module.support_avx512bf16_for_cpu = False


def _parts(parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield (suffix of the name, tensor) for all tensors of a quantised weight."""
    if is_traceable_wrapper_subclass(parameter):  # torchao: a tensor without a storage
        for name in parameter.__tensor_flatten__()[0]:
            yield f".{name}", getattr(parameter, name)
    elif (state := getattr(parameter, "quant_state", None)) is not None:  # bitsandbytes
        yield "", parameter
        yield from _state(state, "")


def _state(state: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of bitsandbytes' scales, and of the scales of the scales."""
    for name in ("absmax", "code", "offset"):
        if (tensor := getattr(state, name)) is not None:
            yield f"{prefix}.{name}", tensor
    if state.nested:
        yield from _state(state.state2, f"{prefix}.state2")


def _config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig | TorchAoConfig:
    """Make the config of the quantiser for transformers."""
    if quantization == "nf4":
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    from torchao.quantization import Int8WeightOnlyConfig  # an extra

    # Otherwise it sets torch.compile's tuning options for the whole process.
    return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
