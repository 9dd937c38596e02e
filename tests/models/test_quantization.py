from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.integrations import dequantize_module_weight
from support import ROOT, tiny
from support.directions import direction
from torch import Tensor, nn
from transformers import PreTrainedModel

from zoft.engine.probe.view import ProbedModel
from zoft.errors import EnvironmentProblem, RecipeError
from zoft.models import quantization as quantize
from zoft.models.adapters import attach_adapter
from zoft.models.load import load_model
from zoft.models.quantization import is_quantized, library_of, quantized_tensors
from zoft.models.trainable import parameter_ids, tuned_parameters
from zoft.recipe.schema import ModelSection
from zoft.recipe.sections.tune import TuneSection

IDS = torch.tensor([[0, 40, 50, 60, 70]])
# Blocks of 64 along the inputs, which nf4 asks for.
WIDTHS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    "qwen2": {"intermediate_size": 128},
    "opt": {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128},
    "gpt2": {"n_embd": 64},
}
BOTH = pytest.mark.parametrize("kind", ["nf4", "int8"])
# GPT-2's Conv1D is no nn.Linear, which int8 asks for.
CASES = pytest.mark.parametrize(
    ("kind", "family"),
    [
        *((k, b) for k in ("nf4", "int8") for b in ("llama", "opt", "qwen2")),
        ("nf4", "gpt2"),
    ],
)
ALIGNMENT = 512  # bytes, of a tensor in a block's arena


def build(family: str) -> PreTrainedModel:
    model: PreTrainedModel = getattr(tiny, family)(**WIDTHS[family])
    return model


