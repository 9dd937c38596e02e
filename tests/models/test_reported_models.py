"""Model and adapter folders as users of other tools reported them: read, or refused with the way out."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support import tiny
from torch import Tensor

from zoft.errors import EnvironmentProblem
from zoft.inference.session import find
from zoft.models.adapters import base_of, load_adapter
from zoft.models.load import load_tokenizer
from zoft.models.meta import build_outline, load_config
from zoft.models.storage.fetch import local_safetensors
from zoft.models.storage.safetensors import stored_tensors
from zoft.recipe.schema import ModelSection
from zoft.recipe.sections.tune import TuneSection

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n"
IDS = torch.tensor([[5, 40, 7, 99]])
Tensors = dict[str, Tensor]


def edited(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(EnvironmentProblem) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# Models


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported") / "model"
    tiny.llama().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


TOKENIZERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pointer": (lambda m: (m / "tokenizer.json").write_bytes(POINTER), "json: it is a pointer of Git"),
    "cut off": (lambda m: (m / "tokenizer.json").write_text('{"version"'), "json: not valid JSON"),
    "empty": (lambda m: (m / "tokenizer.json").write_text(""), "tokenizer.json: not valid JSON"),
    "a page instead of JSON": (
        lambda m: (m / "tokenizer_config.json").write_text("<html>"), "_config.json: not valid JSON"),
    "of a newer library": (
        lambda m: edited(m / "tokenizer.json", model={"type": "Future"}), "pip install -U tokenizers"),
    "of another class": (
        lambda m: edited(m / "tokenizer_config.json", tokenizer_class="T5Tokenizer"),
        "names the class T5Tokenizer"),
    "a config with a mark": (
        lambda m: (m / "config.json").write_bytes(b"\xef\xbb\xbf" + (m / "config.json").read_bytes()),
        "config.json: it begins with a byte order mark"),
    "a config that is a list": (lambda m: (m / "config.json").write_text("[]"), "expected an object"),
    "a type by its short name": (
        lambda m: edited(m / "config.json", dtype="bf16", torch_dtype="bf16"), "'bf16' is no type"),
    "a type by its long name": (
        lambda m: edited(m / "config.json", dtype="torch.float16"), "write bfloat16, float16 or"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_file_that_is_wrong_is_named(name: str, model: Path) -> None:
    change, said = TOKENIZERS[name]
    change(model)
    message = refused(lambda: load_tokenizer(model, ModelSection(name=str(model))))
    assert message.startswith("cannot load the tokenizer of")
    assert said in message


def outline(model: Path) -> object:
    config = load_config(ModelSection(name=str(model)))
    return build_outline(config, TuneSection(), stored=torch.float32)


CONFIGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an unknown rope": (
        lambda m: edited(m / "config.json", rope_parameters=None, rope_scaling={"type": "su"}),
        "rope type 'su' is none that transformers"),
    "a factor in quotes": (
        lambda m: edited(
            m / "config.json", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": "2"}
        ), "the rope's factor is text"),
    "code of its own": (
        lambda m: edited(
            m / "config.json", model_type="x", auto_map={"AutoConfig": "configuration_x.XConfig"}
        ), "model.trust_remote_code=true runs it"),
    "no config": (lambda m: (m / "config.json").unlink(), "there is no config.json in it"),
    "a pointer": (lambda m: (m / "config.json").write_bytes(POINTER), "git lfs pull"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_config_asks_for_is_named(name: str, model: Path) -> None:
    change, said = CONFIGS[name]
    change(model)
    assert said in refused(lambda: outline(model))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.safetensors", POINTER, "git lfs pull"),
        ("model.safetensors.index.json", b"{}", "it lacks 'weight_map'"),
        ("model.safetensors", b"<html>404 not found, nothing to see", "it is no safetensors file"),
    ],
)
def test_weights_that_are_something_else(file: str, content: bytes, said: str, model: Path) -> None:
    (model / file).write_bytes(content)
    assert said in refused(lambda: stored_tensors(model))


def test_a_folder_of_checkpoints_says_where_the_adapters_are(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    message = refused(lambda: local_safetensors(str(tmp_path), None))
    assert "checkpoint-10, checkpoint-9 in it: an adapter" in message


# Adapters


def adapter(folder: Path) -> Path:
    torch.manual_seed(1)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    with warnings.catch_warnings(action="ignore"):
        get_peft_model(tiny.llama(), config).save_pretrained(folder / "adapter")
    return folder / "adapter"


def weights(change: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return apply


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return weights(lambda found: {name.replace(old, new): t for name, t in found.items()})


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edited(folder / "adapter_config.json", **changes)


def as_bin(content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "adapter_model.safetensors").unlink()
        (folder / "adapter_model.bin").write_bytes(content)

    return apply


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched"),))


NO_PLACE = "holds weights that the model has no place for: "
ADAPTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "more layers than the model": (
        weights(lambda found: {**found, **{
            name.replace("layers.1", "layers.7"): t.clone() for name, t in found.items()
        }}), NO_PLACE + "base_model.model.model.layers.7"),
    "wrapped twice": (
        renamed("base_model.model", "base_model.model.base_model.model"), "and " + NO_PLACE),
    "of a compiled model": (renamed("model.model.", "model._orig_mod.model."), NO_PLACE),
    "of a model in parallel": (renamed("base_model.", "module.base_model."), NO_PLACE + "module."),
    "of a model that sees": (renamed("model.layers", "model.language_model.layers"), NO_PLACE),
    "numbers that are not finite": (
        weights(lambda found: {name: t / 0 for name, t in found.items()}), "that are not finite, in"),
    "a key of a newer peft": (config(use_new_math=True), "sets use_new_math, which peft"),
    "a kind of a newer peft": (config(peft_type="FUTURA"), "knows no peft_type 'FUTURA'"),
    "no kind": (config(peft_type=None), "knows no peft_type None"),
    "a rank in quotes": (config(r="4"), "r is '4', not a number"),
    "no alpha": (config(lora_alpha=None), "lora_alpha is None, not a number"),
    "an alpha of zero": (config(lora_alpha=0), "lora_alpha is 0, so the adapter changes nothing"),
    "another rank": (config(r=8), "has shape [4, 48], the model's has [8, 48]"),
    "a config cut off": (lambda a: (a / "adapter_config.json").write_text("{"), "cannot read"),
    "a config that is a list": (lambda a: (a / "adapter_config.json").write_text("[]"), "an object"),
    "a config with a mark": (
        lambda a: (a / "adapter_config.json").write_bytes(
            b"\xef\xbb\xbf" + (a / "adapter_config.json").read_bytes()
        ), "begins with a byte order mark"),
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), "holds neither adapter_model"),
    "a pointer": (lambda a: (a / "adapter_model.safetensors").write_bytes(POINTER), "git lfs pull"),
    "a pointer to a pickle": (as_bin(POINTER), "git lfs pull"),
    "a pickle with code": (as_bin(pickle.dumps(Code())), "holds more than tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_would_be_read_in_part_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change, said = ADAPTERS[name]
    folder = adapter(tmp_path)
    change(folder)
    assert said in refused(lambda: load_adapter(tiny.llama(), folder))
    assert not Path("touched").exists()


SAME: dict[str, Callable[[Path], object]] = {
    "keys of a newer peft that are off": config(new_one=None, new_two=False, new_three={}),
    "a task that it was not made for": config(task_type="SEQ_CLS"),
    "names of an older peft": renamed(".weight", ".default.weight"),
    "a dropout": config(lora_dropout=0.5, inference_mode=False),
    "modules that there are none of": config(
        target_modules=["q_proj", "v_proj", "query_key_value"]
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_what_changes_nothing_is_read(name: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    with torch.inference_mode():
        expected = load_adapter(tiny.llama(), folder)(IDS).logits
        SAME[name](folder)
        assert torch.equal(load_adapter(tiny.llama(), folder)(IDS).logits, expected)


@pytest.mark.parametrize(
    "base", ["/workspace/models/llama", "C:\\models\\llama", "x/no-such-model"]
)
def test_a_base_of_another_machine_says_where_it_is_named(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    message = refused(lambda: find(str(tmp_path), ModelSection(name="here")))
    assert f"the base that {tmp_path}/adapter_config.json names" in message


@pytest.mark.parametrize("base", [None, "", 3, ["x"]])
def test_a_base_that_is_no_name_is_refused(base: object, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    assert "does not name its base model" in refused(lambda: base_of(tmp_path))
