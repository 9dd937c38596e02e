"""Large passes run without the MATH backend, or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import tiny
from torch.nn.functional import scaled_dot_product_attention
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, MambaConfig, PreTrainedConfig

from zoft.engine.probe import attention
from zoft.engine.probe.attention import bounded_attention
from zoft.errors import RecipeError

INPUT = torch.arange(40).view(2, 20) * 7 % tiny.VOCABULARY
MASK = (torch.arange(20) < torch.tensor([[20], [15]])).long()
SCORES = 2 * 4 * 20 * 20 * 4  # bytes of INPUT's scores in a tiny model of four heads
MODELS: dict[str, Callable[..., Any]] = {
    "opt": tiny.opt,
    "llama": tiny.llama,
    "gpt2": tiny.gpt2,
    "qwen2": tiny.qwen2,
}


def deepseek() -> Any:
    """Keys are longer than values: on a CPU no backend but MATH takes them."""
    config = DeepseekV3Config(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        first_k_dense_replace=1,
        q_lora_rank=None,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
        max_position_embeddings=64,
    )
    model: Any = DeepseekV3ForCausalLM(config)
    return model.eval().requires_grad_(False)


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MAX_SCORES", SCORES - 1)


def math_is_on() -> bool:
    return bool(torch.backends.cuda.math_sdp_enabled())  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("masked", [False, True], ids=["bare", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_logits_without_the_scores(name: str, dtype: torch.dtype, masked: bool) -> None:
    model = MODELS[name](dtype=dtype)
    mask = MASK if masked else None
    with torch.inference_mode():
        expected = model(input_ids=INPUT, attention_mask=mask).logits
        with bounded_attention(model.config, *INPUT.shape):
            assert not math_is_on()
            found = model(input_ids=INPUT, attention_mask=mask).logits
    assert math_is_on()
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("low_limit")
def test_a_model_that_no_other_backend_takes() -> None:
    model = deepseek()
    with torch.inference_mode(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model(input_ids=INPUT)
        with (
            pytest.raises(
                RecipeError, match=r"scores of 2 rows of 20 tokens, .*: lower train\.mic"
            ),
            bounded_attention(model.config, *INPUT.shape),
        ):
            model(input_ids=INPUT)
    assert said == [], "one line, not each backend's reasons before it"
    assert math_is_on()


@pytest.mark.usefixtures("low_limit")
def test_eager_attention_is_refused_before_it_begins() -> None:
    model = tiny.llama()
    model.set_attn_implementation("eager")
    with (
        pytest.raises(RecipeError, match="2 rows of 20 tokens") as caught,
        bounded_attention(model.config, *INPUT.shape),
    ):
        pytest.fail("the pass was begun")
    assert len(str(caught.value).splitlines()) == 1


def test_the_limit_itself_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MAX_SCORES", SCORES)
    eager = tiny.llama()
    eager.set_attn_implementation("eager")
    for model in (eager, deepseek()):
        with torch.inference_mode(), bounded_attention(model.config, *INPUT.shape):
            assert math_is_on()
            model(input_ids=INPUT)


@pytest.mark.parametrize(("rows", "refused"), [(16, False), (17, True)])
def test_the_limit_is_a_gibibyte(rows: int, refused: bool) -> None:
    """4 heads, 2048 tokens, 4 bytes: 64 MiB a row."""
    with bounded_attention(tiny.llama().config, rows, 2048):
        assert math_is_on() != refused


def test_the_size_is_said() -> None:
    model = tiny.gpt2()
    model.set_attn_implementation("eager")
    text = r"24 rows of 2048 tokens, 1\.5 GiB in each layer, where 1 GiB is the limit"
    with pytest.raises(RecipeError, match=text), bounded_attention(model.config, 24, 2048):
        pass


def test_a_model_without_attention_has_no_scores() -> None:
    with bounded_attention(MambaConfig(), 10**6, 10**6):
        assert math_is_on()


@pytest.mark.usefixtures("low_limit")
def test_heads_that_differ_between_layers() -> None:
    config = PreTrainedConfig()
    config.num_attention_heads = [1, 4, 2]
    with bounded_attention(config, *INPUT.shape):
        assert not math_is_on()


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("another"), ValueError("x")])
def test_other_errors_pass_and_the_switch_is_put_back(error: BaseException) -> None:
    with (
        pytest.raises(type(error)) as caught,
        bounded_attention(tiny.llama().config, *INPUT.shape),
    ):
        raise error
    assert caught.value is error
    assert math_is_on()


@pytest.mark.usefixtures("low_limit")
def test_a_switch_that_was_off_stays_off() -> None:
    torch.backends.cuda.enable_math_sdp(False)
    try:
        with bounded_attention(tiny.llama().config, *INPUT.shape):
            pass
        assert not math_is_on()
    finally:
        torch.backends.cuda.enable_math_sdp(True)


def test_torch_still_refuses_as_we_read_it() -> None:
    """What the error is recognised by, and that the switch of this name reaches the CPU."""
    q, v = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 6)
    torch.backends.cuda.enable_math_sdp(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(RuntimeError, match="No available kernel"):
                scaled_dot_product_attention(q, q, v)
    finally:
        torch.backends.cuda.enable_math_sdp(True)
