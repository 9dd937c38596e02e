"""One model of adapter and base: what it computes, what it leaves behind, what is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, get_peft_model
from support import small, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from zoft.cli.main import main
from zoft.errors import EnvironmentProblem, RecipeError
from zoft.models.adapters import attach_adapter, load_adapter
from zoft.recipe.sections.tune import TuneSection
from zoft.sharing import merge as merging
from zoft.sharing.merge import merge
from zoft.training.run import train

# peft 0.21 reads a property that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
IDS = torch.tensor([[5, 40, 7, 99, 23, 200, 31]])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a small LoRA run in run/."""
    folder = tmp_path_factory.mktemp("merge")
    recipe = small.write(folder, "lora", tie=True)
    train(str(recipe), ["train.steps=3", "optimizer.lr=0.1", "checkpoint.every=2"])
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny.llama().save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter(base: Path, config: PeftConfig | None = None, scale: float = 1.0) -> Path:
    """An adapter whose every weight is noise."""
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = (
        get_peft_model(model, config)
        if config
        else attach_adapter(model, TuneSection(method="lora"), seed=0)
    )
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "ia3" in name:
            parameter.data = 1 + scale * torch.randn_like(parameter)
    adapted.save_pretrained(base.parent / "adapter")
    return base.parent / "adapter"


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def loaded(folder: Path) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    return model.eval()