def load(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    section = ModelSection(name=str(folder), quantization=kind)  # type: ignore[arg-type]
    return load_model(folder, section, dtype=dtype, device="cpu").model


def leaves(model: nn.Module) -> dict[str, Any]:
    return {
        name: module
        for name, module in model.named_modules()
        if any(map(is_quantized, module.parameters(recurse=False)))
    }


def plain(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(Tensor)


@CASES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_weights_are_rounded(
    tmp_path: Path, kind: str, family: str, dtype: torch.dtype
) -> None:
    original = build(family)
    original.save_pretrained(tmp_path)
    model = load(tmp_path, kind, dtype)
    found = leaves(model)
    assert len(found) == {"llama": 14, "qwen2": 14, "opt": 12, "gpt2": 8}[family]
    assert model.get_submodule("lm_head") not in found.values()
    for name, module in found.items():
        assert isinstance(module, nn.Linear)
        weight = dequantize_module_weight(module).double()
        before = original.get_parameter(f"{name}.weight").double()
        before = before if isinstance(original.get_submodule(name), nn.Linear) else before.T
        step = before.abs().max() * {"nf4": 0.2, "int8": 1 / 127}[kind]  # widest gap of the codes
        assert (weight - before).abs().max() < step, name
        # Outliers: activations of few levels, one scale for all, would lose all others.
        x = torch.randn(7, module.in_features, generator=torch.Generator().manual_seed(0))
        x[:, 0] *= 1000
        x = x.to(dtype)
        expected = x.double() @ weight.T + (0 if module.bias is None else module.bias.double())
        exact = x.double().abs() @ weight.abs().T  # a sum's rounding is relative to its terms
        error = ((module(x).double() - expected).abs() / (exact + 1e-3)).max()
        assert error < 16 * torch.finfo(dtype).eps, name


@CASES
def test_loading_again_gives_the_same_codes_and_passes_leave_them_alone(
    tmp_path: Path, kind: str, family: str
) -> None:
    build(family).save_pretrained(tmp_path)
    first, second = load(tmp_path, kind), load(tmp_path, kind)
    logits = first(IDS).logits
    assert torch.equal(logits, first(IDS).logits)
    ours, theirs = quantized_tensors(first), quantized_tensors(second)
    assert list(ours) == list(theirs)
    assert all(torch.equal(plain(ours[n]), plain(theirs[n])) for n in ours)
    assert torch.equal(logits, second(IDS).logits)


@CASES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_runs_from_copies_in_an_arena(
    tmp_path: Path, kind: str, family: str, dtype: torch.dtype
) -> None:
    """What streaming does: raw bytes at aligned offsets of other memory, nothing left behind."""
    build(family).save_pretrained(tmp_path)
    model = load(tmp_path, kind, dtype)
    expected = model(IDS).logits
    tensors = quantized_tensors(model)
    places, size = {}, 0
    for name, tensor in tensors.items():
        places[name] = size
        size += -(-plain(tensor).nbytes // ALIGNMENT) * ALIGNMENT
    arena = torch.zeros(size, dtype=torch.uint8)
    for name, tensor in tensors.items():
        old = plain(tensor)
        raw = arena[places[name] : places[name] + old.nbytes]
        raw.copy_(old.contiguous().reshape(-1).view(torch.uint8))
        tensor.data = raw.view(old.dtype).view(old.shape)
        old.fill_(torch.nan if old.is_floating_point() else 77)
    assert torch.equal(model(IDS).logits, expected)
    arena.fill_(255)  # it is these bytes that are read: NaN scales
    assert model(IDS).logits.isnan().any()


@CASES
def test_every_tensor_has_memory_of_its_own_and_nothing_else_stays(
    tmp_path: Path, kind: str, family: str
) -> None:
    build(family).save_pretrained(tmp_path)
    model = load(tmp_path, kind)
    tensors = {name: plain(tensor) for name, tensor in quantized_tensors(model).items()}
    places = [t.untyped_storage().data_ptr() for t in tensors.values()]
    assert len(set(places)) == len(places)
    for name, tensor in tensors.items():
        assert tensor.is_contiguous(), name
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name
        assert tensor.data_ptr() % 64 == 0, name
    for name, module in leaves(model).items():
        mine = {n: t for n, t in tensors.items() if n.startswith(f"{name}.weight")}
        weights = module.in_features * module.out_features
        if kind == "nf4":
            blocks = -(-weights // 64)
            assert mine[f"{name}.weight"].nbytes == weights // 2
            assert mine[f"{name}.weight.absmax"].nbytes == blocks
            assert mine[f"{name}.weight.state2.absmax"].nbytes == 4 * -(-blocks // 256)
            tables = 4 * (16 + 256 + 1)
            assert sum(t.nbytes for t in mine.values()) < 0.517 * weights + 4 + 1 + tables
        else:
            assert mine[f"{name}.weight.qdata"].nbytes == weights
            assert sum(t.nbytes for t in mine.values()) == weights + 5 * module.out_features
        rest = {n for n, _ in module.named_parameters()} | {n for n, _ in module.named_buffers()}
        assert rest <= {"weight", "bias"}


MEASURE = """
import re, sys
from pathlib import Path
import torch
from zoft.system.host_memory import hand_back_freed_memory
from zoft.models.load import load_model
from zoft.models.quantization import is_quantized, quantized_tensors
from zoft.recipe.schema import ModelSection

def resident():
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\\s*([0-9]+)", text).group(1))

def load(folder):
    section = ModelSection(name=folder, quantization=sys.argv[1])
    return load_model(folder, section, dtype=torch.bfloat16, device="cpu").model

hand_back_freed_memory()
load(sys.argv[2])  # whatever is imported and built once
before = resident()
model = load(sys.argv[3])
grown = resident() - before
codes = [tensor.detach().as_subclass(torch.Tensor) for tensor in quantized_tensors(model).values()]
others = [p for p in model.parameters() if not is_quantized(p)]
print(grown, sum(tensor.nbytes for tensor in codes + others))
"""


@BOTH
def test_loading_leaves_the_codes_and_nothing_else(tmp_path: Path, kind: str) -> None:
    build("llama").save_pretrained(tmp_path / "tiny")
    widths: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1536, "head_dim": 128}
    model = tiny.llama(dtype=torch.bfloat16, num_hidden_layers=6, **widths)
    model.save_pretrained(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, kind, str(tmp_path / "tiny"), str(tmp_path / "model")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    grown, kept = map(int, done.stdout.split())
    assert kept < 20e6  # 38 MB as bfloat16
    assert grown < kept + 8e6


@BOTH
def test_an_adapter_probes_the_quantised_base_once_for_both_signs(
    tmp_path: Path, kind: str
) -> None:
    build("llama").save_pretrained(tmp_path)
    tune = TuneSection(method="lora", r=2)
    adapted = attach_adapter(load(tmp_path, kind), tune, seed=0)
    tuned = tuned_parameters(adapted, tune)
    assert all("lora_" in name for name in tuned)
    view = ProbedModel(adapted, tuned, parameter_ids(tuned), torch.float32, IDS)
    passes = []
    for module in leaves(adapted).values():
        module.register_forward_hook(lambda module, _inputs, _output: passes.append(module))
    z = direction(0, 1, 0)
    positions = torch.arange(IDS.numel())
    with torch.no_grad(), view.probe(z, 0.1, -0.1):
        both = view.logits(IDS, positions)
    assert len(passes) == len(set(passes)) == 14
    alone = []
    for scale in (0.1, -0.1):
        with torch.no_grad(), view.probe(z, scale):
            alone.append(view.logits(IDS, positions))
    assert torch.allclose(both, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_what_cannot_be_quantised_is_refused(tmp_path: Path) -> None:
    build("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(RecipeError, match=r"int8 finds no linear layer in .*try nf4"):
        load(tmp_path / "gpt2", "int8")
    build("llama").save_pretrained(tmp_path / "plain")
    load(tmp_path / "plain", "nf4").save_pretrained(tmp_path / "made")
    with pytest.raises(RecipeError, match="quantised already"):
        load(tmp_path / "made", "nf4")
    tiny.llama().save_pretrained(tmp_path / "narrow")
    with pytest.raises(
        RecipeError, match=r"multiple of 64 inputs, .*q_proj of .* has 48; use int8"
    ):
        load(tmp_path / "narrow", "nf4")


@BOTH
@pytest.mark.parametrize("there", ["missing", "0.1.0"])
def test_a_missing_or_old_library_is_one_line_with_the_command(
    tmp_path: Path, kind: str, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        if there == "missing":
            raise PackageNotFoundError(package)
        return there

    monkeypatch.setattr(quantize, "version", version)
    build("llama").save_pretrained(tmp_path)
    with pytest.raises(EnvironmentProblem, match=f'^model.quantization {kind} .*pip install "'):
        load(tmp_path, kind)
    assert library_of("none") is None
