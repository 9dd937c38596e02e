"""scripts/make_model.py, with shapes made small."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from support import script, tiny

from zoft.models.load import load_model, load_tokenizer, require_causal
from zoft.recipe.schema import ModelSection

make_model = script("make_model")
SMALL = ["hidden_size=64", "num_hidden_layers=2", "num_attention_heads=4", "vocab_size=300"]
LLAMA = [*SMALL, "intermediate_size=96", "num_key_value_heads=2"]
CHANGES = {
    "llama-7b": LLAMA,
    "llama-3-8b": [*LLAMA, "bos_token_id=0", "eos_token_id=1"],
    "opt-1.3b": [*SMALL, "word_embed_proj_dim=64", "ffn_dim=96"],
}


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", CHANGES)
def test_a_model_that_loads_and_computes(tmp_path: Path, shape: str, dtype: str) -> None:
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")
    folder = tmp_path / "models" / "one"
    asked = [shape, str(folder), *CHANGES[shape], "--dtype", dtype]
    assert make_model.main([*asked, "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    section = ModelSection(name=str(folder))
    kept = getattr(torch, dtype)
    model = load_model(folder, section, dtype=kept, device="cpu").model
    require_causal(shape, model)
    ids = torch.tensor([load_tokenizer(folder, section)("It was great").input_ids])
    with torch.inference_mode():
        assert model(ids).logits.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == kept
        if parameter.dim() == 2:
            assert abs(parameter.float().std() - 0.02) < 0.001, name
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name


def test_the_seed_makes_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_model, "PIECE", 1000)
    monkeypatch.setattr(make_model, "SHARD_BYTES", 100_000)
    for name, seed in (("one", "0"), ("two", "0"), ("other", "1")):
        assert make_model.main(["llama-7b", str(tmp_path / name), *LLAMA, "--seed", seed]) == 0
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert hashes(tmp_path / "one") != hashes(tmp_path / "other")
    assert (tmp_path / "one" / "model.safetensors.index.json").exists()


def test_what_cannot_be_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    asked = ["opt-1.3b", str(tmp_path / "model"), *CHANGES["opt-1.3b"]]
    assert make_model.main([*asked, "vocab_size=100", "--tokenizer", str(tmp_path)]) == 4
    assert capsys.readouterr().err.startswith("error: the tokenizer of")
    assert make_model.main(asked) == 4  # the folder is there
    assert "exists" in capsys.readouterr().err
    assert make_model.main([*asked[:1], str(tmp_path / "x"), "hidden_size=8000000"]) == 4
    assert "needs" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        make_model.main([*asked, "nonsense"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("shape", "weights"),
    [("llama-7b", 6_738_415_616), ("llama-3-8b", 8_030_261_248), ("opt-1.3b", 1_315_758_080)],
)
def test_the_shapes_are_those_of_the_models(shape: str, weights: int) -> None:
    config = make_model.AutoConfig.for_model(**make_model.SHAPES[shape])
    model = make_model.model_on_meta(config, torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == weights
