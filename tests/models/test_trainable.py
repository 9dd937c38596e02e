from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from transformers import PreTrainedModel

from zoft.errors import RecipeError
from zoft.models.adapters import attach_adapter, of_adapter
from zoft.models.trainable import decays, idle_towers, parameter_ids, tuned_parameters
from zoft.recipe.sections.tune import TuneSection

BUILDERS = [tiny.opt, tiny.llama, tiny.gpt2, tiny.qwen2]


@pytest.mark.parametrize("build", BUILDERS)
def test_full_tuning_takes_each_parameter_once(build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    tuned = tuned_parameters(model, TuneSection())
    assert list(tuned) == [name for name, _ in model.named_parameters()]
    assert len({id(p) for p in tuned.values()}) == len(tuned)
    assert all(tuned[name] is p for name, p in model.named_parameters())


def test_a_tied_parameter_has_its_first_name() -> None:
    tuned = tuned_parameters(tiny.qwen2(tie=True), TuneSection())
    assert "model.embed_tokens.weight" in tuned
    assert "lm_head.weight" not in tuned
    assert "lm_head.weight" in tuned_parameters(tiny.qwen2(tie=False), TuneSection())


def test_lora_tunes_the_adapter_alone() -> None:
    tune = TuneSection(method="lora", exclude=["*layers.1.*"])
    tuned = tuned_parameters(attach_adapter(tiny.llama(), tune, seed=0), tune)
    assert len(tuned) == 4  # A and B of q_proj and v_proj in layer 0
    assert all("layers.0." in name and "lora_" in name for name in tuned)


ADAPTER = {"ia3": 2 * 3, "prefix": 1, "prompt": 1}


@pytest.mark.parametrize("method", ADAPTER)
def test_an_adapter_learns_alone_and_its_factors_do_not_decay(method: Any) -> None:
    tune = TuneSection(method=method)
    model = attach_adapter(tiny.llama(), tune, seed=0)
    tuned = tuned_parameters(model, tune)
    assert len(tuned) == ADAPTER[method]
    assert all(of_adapter(name) for name in tuned)
    assert decays(model).isdisjoint(tuned) == (method == "ia3")


@pytest.mark.parametrize(
    ("only", "layers", "count"),
    [("bias", None, 2 * 8 + 1), ("bias", (1, 1), 8), ("norm", None, 10), ("norm", (0, 0), 4)],
)
def test_biases_and_norms_alone(only: Any, layers: Any, count: int) -> None:
    """OPT's block has six matrices and two norms, all with biases; a norm stands behind the blocks."""
    names = tuned_parameters(tiny.opt(), TuneSection(only=only, layers=layers))
    assert len(names) == count
    assert all(name.endswith(".bias") or "norm" in name for name in names)
    assert not layers or all(f"layers.{layers[0]}." in name for name in names)


def test_what_a_model_does_not_have_is_said() -> None:
    with pytest.raises(RecipeError, match=r"tune\.only: LlamaForCausalLM has no bias$"):
        tuned_parameters(tiny.llama(), TuneSection(only="bias"))
    with pytest.raises(RecipeError, match=r"tune\.layers: \[1, 2\], the model has blocks 0 to 1"):
        tuned_parameters(tiny.llama(), TuneSection(layers=(1, 2)))


def test_towers_of_images_are_left_out_unless_named() -> None:
    def tuned_of(**changes: Any) -> set[str]:
        return set(tuned_parameters(tiny.with_vision(), TuneSection(**changes)))

    decoder = {n for n, _ in tiny.with_vision().named_parameters() if "language_model" in n}
    assert tuned_of() == decoder
    assert tuned_of(only="norm") == {name for name in decoder if "norm" in name}
    assert tuned_of(exclude=["*vision*"]) == decoder  # as recipes had to say
    assert tuned_of(include=["*.q_proj.*"]) == {name for name in decoder if ".q_proj." in name}
    assert all("vision_tower" in name for name in tuned_of(include=["*vision_tower*"]))
    assert tuned_of(layers=(1, 1)) == {name for name in decoder if ".layers.1." in name}
    towers = ["model.vision_tower", "model.multi_modal_projector"]
    assert idle_towers(tiny.with_vision(), TuneSection()) == towers
    named = TuneSection(include=["*", "*vision_tower*"])
    assert idle_towers(tiny.with_vision(), named) == ["model.multi_modal_projector"]
    assert idle_towers(tiny.llama(), TuneSection()) == []


@pytest.mark.parametrize("words", ["auto", "all-linear", ["q_proj", "v_proj"]])
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_adapters_stand_in_the_decoder_alone(method: Any, words: Any) -> None:
    tune = TuneSection(method=method, target_modules=words, exclude=["*vision*"])
    model = attach_adapter(tiny.with_vision(), tune, seed=0)
    tuned = tuned_parameters(model, tune)
    assert tuned
    assert all(".language_model." in name for name in tuned)
    assert tuned.keys() == {name for name, _ in model.named_parameters() if of_adapter(name)}
    assert idle_towers(model, tune) == ["model.vision_tower", "model.multi_modal_projector"]


def test_an_adapter_in_a_tower_has_to_be_named() -> None:
    tune = TuneSection(method="lora", target_modules=["out_proj"])  # the decoder's is called o_proj
    model = attach_adapter(tiny.with_vision(), tune, seed=0)
    assert all("vision_tower" in name for name in tuned_parameters(model, tune))
    assert idle_towers(model, tune) == ["model.multi_modal_projector"]


def test_globs_choose() -> None:
    tune = TuneSection(include=["*.self_attn.*", "*norm*"], exclude=["*.k_proj.*"])
    names = set(tuned_parameters(tiny.llama(), tune))
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert "model.norm.weight" in names
    assert not any("k_proj" in name or "mlp" in name for name in names)


def test_globs_that_match_nothing_are_all_named() -> None:
    tune = TuneSection(include=["*.self_attention.q_proj*", "*"], exclude=["lm_haed.weight"])
    with pytest.raises(RecipeError) as caught:
        tuned_parameters(tiny.llama(), tune)
    first, second = str(caught.value).splitlines()
    assert first.startswith("tune.include: '*.self_attention.q_proj*'")
    assert "self_attn.q_proj.weight" in first
    assert second.startswith("tune.exclude: 'lm_haed.weight'")
    assert "lm_head.weight" in second
    with pytest.raises(RecipeError, match="leave none"):
        tuned_parameters(tiny.llama(), TuneSection(exclude=["*"]))


def test_ids_are_checksums_of_the_names() -> None:
    assert parameter_ids(["b", "a"]) == {"b": zlib.crc32(b"b"), "a": zlib.crc32(b"a")}
    assert list(parameter_ids(["b", "a"])) == ["b", "a"]


def test_a_collision_moves_the_later_name() -> None:
    pair = ["plumless", "buckeroo"]  # the classical pair of words with one CRC-32
    number = zlib.crc32(b"buckeroo")
    assert number == zlib.crc32(b"plumless")
    assert parameter_ids(pair) == {"plumless": number + 1, "buckeroo": number}


@given(st.lists(st.text(max_size=20), unique=True), st.randoms())
def test_ids_are_distinct_words_in_any_order(names: list[str], random: object) -> None:
    ids = parameter_ids(names)
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert parameter_ids(shuffled) == ids
    assert len(set(ids.values())) == len(names)
    assert all(0 <= number < 2**32 for number in ids.values())


@pytest.mark.parametrize("build", BUILDERS)
def test_norms_and_biases_do_not_decay(build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    decaying = decays(model)
    assert all(not name.endswith("bias") and "norm" not in name for name in decaying)
    matrices = {name for name, p in model.named_parameters() if p.ndim == 2}
    assert decaying == matrices
