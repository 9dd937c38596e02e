from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from zoft.errors import EnvironmentProblem
from zoft.models.meta import load_config
from zoft.models.storage import fetch
from zoft.models.storage.fetch import (
    cache_folder,
    local_folder,
    local_safetensors,
    make_cache_folder,
)
from zoft.recipe.schema import ModelSection


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def bin_folder(folder: Path, model: PreTrainedModel, shards: int = 1, zipped: bool = True) -> Path:
    """A checkpoint as they were written before safetensors."""
    model.config.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    state = model.state_dict()
    names = list(state)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        some = {name: state[name] for name in names[shard::shards]}
        end = ".bin" if shards == 1 else f"-{shard + 1:05d}-of-{shards:05d}.bin"
        file = f"pytorch_model{end}"
        torch.save(some, folder / file, _use_new_zipfile_serialization=zipped)
        weight_map.update(dict.fromkeys(some, file))
    if shards > 1:
        index = folder / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def same(folder: Path, model: PreTrainedModel) -> bool:
    loaded = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    theirs = loaded.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


def test_safetensors_are_used_in_place(tmp_path: Path) -> None:
    tiny.opt().save_pretrained(tmp_path / "m")
    assert local_safetensors(str(tmp_path / "m"), None) == tmp_path / "m"
    assert not cache_folder().exists()


@pytest.mark.parametrize(
    ("build", "shards", "zipped"),
    [(tiny.opt, 1, True), (tiny.opt, 3, True), (tiny.gpt2, 1, False), (tiny.qwen2, 2, False)],
)
def test_bin_checkpoints_become_safetensors(
    tmp_path: Path, build: Callable[[], PreTrainedModel], shards: int, zipped: bool
) -> None:
    source = bin_folder(tmp_path / "m", build(), shards, zipped)
    converted = local_safetensors(str(source), None)
    assert converted.parent == cache_folder()
    assert not list(converted.glob("*.bin*"))
    assert same(converted, build())
    assert AutoTokenizer.from_pretrained(converted)("It was").input_ids[0] == tiny.BOS_ID
    assert [path.name for path in cache_folder().glob(".*.partial")] == []


def test_a_conversion_is_made_once_and_follows_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = bin_folder(tmp_path / "m", tiny.opt(seed=0))
    first = local_safetensors(str(source), None)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: pytest.fail("converted again"))
        assert local_safetensors(str(source), None) == first
    bin_folder(source, tiny.opt(seed=1))
    second = local_safetensors(str(source), None)
    assert second != first
    assert same(second, tiny.opt(seed=1))


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    class Mine:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "owned",))

    source = bin_folder(tmp_path / "m", tiny.opt())
    (source / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Mine()}, protocol=2))
    with pytest.raises(EnvironmentProblem, match="more than tensors"):
        local_safetensors(str(source), None)
    assert not (tmp_path / "owned").exists()
    assert [path for path in cache_folder().iterdir() if path.is_dir()] == []


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    source = bin_folder(tmp_path / "m", tiny.opt(), shards=2)
    (source / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(EnvironmentProblem, match=r"lacks pytorch_model-00002-of-00002\.bin"):
        local_safetensors(str(source), None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no model folder"),
        ("/nowhere/at/all", "no model folder"),
        ("nowhere.gguf", "no file"),
        ("two words", "nor a Hub id"),
        ("somebody/some-model", "out of reach"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(EnvironmentProblem, match=message) as caught:
        local_safetensors(name, None)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="holds neither"):
        local_safetensors(str(tmp_path), None)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(EnvironmentProblem, match="is an adapter"):
        local_safetensors(str(tmp_path), None)


@pytest.mark.parametrize("name", ["gpt2", "somebody/some-model"])
def test_a_folder_that_hides_a_model_of_the_hub_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvironmentProblem, match="the folder of that name here hides it"):
        local_safetensors(name, None)


def test_a_cache_that_cannot_be_made_says_which_variable_names_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(EnvironmentProblem, match=r"cannot be made .*set XDG_CACHE_HOME"):
        make_cache_folder()


def gguf_file(path: Path, model: PreTrainedModel) -> None:
    """A llama in float32 with the tokens of tiny.tokenizer(), as llama.cpp would write it."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    core = json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(core["vocab"], key=core["vocab"].__getitem__)
    tokens += [f"<unused{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(merge) for merge in core["merges"]])
    writer.add_bos_token_id(tiny.BOS_ID)
    writer.add_eos_token_id(tiny.EOS_ID)
    writer.add_pad_token_id(tiny.PAD_ID)
    writer.add_chat_template(tiny.CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for module, count in heads.items():
            if module in name:  # llama.cpp keeps the two rotary halves of a head interleaved
                rows = weight.reshape(count, 2, -1, weight.shape[1])
                weight = rows.swapaxes(1, 2).reshape(weight.shape)
        target = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(target, np.ascontiguousarray(weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_becomes_a_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = tiny.llama(), tmp_path / "tiny.gguf"
    gguf_file(file, model)
    capsys.readouterr()
    folder = local_safetensors(str(file), None)
    said = capsys.readouterr()
    assert said.out == f"converting {file} to safetensors, once (into {cache_folder()}) ...\n"
    assert said.err == ""
    assert same(folder, model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (
        tokenizer(" It was", add_special_tokens=False).input_ids
        == tiny.tokenizer()(" It was", add_special_tokens=False).input_ids
    )
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    assert (folder / "generation_config.json").is_file()
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("again")
    )
    elsewhere = file.rename(tmp_path / "sub.gguf").rename(tmp_path / "tiny.gguf")
    assert local_safetensors(str(elsewhere), None) == folder


def test_what_is_here_already_is_found_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "tiny.gguf"
    gguf_file(file, tiny.llama())
    config = load_config(ModelSection(name=str(file)))  # from the file's own header
    assert local_folder(str(file)) is None
    assert not (tmp_path / "cache").exists()
    converted = local_safetensors(str(file), None, say=lambda _: None)
    assert local_folder(str(file)) == converted
    assert load_config(ModelSection(name=str(file))).hidden_size == config.hidden_size == 48
    assert local_folder(str(tmp_path)) == tmp_path
    assert local_folder("some/model-of-the-hub") is None


def test_whatever_breaks_a_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> str:
        raise TimeoutError("the proxy does not answer\nand more")

    monkeypatch.setattr(fetch, "snapshot_download", broken)
    with pytest.raises(EnvironmentProblem, match=r"cannot fetch some/model: the proxy .* answer$"):
        local_safetensors("some/model", None)


def test_a_damaged_gguf_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EnvironmentProblem, match=r"cannot convert .*bad\.gguf") as caught:
        local_safetensors(str(tmp_path / "bad.gguf"), None)
    assert "\n" not in str(caught.value)
    assert [path for path in cache_folder().iterdir() if path.is_dir()] == []
