from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from support import tiny
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from zoft.errors import EnvironmentProblem, RecipeError
from zoft.models.adapters import attach_adapter, of_adapter
from zoft.models.prefix import begin_with_activations
from zoft.models.targets import feedforward, target_endings
from zoft.recipe.sections.tune import TuneSection

ALL = TuneSection(method="lora", target_modules="all-linear")


def adapted_modules(model: PeftModel) -> set[str]:
    return {n.partition(".lora_")[0] for n, _ in model.named_parameters() if of_adapter(n)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", [tiny.opt, tiny.llama, tiny.gpt2])
def test_all_linear_is_what_peft_means_by_it(build: Callable[[], PreTrainedModel]) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    theirs = get_peft_model(build(), config)
    assert isinstance(theirs, PeftModel)
    ours = attach_adapter(build(), ALL, seed=0)
    assert adapted_modules(ours) == adapted_modules(theirs)
    assert not any("lm_head" in name for name in adapted_modules(ours))


def test_a_range_of_blocks() -> None:
    tune = ALL.model_copy(update={"layers": (1, 1), "target_modules": "auto"})
    for method in ("lora", "ia3"):
        some = tune.model_copy(update={"method": method})
        names = {n for n, _ in attach_adapter(tiny.llama(), some, 0).named_parameters()}
        assert all(".layers.1." in name for name in names if of_adapter(name))
    with pytest.raises(RecipeError, match="blocks 0 to 1"):
        attach_adapter(tiny.llama(), tune.model_copy(update={"layers": (0, 2)}), seed=0)
    table = tune.model_copy(update={"target_modules": ["embed_tokens"]})
    with pytest.raises(RecipeError, match="no block of them has a module embed_tokens"):
        attach_adapter(tiny.llama(), table, seed=0)


def test_ia3_scales_what_goes_into_the_second_feed_forward_matrix() -> None:
    tune = TuneSection(method="ia3")
    targets = target_endings(tiny.llama(), tune)
    assert targets == ["k_proj", "v_proj", "down_proj"]
    assert feedforward(tiny.llama(), targets) == ["down_proj"]
    full = ["model.layers.1.mlp.down_proj", "model.layers.1.self_attn.k_proj"]
    assert feedforward(tiny.llama(), full) == full[:1]


def test_models_that_take_no_such_adapter() -> None:
    stranger: Any = tiny.llama()
    stranger.config.model_type = "stranger"
    with pytest.raises(EnvironmentProblem, match=r"no default modules of stranger models for ia3"):
        attach_adapter(stranger, TuneSection(method="ia3"), seed=0)


def test_models_without_keys_and_values_take_no_prefix() -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(RecipeError, match=r"tune\.method: MambaForCausalLM takes no prefix: "):
        attach_adapter(mamba, TuneSection(method="prefix"), seed=0)
    narrow = MistralForCausalLM(
        MistralConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, sliding_window=4,
        )
    )  # fmt: skip
    narrow.config.use_cache = False
    with pytest.raises(RecipeError, match=r"takes no prefix: Need at least 5 cached tokens"):
        begin_with_activations(attach_adapter(narrow, TuneSection(method="prefix"), 0), seed=0)
