"""`zoft plan` as a whole: what it says, as text and as JSON, and without data, weights or a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import small, tiny

from zoft.cli.main import main
from zoft.errors import OutOfMemory
from zoft.models.adapters import attach_adapter
from zoft.planning import plan as planning
from zoft.planning.memory.footprint import Residency, footprint
from zoft.planning.plan import make_plan, stream, streamed_step
from zoft.planning.resolve import resolve
from zoft.planning.step_time import Seconds
from zoft.planning.tables import plan
from zoft.planning.workload import shape_of
from zoft.recipe.load import load_recipe
from zoft.recipe.sections.tune import TuneSection
from zoft.system.host_memory import gib

SECONDS = Seconds(block=0.2, block_update=0.01, rest=0.1, rest_update=0.02)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(planning, "calibrate", lambda *_: SECONDS)
    return small.write(tmp_path)


def test_it_names_every_item_and_other_settings(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(recipe)]) == 0
    said = capsys.readouterr().out
    for words in (
        "resident blocks", "libraries", "probe: head", "peak", "Residencies, GiB",
        "0.54 s a step", "estimated", "tune.method=lora", "Back-propagation would need",
        "That fits for all weights: use it",
    ):  # fmt: skip
        assert words in said
    tables = [line for line in said.splitlines() if not line.rstrip().endswith((".", "loss."))]
    assert max(map(len, tables)) <= 110
    assert "\x1b" not in said  # plain when it is piped


def test_as_json_it_is_numbers(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe), "train.steps=100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"]["residency"] == "device"
    items = sum(x["device"] for x in found["chosen"]["items"])
    assert found["chosen"]["device"] > items > 0
    assert found["estimated_seconds"]["run"] == pytest.approx(100 * (0.1 + 0.02 + 2 * 0.21))
    assert found["recipe"]["train"]["steps"] == 100
    assert {x["overrides"] for x in found["alternatives"]} >= {"tune.method=lora"}
    assert found["data_known"] is True


def test_a_plan_that_does_not_fit_is_printed_and_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(recipe), "memory.device_budget=100MB"]) == 5
    output = capsys.readouterr()
    assert "nothing fits" in output.out
    assert output.err.startswith("error: even streamed from the disk it needs")


def test_a_config_without_weights_or_data_is_enough(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "eval.jsonl").unlink()
    for file in (tmp_path / "model").iterdir():
        if file.name != "config.json":
            file.unlink()
    made = make_plan(str(recipe), ["data.max_length=40"])
    assert not made.shape.known
    assert made.shape.train.longest == 40
    assert made.times is not None


def test_what_is_assumed_is_said_with_its_cause(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each set for itself: one that cannot be read leaves the lengths of the other."""
    (tmp_path / "eval.jsonl").unlink()
    counted = make_plan(str(recipe), ["data.max_length=40"])
    assert list(counted.assumed) == ["eval"]
    assert counted.shape.train.number == 48
    assert counted.shape.evaluation is not None
    assert counted.shape.evaluation.longest == 40 > counted.shape.train.longest
    for file in (tmp_path / "model").glob("token*"):
        file.unlink()
    plan(str(recipe), ["data.max_length=40"])
    said = " ".join(capsys.readouterr().out.split())
    assert "assumed: data.train as long as data.max_length allows; 48 rows; tokens not" in said
    assert "holds no tokenizer" in said
    assert "eval.jsonl: no such file" in said
    assert "could not be read" not in said


