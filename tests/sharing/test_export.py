"""GGUF files: what transformers reads back from them, and what is left to llama.cpp's converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from support import tiny
from tokenizers import Regex, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from zoft.cli.main import main
from zoft.errors import RecipeError
from zoft.models.adapters import attach_adapter
from zoft.recipe.sections.tune import TuneSection
from zoft.sharing import export as exporting
from zoft.sharing.gguf.tokenizer import words_named
from zoft.sharing.gguf.writer import interleaved, llama_cpp_name

ROPE = {"rope_type": "default", "rope_theta": 500.0}
IDS = torch.tensor([[5, 40, 7, 99, 23, 200, 31]])


def mistral() -> PreTrainedModel:
    config = MistralConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return MistralForCausalLM(config)


BUILD = {
    "llama": tiny.llama,
    "llama-tied": lambda: tiny.llama(tie=True),
    "llama-rope": lambda: tiny.llama(rope_parameters=ROPE),
    "mistral": mistral,
    "qwen2": tiny.qwen2,
}


def saved(folder: Path, model: PreTrainedModel, **tokenizer: Any) -> Path:
    for parameter in model.parameters():  # biases and norms begin at 0 and 1: that hides mistakes
        if parameter.ndim == 1:
            parameter.data += torch.linspace(-0.1, 0.1, len(parameter))
    model.save_pretrained(folder)
    tiny.tokenizer(**tokenizer).save_pretrained(folder)
    return folder


def read_back(file: Path) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    return model.eval()


@pytest.mark.parametrize("family", BUILD)
def test_a_file_computes_what_the_model_does(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "model", BUILD[family](), chat_template=tiny.CHAT_TEMPLATE)
    capsys.readouterr()
    assert main(["export", str(folder), str(tmp_path / "out.gguf")]) == 0
    out, err = capsys.readouterr()
    assert "apart, computed in float32" in out
    assert err == ""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        expected = model(IDS).logits
        assert (read_back(tmp_path / "out.gguf")(IDS).logits - expected).abs().max() <= 1e-4
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", tiny.llama(), chat_template=tiny.CHAT_TEMPLATE)
    exporting.export(str(folder), str(tmp_path / "out.gguf"))
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="out.gguf")
    own = tiny.tokenizer()
    text = "It was great. 12 plus 345, naïve\n\n"
    assert (
        read(text, add_special_tokens=False)["input_ids"]
        == (own(text, add_special_tokens=False)["input_ids"])
    )
    assert (read.bos_token_id, read.eos_token_id) == (tiny.BOS_ID, tiny.EOS_ID)
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.chat_template"].contents() == tiny.CHAT_TEMPLATE
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == tiny.VOCABULARY
    assert tokens[0] == tiny.BOS
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert (kinds[0], kinds[3], kinds[-1]) == (3, 1, 5)  # control, normal, unused


def test_templates_that_have_names_come_along(tmp_path: Path) -> None:
    templates = {"default": tiny.CHAT_TEMPLATE, "tool_use": "{{ tools }}"}
    folder = saved(tmp_path / "model", tiny.llama())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(folder)
    fields = gguf.GGUFReader(exporting.export(str(folder), str(tmp_path / "a.gguf"))).fields
    assert fields["tokenizer.chat_template"].contents() == tiny.CHAT_TEMPLATE
    assert fields["tokenizer.chat_template.tool_use"].contents() == "{{ tools }}"


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_smaller_types(kind: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", tiny.qwen2())
    assert main(["export", str(folder), str(tmp_path / "o.gguf"), "--type", kind]) == 0
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "o.gguf").tensors}
    assert tensors["blk.0.attn_q.weight"].tensor_type.name == kind.upper()
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert (tmp_path / "o.gguf").stat().st_size < (folder / "model.safetensors").stat().st_size


def test_an_adapter_is_merged_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = saved(tmp_path / "model", tiny.llama())
    adapted = attach_adapter(
        AutoModelForCausalLM.from_pretrained(base), TuneSection(method="lora"), seed=0
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    assert exporting.export("adapter") == Path("adapter-f32.gguf")
    with torch.inference_mode():
        difference = read_back(tmp_path / "adapter-f32.gguf")(IDS).logits - adapted(IDS).logits
    assert difference.abs().max() <= 1e-4


def test_what_llama_cpp_does_not_know_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "model", tiny.opt())
    capsys.readouterr()
    assert main(["export", str(folder), str(tmp_path / "o.gguf")]) == 2
    err = capsys.readouterr().err
    assert err == (
        "error: llama.cpp has no opt models, so there is no GGUF file of this one; "
        f"{folder} is a folder that transformers and vLLM load\n"
    )
    assert not (tmp_path / "o.gguf").exists()


def test_other_families_are_handed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "model", tiny.gpt2())
    capsys.readouterr()
    assert main(["export", str(folder), str(tmp_path / "o.gguf"), "--type", "q8_0"]) == 2
    out, err = capsys.readouterr()
    command = f"convert_hf_to_gguf.py {folder} --outfile {tmp_path}/o.gguf --outtype q8_0\n"
    assert command in out
    assert err == "error: no file was written: zoft itself writes llama, mistral, qwen2, not gpt2\n"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"attention_bias": True}, "it has biases"),
        ({"hidden_act": "gelu"}, "its activation is gelu"),
        (
            {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 2.0}},
            "its rotary positions are scaled (linear)",
        ),
    ],
)
def test_what_cannot_be_read_back_is_handed_over(
    change: dict[str, Any], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "model", tiny.llama(**change))
    assert main(["export", str(folder), str(tmp_path / "o.gguf")]) == 2
    assert f"error: no file was written: {why}" in capsys.readouterr().err


def test_a_tokenizer_without_a_name_is_handed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "model", tiny.llama())
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert main(["export", str(folder), str(tmp_path / "o.gguf")]) == 2
    assert "cuts text into words in a way" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "model", tiny.llama())
    monkeypatch.setattr("zoft.sharing.gguf.writer.interleaved", lambda weight, _: weight)
    assert main(["export", str(folder), str(tmp_path / "o.gguf")]) == 1
    assert "nothing was kept" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_file_that_cannot_be_read_back_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "model", tiny.llama())

    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no such tensor\nand more")

    capsys.readouterr()
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    assert main(["export", str(folder), str(tmp_path / "o.gguf")]) == 1
    assert capsys.readouterr().err == "error: the file cannot be read back: no such tensor\n"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "llama"), ("qwen2", "qwen2"), ("gpt_neox", "gptneox"), ("gemma2", "gemma2"),
        ("cohere", "command-r"), ("phi", "phi2"), ("opt", None), ("gpt_neo", None), ("xglm", None),
    ],
)  # fmt: skip
def test_families(model_type: str, name: str | None) -> None:
    assert llama_cpp_name(model_type) == name


def test_heads_are_interleaved() -> None:
    rows = torch.arange(8.0)  # two heads of four: halves (0 1 | 2 3) and (4 5 | 6 7)
    assert interleaved(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleaved(rows[:, None], 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_words_are_named_by_how_they_are_cut() -> None:
    llama3 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cuts = {
        "gpt-2": words,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words]),
        "llama-bpe": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(llama3), "isolated"), bytes_only]
        ),
        "qwen2": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(llama3.replace("{1,3}", "")), "isolated"), bytes_only]
        ),
    }
    for name, cut in cuts.items():
        tokenizer = tiny.tokenizer()
        tokenizer.backend_tokenizer.pre_tokenizer = cut
        assert words_named(json.loads(tokenizer.backend_tokenizer.to_str())) == name
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(RecipeError, match="no name for"):
        words_named(json.loads(tokenizer.backend_tokenizer.to_str()))
