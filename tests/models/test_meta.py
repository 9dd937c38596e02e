from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import tiny
from support.decoders.models import build
from transformers import PreTrainedModel, T5Config

from zoft.errors import EnvironmentProblem
from zoft.models.adapters import attach_adapter
from zoft.models.meta import build_outline, kept_in_float32, load_config
from zoft.recipe.schema import ModelSection
from zoft.recipe.sections.tune import TuneSection


@pytest.mark.parametrize("model", [tiny.llama(), tiny.opt(), tiny.gpt2(), tiny.qwen2()])
def test_it_has_the_models_tensors_and_no_data(model: PreTrainedModel, tmp_path: Path) -> None:
    model.config.save_pretrained(tmp_path)  # config.json alone is enough
    config = load_config(ModelSection(name=str(tmp_path)))
    outline = build_outline(config, TuneSection(), stored=torch.bfloat16)
    assert {n: p.shape for n, p in outline.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert {p.device.type for p in outline.parameters()} == {"meta"}
    assert {p.dtype for p in outline.parameters()} == {torch.bfloat16}


def test_its_adapter_is_the_one_that_a_run_attaches() -> None:
    tune = TuneSection(method="lora", r=4, target_modules=["down_proj"])
    model = attach_adapter(tiny.llama(), tune, 0)
    outline = build_outline(tiny.llama().config, tune, stored=torch.float16)
    shapes = {n: p.shape for n, p in outline.named_parameters() if "lora_" in n}
    assert shapes
    assert shapes == {n: p.shape for n, p in model.named_parameters() if "lora_" in n}
    assert {p.dtype for n, p in outline.named_parameters() if "lora_" in n} == {torch.float32}


def test_no_config_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot read the config") as caught:
        load_config(ModelSection(name=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_config_of_no_decoder_is_said_in_one_line() -> None:
    with pytest.raises(EnvironmentProblem, match="cannot build the model") as caught:
        build_outline(T5Config(), TuneSection(), stored=torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.gguf"])
def test_a_path_that_is_not_there_is_no_name_of_the_hub(tmp_path: Path, name: str) -> None:
    with pytest.raises(EnvironmentProblem, match=f"there is no .*{name}"):
        load_config(ModelSection(name=str(tmp_path / name)))


def test_an_adapter_changes_nothing_about_what_is_kept_in_float32() -> None:
    """HY-V4 keeps parameters called `base` so, and peft calls every wrapped layer `base_layer`."""
    plain, other = build("hy_v4"), build("hy_v4")
    names = {p: name for name, p in plain.named_parameters()}
    expected = {names[p] for p in kept_in_float32(plain, torch.bfloat16)}
    assert any(name.endswith("_hc.base") for name in expected)
    adapted = attach_adapter(other, TuneSection.model_validate({"method": "lora"}), seed=0)
    names = {p: name for name, p in adapted.get_base_model().named_parameters()}
    assert {names[p] for p in kept_in_float32(adapted, torch.bfloat16)} == expected