@pytest.mark.parametrize("build", [tiny.llama, tiny.qwen2])
def test_a_gguf_file_is_planned_as_validate_counts_it(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it is converted: with the tokenizer that it holds, and with room for the conversion."""
    monkeypatch.setattr(planning, "calibrate", lambda *_: SECONDS)
    recipe = small.write(tmp_path, build=build)
    file = tmp_path / "model.gguf"
    assert main(["export", str(tmp_path / "model"), str(file)]) == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    changes = [f"model.name={file}", "data.max_length=200"]
    apart = make_plan(str(recipe), ["data.max_length=200"]).shape
    made = make_plan(str(recipe), changes)
    assert made.assumed == {}
    assert (made.shape.train, made.shape.evaluation) == (apart.train, apart.evaluation)
    assert made.shape.converted == file.stat().st_size
    assert "conversion of the base" in {x.name for x in made.footprint.phases}
    capsys.readouterr()
    main(["validate", str(recipe), *changes])
    assert f"ok, {gib(made.footprint.device)} at the peak, " in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()


def test_an_adapter_that_is_tuned_on_is_planned_with_its_rank_and_its_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning, "calibrate", lambda *_: SECONDS)
    recipe, theirs = small.write(tmp_path, "lora"), tmp_path / "theirs"
    model: Any = attach_adapter(
        tiny.llama(), TuneSection(method="lora", r=3, target_modules=["v_proj"]), 0
    )
    model.save_pretrained(theirs)
    template = tiny.CHAT_TEMPLATE.replace("[{{ m['role'] }}]", "It is {{ m['role'] }} who says ")
    template = template.replace("[assistant]", "It is assistant who says ")
    tiny.tokenizer(chat_template=template).save_pretrained(theirs)
    rows = [{"messages": [{"role": role, "content": "a"} for role in ("user", "assistant")]}] * 3
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.tokenizer(chat_template=tiny.CHAT_TEMPLATE).save_pretrained(tmp_path / "model")
    recipe.write_text(
        f"model: {{name: {tmp_path}/model, compute_dtype: float32}}\ndevice: cpu\n"
        f"output_dir: {tmp_path}/run\ntune: {{method: lora}}\n"
        f"data: {{train: {{path: {tmp_path}/chats.jsonl}}, format: messages}}\n"
        "train: {steps: 2, batch_size: 2}\n"
    )

    def planned(*more: str) -> dict[str, Any]:
        assert main(["plan", str(recipe), *more, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    base, tuned = planned(), planned(f"tune.adapter={theirs}")
    assert tuned["recipe"]["tune"]["r"] == 3
    assert tuned["recipe"]["tune"]["target_modules"] == ["v_proj"]
    assert main(["data", "preview", str(recipe), f"tune.adapter={theirs}"]) == 0
    assert "It is assistant who says ⟦a" in capsys.readouterr().out
    examples = [
        next(x["device"] for x in found["chosen"]["items"] if x["name"] == "examples")
        for found in (base, tuned)
    ]
    assert examples[0] < examples[1]


def test_a_gpu_that_is_not_here_is_planned_for_without_times(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["device=cuda:7", "model.residency=host", "memory.device_budget=8GiB"]
    made = make_plan(str(recipe), overrides)
    assert (made.recipe.device, made.times) == ("cuda:7", None)
    assert made.device_budget == 8 * 2**30
    assert made.host_budget is None
    assert made.footprint.host > 0
    plan(str(recipe), overrides)
    assert "not estimated: cuda:7 is not here" in capsys.readouterr().out


def test_streaming_waits_for_the_slower_of_both(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "bandwidth", lambda *_: 1e4)
    made = make_plan(str(recipe), ["model.residency=disk", "memory.device_budget=1GiB"])
    shape = made.shape
    found = stream(made.recipe, shape, footprint(made.recipe, shape, "disk"), SECONDS, 1e4)
    block = 4 * sum(w.numel for w in shape.weights if w.block == 0)
    # One paired pass fetches both blocks, the step writes them back.
    assert found.moved == pytest.approx(2 * 2 * block, rel=0.05)
    tokens = 4 * shape.train.typical
    assert found.hiding_tokens == pytest.approx(tokens * (block / 1e4) / 0.2, rel=0.05)
    assert found.free_factor == pytest.approx(found.hiding_tokens / tokens)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("residency", ["disk", "host"])
@pytest.mark.parametrize("changes", [["tune.method=full"], ["tune.method=lora"]])
def test_a_streamed_step_takes_what_the_engines_plan_takes(
    tmp_path: Path, device: str, residency: Residency, changes: list[str]
) -> None:
    """As long as computing where that is longer, as long as the disk where the disk is, and between
    these never as long as one after the other."""
    written = load_recipe(str(small.write(tmp_path, num_hidden_layers=6)), changes)
    recipe = resolve(written)
    recipe = recipe.model_copy(update={"device": device})
    shape = shape_of(recipe)
    chosen = footprint(recipe, shape, residency, (2,))
    computing = SECONDS.step(6) if changes[0].endswith("full") else SECONDS.step(6) - 6 * 0.01

    def step(speed: float) -> float:
        return streamed_step(recipe, shape, chosen, SECONDS, speed)

    assert step(1e12) == pytest.approx(computing, rel=0.02)
    moved = stream(recipe, shape, chosen, SECONDS, 1.0).moved
    one_way = residency == "disk" or changes[0].endswith("lora")
    slow = moved / computing / 100  # bytes a second: computing is a hundredth
    shortest = 100 * computing * (1 if one_way else 0.5)
    assert shortest * 0.99 < step(slow) < 1.05 * 101 * computing
    even = moved / computing
    assert computing * 0.99 < step(even) < 1.8 * computing


def test_a_low_precision_says_what_rounding_does(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(str(recipe), ["model.dtype=bfloat16", "optimizer.lr=1e-7"])
    said = capsys.readouterr().out
    assert "Rounding to bfloat16" in said
    assert "model.dtype=float32 loses nothing" in said
    plan(str(recipe))
    assert "Rounding" not in capsys.readouterr().out


def test_a_slice_that_does_not_run_leaves_the_memory(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Seconds:
        raise ValueError("num_hidden_layers\nmore")

    monkeypatch.setattr(planning, "calibrate", fails)
    made = make_plan(str(recipe))
    assert made.times is None
    assert made.untimed == "a slice of the model does not run: num_hidden_layers"
    assert made.footprint.device > 0


def test_no_room_is_an_error_only_after_the_plan(recipe: Path) -> None:
    with pytest.raises(OutOfMemory, match="may be used"):
        plan(str(recipe), ["memory.device_budget=100MB"], as_json=True)
