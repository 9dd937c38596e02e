"""`zoft doctor MODEL`: what works for a model, told from its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import small, tiny
from support.decoders.configs import tiny_config

from zoft.cli.main import main

Lines = dict[str, list[str]]


def told(folder: Path, capsys: pytest.CaptureFixture[str]) -> Lines:
    """The lines by what they are about."""
    assert main(["doctor", str(folder)]) == 0
    lines: Lines = {}
    for line in capsys.readouterr().out.splitlines():
        lines.setdefault(line[:16].strip(), []).append(line[17:])
    return lines


def config_of(name: str, folder: Path) -> Path:
    """A folder that holds nothing but the config."""
    config: Any = tiny_config(name)
    config.save_pretrained(folder)
    return folder


def test_a_plain_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(config_of("llama", tmp_path), capsys)
    assert lines["full tuning"] == ["160,320 weights in 39 tensors"]
    assert lines["LoRA auto"] == ["q_proj, v_proj (8 modules)"]
    assert lines["probes"] == [
        "without copies of weights: 29 Linear, 1 Embedding",
        "directions: rank-1 for 30 matrices, dense for 9 others",
    ]
    assert lines["streamed"] == ["4 blocks of model.layers, the largest 0.00 GiB in bfloat16"]
    assert lines["checkpoint"] == ["as in the model"]
    assert lines["tied"] == ["no"]
    assert "not tuned" not in lines


def test_experts_that_lie_apart_in_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(config_of("mixtral", tmp_path), capsys)
    assert "4 experts" in lines["probes"][0]
    assert "8 tensors of experts" in lines["probes"][-1]
    assert lines["checkpoint"] == ["175 tensors in the files, 39 in the model: read where they lie"]


def test_a_tower_for_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(config_of("gemma3", tmp_path), capsys)
    [towers] = lines["not tuned"]
    assert towers.startswith("model.vision_tower, model.multi_modal_projector")
    assert not any("vision" in line for line in lines["LoRA auto"])


def test_what_is_refused_is_told_with_its_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [full] = told(config_of("bart", tmp_path), capsys)["full tuning"]
    assert full.startswith("no: no forward pass reads")
    assert 'tune.exclude=["*.encoder_attn.*"' in full


def test_a_quantised_checkpoint_is_not_streamed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.llama().config
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    config.save_pretrained(tmp_path)
    assert told(tmp_path, capsys)["streamed"] == ["no: its checkpoint is quantised"]


def test_no_decoder_is_exit_code_4_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(tmp_path / "nothing")]) == 4
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_validate_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small.write(tmp_path)
    lines = told(tmp_path / "model", capsys)
    assert main(["validate", str(recipe)]) == 0
    out = capsys.readouterr().out
    for what in ("full tuning", "LoRA auto", "probes", "streamed"):
        for said in lines[what]:
            assert f"            {what}: {said}\n" in out
