"""Adapters that peft made elsewhere, tuned on, scored and merged: what they compute, what is kept."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support import small, tiny
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from zoft.cli.main import main
from zoft.errors import EnvironmentProblem
from zoft.inference.session import find
from zoft.models.adapters import load_adapter
from zoft.recipe.schema import ModelSection
from zoft.training.run import train

IDS = torch.tensor([[5, 40, 7, 99, 23, 200, 31]])
SHORT = ("train.steps=2", "eval.every=0", "checkpoint.every=0")
EXPRESSION = r".*\.self_attn\.(q_proj|v_proj)"


def foreign(folder: Path, grown: int = 0, **settings: Any) -> Path:
    """A recipe in `folder`, and an adapter whose every weight is noise, for a vocabulary of so many
    tokens more."""
    recipe = small.write(folder, "lora", tie=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model")
    if grown:
        model.resize_token_embeddings(model.config.vocab_size + grown)
    torch.manual_seed(1)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, init_lora_weights=False, **settings
    )
    with warnings.catch_warnings(action="ignore"):
        made = get_peft_model(model, config)
        for name, parameter in made.named_parameters():
            if "modules_to_save" in name or "trainable_tokens" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
        made.save_pretrained(folder / "adapter")
    return recipe


def by_peft(folder: Path, adapter: Path, grown: int = 0) -> Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model")
    if grown:
        model.resize_token_embeddings(model.config.vocab_size + grown)
    with warnings.catch_warnings(action="ignore"), torch.inference_mode():
        logits: Tensor = PeftModel.from_pretrained(model, adapter).eval()(IDS).logits
    return logits


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": EXPRESSION},
        {"target_modules": r"model\.layers\.1\..*_proj"},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.0.self_attn.q_proj": 2},
         "alpha_pattern": {"v_proj": 3}},
        {"target_modules": ["q_proj"], "use_dora": True, "use_rslora": True},
        {"target_modules": ["q_proj"], "bias": "all", "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]},
    ],
    ids=lambda settings: "-".join(settings),
)  # fmt: skip
def test_what_peft_made_is_what_peft_and_a_merge_get_back(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    recipe = foreign(tmp_path, **settings)
    train(str(recipe), [*SHORT, f"tune.adapter={tmp_path / 'adapter'}"])
    begun = by_peft(tmp_path, tmp_path / "run" / "start")
    assert begun.equal(by_peft(tmp_path, tmp_path / "adapter"))
    ended = by_peft(tmp_path, tmp_path / "run" / "final")
    assert not ended.equal(begun)
    assert main(["merge", str(tmp_path / "run"), str(tmp_path / "merged")]) == 0
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (merged.eval()(IDS).logits - ended).abs().max() <= 1e-4


def test_an_expression_stays_one_and_its_run_resumes(tmp_path: Path) -> None:
    recipe = foreign(tmp_path, target_modules=EXPRESSION)
    adapter = f"tune.adapter={tmp_path / 'adapter'}"
    train(str(recipe), [*SHORT, adapter])
    for folder in ("start", "final"):
        config = json.loads((tmp_path / "run" / folder / "adapter_config.json").read_text())
        assert config["target_modules"] == EXPRESSION
    shutil.move(tmp_path / "adapter", tmp_path / "moved")
    train(
        str(recipe),
        [*SHORT[1:], f"tune.adapter={tmp_path / 'moved'}", "train.steps=4"],
        resume="auto",
    )
    train(
        str(recipe),
        [*SHORT[1:], f"tune.adapter={tmp_path / 'moved'}", "train.steps=4"],
        output_dir=str(tmp_path / "whole"),
    )
    with pytest.raises(EnvironmentProblem, match="is not the adapter that the run began with"):
        train(
            str(recipe),
            [*SHORT[1:], f"tune.adapter={tmp_path / 'whole'}", "train.steps=5"],
            resume="auto",
        )
    file = "final/adapter_model.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=str,
)
def test_a_grown_vocabulary_is_the_adapters(settings: dict[str, Any], tmp_path: Path) -> None:
    recipe = foreign(tmp_path, grown=3, **settings)
    adapter = tmp_path / "adapter"
    train(str(recipe), [*SHORT, f"tune.adapter={adapter}"])
    begun = by_peft(tmp_path, tmp_path / "run" / "start", grown=3)
    assert begun.equal(by_peft(tmp_path, adapter, grown=3))
    assert main(["merge", str(tmp_path / "run"), str(tmp_path / "merged")]) == 0
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = by_peft(tmp_path, tmp_path / "run" / "final", grown=3)
    assert (merged.eval()(IDS).logits - expected).abs().max() <= 1e-4
    assert merged.config.vocab_size == expected.shape[-1]


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_an_adapter_that_lacks_weights_is_refused(part: str, tmp_path: Path) -> None:
    foreign(tmp_path, target_modules=["q_proj"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if part not in name}, file)
    with pytest.raises(EnvironmentProblem, match=rf"lacks weights .*q_proj\.{part}"):
        load_adapter(tiny.llama(tie=True), tmp_path / "adapter")


def test_shapes_that_do_not_fit_are_named_with_both(tmp_path: Path) -> None:
    foreign(tmp_path, target_modules=["q_proj"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: t[:, :-1].clone() for name, t in load_file(file).items()}, file)
    with pytest.raises(
        EnvironmentProblem, match=r"lora_A.* has shape \[4, \d+\], the model's has \[4"
    ):
        load_adapter(tiny.llama(tie=True), tmp_path / "adapter")


def test_the_tokenizer_of_an_adapter_is_the_one_it_learnt_with(tmp_path: Path) -> None:
    recipe = foreign(tmp_path, target_modules=["q_proj"])
    template = "{% for m in messages %}USER: {{ m['content'] }}{% endfor %}"
    adapter = tmp_path / "adapter"
    tiny.tokenizer(chat_template=template).save_pretrained(adapter)
    train(str(recipe), [*SHORT, f"tune.adapter={adapter}"])
    section = ModelSection(name=str(tmp_path / "model"))
    final = tmp_path / "run" / "final"
    for found in (find(str(adapter), section).tokenizer, AutoTokenizer.from_pretrained(final)):
        assert found.chat_template == template
    assert find(str(tmp_path / "model"), section).tokenizer.chat_template is None
