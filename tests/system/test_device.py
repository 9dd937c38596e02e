from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipes import recipe as minimal

from zoft.errors import EnvironmentProblem, RecipeError
from zoft.models import quantization as quantize
from zoft.planning.resolve import PERTURBATION, resolve
from zoft.recipe.resolved import with_defaults
from zoft.recipe.schema import Recipe
from zoft.recipe.sections.base import DType
from zoft.system import accelerator
from zoft.system.device import DTYPES, make_repeatable


def recipe(**sections: Any) -> Recipe:
    return with_defaults(minimal(**sections))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "first", lambda: None)
    monkeypatch.setattr(accelerator, "count", lambda _kind: 0)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "first", lambda: "cuda:0")
    monkeypatch.setattr(accelerator, "count", lambda kind: 2 if kind == "cuda" else 0)
    # The first is a Turing, which has no bfloat16, the second a Hopper.
    monkeypatch.setattr(accelerator, "has_bfloat16", lambda device: device == "cuda:1")


def cpu_with(monkeypatch: pytest.MonkeyPatch, capability: str, flags: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"flags : fpu {flags}\n")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("capability", "flags", "dtype"),
    [
        ("AVX512", "avx512f avx512_bf16", "bfloat16"),
        ("AVX512", "avx512f amx_bf16", "bfloat16"),
        ("AVX512", "avx512f", "float32"),
        ("AVX512_BF16", "avx512f avx512_bf16", "bfloat16"),
        ("AVX2", "avx512_bf16", "float32"),  # torch was told not to use it
        ("DEFAULT", "", "float32"),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, flags: str, dtype: str
) -> None:
    cpu_with(monkeypatch, capability, flags)
    resolved = resolve(recipe())
    assert (resolved.device, resolved.model.compute_dtype) == ("cpu", dtype)
    assert resolved.optimizer.perturbation == PERTURBATION[dtype]


@pytest.mark.usefixtures("no_gpu")
def test_no_cpuinfo_means_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    cpu_with(monkeypatch, "AVX512", "")
    monkeypatch.setattr(Path, "read_text", missing)
    assert resolve(recipe()).model.compute_dtype == "float32"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("asked", "device", "dtype"),
    [
        ("auto", "cuda:0", "float32"),
        ("cuda", "cuda:0", "float32"),
        ("cuda:1", "cuda:1", "bfloat16"),
    ],
)
def test_a_gpu_computes_in_bfloat16_from_ampere_on(asked: str, device: str, dtype: str) -> None:
    resolved = resolve(recipe(device=asked))
    assert (resolved.device, resolved.model.compute_dtype) == (device, dtype)


@pytest.mark.usefixtures("two_gpus")
def test_a_cpu_that_is_asked_for_is_taken() -> None:
    assert resolve(recipe(device="cpu")).device == "cpu"


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_too_many_is_refused() -> None:
    with pytest.raises(EnvironmentProblem, match="device: cuda:2: torch sees 2 of cuda"):
        resolve(recipe(device="cuda:2"))


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "xpu:1"])
def test_a_missing_gpu_is_refused(device: str) -> None:
    with pytest.raises(
        EnvironmentProblem, match=f"device: {device} is not here.*write auto or cpu"
    ):
        resolve(recipe(device=device))


@pytest.mark.parametrize("absent", [False, True])
def test_a_device_that_torch_does_not_know_is_a_misspelling(absent: bool) -> None:
    with pytest.raises(RecipeError, match="device: torch knows no gpu; write auto, cpu or"):
        resolve(recipe(device="gpu:0"), absent=absent)


@pytest.mark.parametrize("device", ["mps", "meta", "vulkan:0"])
def test_a_device_without_streams_is_refused(device: str) -> None:
    with pytest.raises(EnvironmentProblem, match=r"device: [a-z]+ has no streams in this torch"):
        resolve(recipe(device=device))


def test_an_absent_gpu_keeps_its_kind_in_a_plan() -> None:
    assert resolve(recipe(device="xpu"), absent=True).device == "xpu:0"


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("dtype", "perturbation"), [("float32", 1e-3), ("float16", 1e-3), ("bfloat16", 3e-3)]
)
def test_the_perturbation_stands_out_of_rounding(dtype: DType, perturbation: float) -> None:
    resolved = resolve(recipe(model={"compute_dtype": dtype}))
    assert resolved.model.compute_dtype == dtype
    assert resolved.optimizer.perturbation == perturbation
    assert dtype in DTYPES


@pytest.mark.usefixtures("no_gpu")
def test_what_was_chosen_stays() -> None:
    chosen = recipe(model={"compute_dtype": "bfloat16"}, optimizer={"perturbation": 0.5})
    expected = chosen.model_copy(update={"device": "cpu"})
    assert resolve(chosen).model_dump() == expected.model_dump()
    adapter = recipe(tune={"method": "lora"}, model={"compute_dtype": "bfloat16"})
    assert resolve(adapter, absent=True).optimizer.perturbation == 1e-2
    once = resolve(recipe())
    assert resolve(once) == once
    passes = once.optimizer.model_copy(update={"paired": False})  # the first look settles it
    # Where weights wait is settled by what is free when the run begins.
    model = once.model.model_copy(update={"residency": None})
    # What an evaluation is judged by follows from the rows.
    later = {"tune": None, "optimizer": passes, "model": model, "memory": None, "eval": None}
    assert "'auto'" not in repr(once.model_copy(update=later))


def test_repeatable_means_ieee_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the user's own stays
    fast = [(matmul, "allow_tf32"), (cudnn, "allow_tf32")]
    fast += [(matmul, f"allow_{d}_reduced_precision_reduction") for d in ("bf16", "fp16")]
    before = [getattr(owner, name) for owner, name in fast]
    try:
        for owner, name in fast:
            setattr(owner, name, True)
        make_repeatable(torch.device("cpu"))
        assert all(getattr(owner, name) for owner, name in fast)
        make_repeatable(torch.device("cuda"))
        assert not any(getattr(owner, name) for owner, name in fast)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
        make_repeatable(torch.device("cuda"))
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        for (owner, name), value in zip(fast, before, strict=True):
            setattr(owner, name, value)


@pytest.mark.usefixtures("no_gpu")
def test_a_library_that_quantisation_lacks_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(quantize, "version", version)
    assert resolve(recipe()).model.quantization == "none"
    with pytest.raises(EnvironmentProblem, match='pip install "torchao>='):
        resolve(recipe(model={"quantization": "int8"}, tune={"method": "lora"}))