def together(base: Path, adapter: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(loaded(base), adapter).eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(IDS).logits
    return logits


def test_a_run_becomes_one_model(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(finished / "run"), str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "prompts of data.eval" in out
    assert "apart in float32 (allowed: 0.0001)" in out
    assert left(tmp_path) == {"out"}
    model = loaded(tmp_path / "out")
    assert model.config.use_cache
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.inference_mode():
        logits = model(IDS).logits
    expected = together(finished / "model", finished / "run/final")
    assert (logits - expected).abs().max() <= 1e-4
    plain = loaded(finished / "model")
    assert (plain(IDS).logits - expected).abs().max() > 1e-2  # the adapter does something
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("It was").input_ids == tiny.tokenizer()("It was").input_ids


def test_transformers_alone_loads_it_in_a_fresh_process(finished: Path, tmp_path: Path) -> None:
    merge(str(finished / "run" / "checkpoint-000002"), str(tmp_path / "out"), "bfloat16")
    script = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        "model, text = M.from_pretrained(sys.argv[1]), T.from_pretrained(sys.argv[1])('It was')\n"
        "print(model.dtype, model(**{'input_ids': __import__('torch').tensor([text.input_ids])})"
        ".logits.isfinite().all().item(), 'zoft' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout == "torch.bfloat16 True False\n"


def test_rounding_is_said_apart(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(str(adapter(base)), str(tmp_path / "out"), "float16") <= 1e-4
    assert "rounding to float16 moves them by up to" in capsys.readouterr().out
    assert left(tmp_path) == {"base", "adapter", "out"}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float16


def test_other_adapters_of_peft(base: Path, tmp_path: Path) -> None:
    config = IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    )
    merge(str(adapter(base, config)), str(tmp_path / "out"))
    merged = loaded(tmp_path / "out")
    assert (merged(IDS).logits - together(base, tmp_path / "adapter")).abs().max() <= 1e-4


def test_biases_that_the_base_has_no_place_for_are_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], lora_bias=True)
    with warnings.catch_warnings(action="ignore"):
        where = adapter(base, config)
    capsys.readouterr()
    assert main(["merge", str(where), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be merged: it has biases (lora_bias)" in line


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
    ],
    ids=str,
)
def test_a_table_that_the_head_shares_is_untied(settings: dict[str, Any], tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny.llama(tie=True).save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    with warnings.catch_warnings(action="ignore"):
        where = adapter(base, LoraConfig(task_type="CAUSAL_LM", **settings))
        expected = together(base, where)
    merge(str(where), str(tmp_path / "out"))
    merged = loaded(tmp_path / "out")
    assert not merged.config.tie_word_embeddings
    assert torch.allclose(merged(IDS).logits, expected, atol=1e-4)  # relative, too: some are large
    assert (loaded(base)(IDS).logits - expected).abs().max() > 1e-2


def test_what_stands_before_the_prompt_is_no_change_of_weights(base: Path, tmp_path: Path) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(RecipeError, match="prefix_tuning stands before the prompt"):
        merge(str(adapter(base, config)), str(tmp_path / "out"))
    assert left(tmp_path) == {"base", "adapter"}


def test_a_model_that_computes_something_else_is_not_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = adapter(base)
    monkeypatch.setattr(merging, "_added", lambda adapted, _: adapted.unload())
    assert main(["merge", str(where), str(tmp_path / "out")]) == 1
    assert "nothing was kept" in capsys.readouterr().err
    assert left(tmp_path) == {"base", "adapter"}


def test_an_adapter_that_is_not_finite_is_refused(base: Path, tmp_path: Path) -> None:
    where = adapter(base, scale=float("nan"))
    with pytest.raises(EnvironmentProblem, match="numbers that are not finite, in base_model"):
        merge(str(where), str(tmp_path / "out"))
    assert left(tmp_path) == {"base", "adapter"}


def test_codes_are_named(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An adapter that was tuned on a quantised base is merged onto the base itself."""
    recipe = merging.recipe_of(finished / "run")
    assert recipe is not None
    model = recipe.model.model_copy(update={"quantization": "int8"})
    quantized = recipe.model_copy(update={"model": model})
    monkeypatch.setattr(merging, "recipe_of", lambda _: quantized)
    merge(str(finished / "run"), str(tmp_path / "out"))
    assert "note: the adapter was tuned on int8 codes" in capsys.readouterr().out


def test_refusals(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = adapter(base)
    (tmp_path / "there").mkdir()
    (tmp_path / "trainer").mkdir()
    shutil.copytree(where, tmp_path / "trainer" / "checkpoint-5")
    for arguments, code, answer in (
        (
            [str(where), str(tmp_path / "there")],
            2,
            f"{tmp_path}/there exists; name one that does not",
        ),
        (
            [str(base), str(tmp_path / "out")],
            2,
            f"nothing to merge: {base} is already a whole model",
        ),
        (
            [str(tmp_path / "trainer"), str(tmp_path / "out")],
            2,
            f"nothing to merge: {tmp_path}/trainer holds no adapter; checkpoint-5 in it: an adapter",
        ),
        (
            [str(tmp_path / "no"), "out"],
            4,
            f"there is no run, checkpoint or adapter folder {tmp_path}/no",
        ),
    ):
        capsys.readouterr()
        assert main(["merge", *arguments]) == code
        assert capsys.readouterr().err == f"error: {answer}\n"
    assert left(tmp_path) == {"base", "adapter", "there", "trainer"}


def test_a_run_that_tuned_all_weights_needs_no_merging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final/config.json").touch()
    monkeypatch.setattr(merging, "weights_of", lambda _: str(tmp_path / "final"))
    with pytest.raises(RecipeError, match="final is already a whole model"):
        merge(str(tmp_path), str(tmp_path / "out"))


def test_memory_is_asked_for_first(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(merging, "free_host_bytes", lambda: 1000)
    assert main(["merge", str(adapter(base)), str(tmp_path / "out")]) == 5
    assert "in float32" in capsys.readouterr().err


def test_the_adapter_itself_loads_with_peft(finished: Path) -> None:
    model = load_adapter(
        AutoModelForCausalLM.from_pretrained(finished / "model"), finished / "run/final"
    )
    with torch.inference_mode():
        difference = model(IDS).logits - together(finished / "model", finished / "run/final")
    assert difference.abs().max() == 0


def test_rounding_of_the_passes_is_told_from_a_wrong_model(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zoft.sharing.merge.apart", lambda *_: 2e-4)  # as in a deep model
    assert main(["merge", str(finished / "run"), str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    exact = re.search(r"and (\S+) in float64: the rest is rounding", out)
    assert exact is not None
    assert 0 < float(exact[1]) < 1e-5  # the merged weights' own rounding
    model = loaded(tmp_path / "out")
    expected = together(finished / "model", finished / "run/final")
    with torch.inference_mode():
        assert (model(IDS).logits - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("config", ["{", "[]", '{"peft_type": "LORE"}'])
def test_an_adapter_whose_config_is_broken_is_one_line(tmp_path: Path, config: str) -> None:
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(EnvironmentProblem, match="cannot read the adapter") as caught:
        merge(str(tmp_path), str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
