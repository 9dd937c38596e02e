from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.recipes import of_tiny_llama as recipe

from zoft.planning.memory.count import ALIGN
from zoft.planning.memory.footprint import (
    CHECKS,
    CUDA_CONTEXT,
    CUDA_HOST,
    Footprint,
    Item,
    footprint,
)
from zoft.planning.placement import choose
from zoft.planning.workload import Shape, shape_of
from zoft.recipe.resolved import Resolved
from zoft.system.host_memory import KEPT_KERNELS
from zoft.system.process_size import KERNEL

WEIGHTS = {w: sum(p.numel() for p in tiny.llama().parameters()) * 4 for w in ("float32",)}
BLOCK = sum(p.numel() for p in tiny.llama().model.layers[0].parameters()) * 4
REST = WEIGHTS["float32"] - 2 * BLOCK


def planned(folder: Path, **sections: Any) -> tuple[Resolved, Shape]:
    made = recipe(folder, **sections)
    return made, shape_of(made)


def item(found: Footprint, name: str) -> Item:
    return next((x for x in found.items if x.name == name), Item(name))


def on_a_gpu(recipe: Resolved) -> Resolved:
    return recipe.model_copy(update={"device": "cuda:0"})


def test_on_the_device_all_weights_are_there_once(tmp_path: Path) -> None:
    found = footprint(*planned(tmp_path))
    assert item(found, "embeddings, norm, head").device == REST
    assert item(found, "resident blocks").device == 2 * BLOCK
    assert item(found, "slots for streamed blocks").device == 0
    assert found.resident == (0, 1)
    assert found.host == 0
    held = sum(x.device for x in found.items)
    assert found.device == held + max(x.device for x in found.phases)


def test_frozen_weights_lie_in_the_type_that_is_computed_in(tmp_path: Path) -> None:
    half = {"model": {"compute_dtype": "bfloat16"}}
    full = footprint(*planned(tmp_path, **half))
    lora = footprint(*planned(tmp_path, **half, tune={"method": "lora"}))
    assert item(full, "resident blocks").device == 2 * BLOCK
    assert item(lora, "resident blocks").device == BLOCK
    assert item(lora, "adapter").device > 0


def test_moments_are_eight_bytes_a_tuned_weight(tmp_path: Path) -> None:
    found = footprint(*planned(tmp_path, optimizer={"moments": "full"}))
    assert item(found, "moments").device == 2 * WEIGHTS["float32"]
    assert item(footprint(*planned(tmp_path)), "moments").device == 0


@pytest.mark.parametrize(("method", "slots"), [("full", 2), ("lora", 2)])
def test_streamed_blocks_wait_on_the_host_in_arenas(
    tmp_path: Path, method: str, slots: int
) -> None:
    made, shape = planned(tmp_path, tune={"method": method})
    found = footprint(on_a_gpu(made), shape, "host")
    arena = sum(
        -(-w.numel * 4 // ALIGN) * ALIGN for w in shape.weights if w.block == 0 and not w.adapter
    )
    assert found.slots == slots  # there are only two
    assert item(found, "streamed blocks").host == 2 * arena
    assert item(found, "slots for streamed blocks").device == slots * arena
    assert item(found, "resident blocks").device == 0


def test_three_slots_where_blocks_are_written_back(tmp_path: Path) -> None:
    config = tiny.llama().config
    config.num_hidden_layers = 5
    for method, slots in (("full", 3), ("lora", 2)):
        made = recipe(tmp_path, tune={"method": method})
        config.save_pretrained(tmp_path)
        found = footprint(on_a_gpu(made), shape_of(made), "host", (0,))
        assert (found.slots, found.resident) == (slots, (0,))


def test_full_moments_travel_with_their_block(tmp_path: Path) -> None:
    made, shape = planned(tmp_path, optimizer={"moments": "full"})
    found = footprint(on_a_gpu(made), shape, "host")
    assert item(found, "moments").device == 2 * REST
    assert item(found, "streamed blocks").host == pytest.approx(6 * BLOCK, rel=0.02)


def test_the_disk_has_a_working_copy_only_of_what_learns(tmp_path: Path) -> None:
    made, shape = planned(tmp_path)
    full = footprint(on_a_gpu(made), shape, "disk")
    assert item(full, "streamed blocks").disk == pytest.approx(2 * BLOCK, rel=0.02)
    assert item(full, "staging").host > 0
    made, shape = planned(tmp_path, tune={"method": "lora"})
    assert item(footprint(made, shape, "disk"), "streamed blocks").disk == 0
    assert item(footprint(made, shape, "disk"), "staging").device == 0  # read into the slots


def test_on_a_cpu_the_device_is_the_host(tmp_path: Path) -> None:
    made, shape = planned(tmp_path)
    cpu, gpu = footprint(made, shape), footprint(on_a_gpu(made), shape)
    assert cpu.host == 0
    assert item(cpu, "libraries").device == item(gpu, "libraries").host > 0
    assert item(gpu, "CUDA") == Item("CUDA", device=CUDA_CONTEXT, host=CUDA_HOST)
    assert item(cpu, "CUDA") == Item("CUDA")


def test_a_dense_probe_holds_a_modules_weight_and_a_paired_one_two(tmp_path: Path) -> None:
    dense = {"structure": "dense", "paired": False}
    one = footprint(*planned(tmp_path, optimizer=dense))
    two = footprint(*planned(tmp_path, optimizer={**dense, "paired": True}))
    assert item(one, "scratch").device == tiny.VOCABULARY * 48 * 4  # the head's
    assert item(two, "scratch").device == 2 * item(one, "scratch").device
    rank1 = footprint(*planned(tmp_path))
    assert item(rank1, "scratch").device < item(one, "scratch").device


def test_a_tail_takes_states_inputs_and_one_gradient(tmp_path: Path) -> None:
    none = footprint(*planned(tmp_path))
    head = footprint(*planned(tmp_path, tune={"tail": "head", "tail_rows": 100}))
    assert item(head, "states that the head is solved on").device == 2 * 8 * 100 * 48
    assert item(none, "states that the head is solved on").device == 0
    made, shape = planned(tmp_path, blocks=3, tune={"tail": "blocks:1"})
    found = footprint(made, shape)
    tokens = made.train.batch_size * 2 * shape.train.longest
    assert item(found, "inputs of the last blocks").device == 2 * tokens * 48 * 4
    gradient = phase(found, "gradient of a block").device
    assert gradient > BLOCK  # in float32, and activations
    two = footprint(*planned(tmp_path, blocks=3, tune={"tail": "blocks:2"}))
    assert phase(two, "gradient of a block").device == gradient
    assert item(two, "inputs of the last blocks").device == 3 * tokens * 48 * 4
    norm = footprint(*planned(tmp_path, tune={"tail": "norm"}))
    assert item(norm, "inputs of the last blocks").device == tokens * 48 * 4
    everything = footprint(*planned(tmp_path, tune={"tail": "blocks:2"}))  # one pass, no probes
    assert item(everything, "inputs of the last blocks").device == 3 * tokens // 2 * 48 * 4
    assert item(everything, "directions").device == 0
    assert phase(none, "gradient of a block").device == 0


def phase(found: Footprint, name: str) -> Item:
    return next((x for x in found.phases if x.name == name), Item(name))


def test_weights_that_are_really_moved_lie_beside_the_model(tmp_path: Path) -> None:
    """What is tuned outside the blocks and in one of them, and the logits of one example."""
    made, shape = planned(tmp_path)
    logits = 24 * tiny.VOCABULARY * 4
    checks = phase(footprint(made, shape), CHECKS)
    assert checks.device == REST + BLOCK + logits
    half = planned(tmp_path, model={"dtype": "bfloat16", "compute_dtype": "bfloat16"})
    largest = 4 * max(w.numel for w in shape.weights)
    assert phase(footprint(*half), CHECKS).device == (REST + BLOCK) // 2 + largest + logits
    made, shape = planned(tmp_path, tune={"layers": [1, 1], "method": "full"})
    assert phase(footprint(made, shape), CHECKS).device == BLOCK + logits


def test_a_check_without_room_is_left_out(tmp_path: Path) -> None:
    made, shape = planned(tmp_path, train={"batch_size": 1}, optimizer={"paired": False})
    found = footprint(made, shape)
    assert found.unchecked.device < found.device
    for budget, checked in ((found.device, True), (found.device - 1, False)):
        choice = choose(made, shape, budget, 0)
        assert choice.residency == "device"
        assert (phase(choice.footprint, CHECKS).device > 0) is checked
        assert choice.spare == budget - found.held


def test_products_that_are_compiled_count_in_low_precision_on_a_cpu(tmp_path: Path) -> None:
    name = "compiled products"
    low = planned(tmp_path, model={"compute_dtype": "bfloat16"})
    assert item(footprint(*low), name).device == KEPT_KERNELS * KERNEL
    assert item(footprint(on_a_gpu(low[0]), low[1]), name) == Item(name)
    assert item(footprint(*planned(tmp_path)), name) == Item(name)


def test_experts_are_cast_one_after_the_other(tmp_path: Path) -> None:
    """An expert's matrix, not all of a layer's."""
    made = recipe(tmp_path, model={"compute_dtype": "bfloat16"})
    found = []
    for experts in (4, 16):
        tiny.mixtral(num_local_experts=experts).config.save_pretrained(tmp_path)
        found.append(item(footprint(made, shape_of(made)), "scratch").device)
    assert found[0] == found[1]


def test_experts_are_copied_as_a_result_is_written(tmp_path: Path) -> None:
    """All of them at once, into the pieces of the files; an adapter's result has none."""
    name = "saving of experts"
    made, lora = recipe(tmp_path), recipe(tmp_path, tune={"method": "lora"})
    model = tiny.mixtral()
    model.config.save_pretrained(tmp_path)
    experts = sum(4 * p.numel() for n, p in model.named_parameters() if ".experts." in n)
    assert phase(footprint(made, shape_of(made)), name).device == experts > 0
    assert phase(footprint(lora, shape_of(lora)), name).device == 0
    assert phase(footprint(made, shape_of(made), "disk"), name).device == 0


def test_micro_batches_take_fewer_activations(tmp_path: Path) -> None:
    whole, half = (
        footprint(*planned(tmp_path, train={"batch_size": 8, "micro_batch_size": size}))
        for size in (8, 4)
    )
    name = "probe: blocks"
    of = {x.name: x for x in whole.phases}, {x.name: x for x in half.phases}
    assert of[1][name].device == pytest.approx(of[0][name].device / 2, rel=0.1)


def test_an_evaluation_counts_where_there_is_one(tmp_path: Path) -> None:
    data = {
        "train": {"path": "none.jsonl"}, "eval": {"path": "none.jsonl"}, "format": "text",
        "max_length": 24,
    }  # fmt: skip
    train, evaluation = {"batch_size": 2}, {"batch_size": 64}
    found = footprint(*planned(tmp_path, data=data, train=train, eval=evaluation))
    assert max(found.phases, key=lambda x: x.device).name.startswith("evaluation")
    assert "evaluation" not in {x.name for x in footprint(*planned(tmp_path)).phases}


@pytest.mark.parametrize(("quantization", "share"), [("int8", 1 / 4), ("nf4", 1 / 7)])
def test_a_quantized_base_is_smaller(tmp_path: Path, quantization: Any, share: float) -> None:
    made, shape = planned(tmp_path, tune={"method": "lora"})
    model = made.model.model_copy(update={"quantization": quantization})
    plain, coded = (footprint(x, shape) for x in (made, made.model_copy(update={"model": model})))
    name = "resident blocks"
    assert item(coded, name).device == pytest.approx(share * item(plain, name).device, rel=0.15)
    assert item(coded, "adapter") == item(plain, "adapter")


def test_checkpoints_and_the_result_need_the_disk(tmp_path: Path) -> None:
    every = {"checkpoint": {"every": 10, "keep_last": 2, "keep_best": 1}, "train": {"steps": 15}}
    assert footprint(*planned(tmp_path)).disk == WEIGHTS["float32"]
    assert footprint(*planned(tmp_path, **every)).disk == 2 * WEIGHTS["float32"]


def test_quantizers_count_where_they_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: set[str] = set()
    monkeypatch.setattr(
        "zoft.system.process_size.find_spec", lambda name: name if name in installed else None
    )
    bare = footprint(*planned(tmp_path))
    installed.add("torchao")
    more = footprint(*planned(tmp_path))
    assert 0 < item(bare, "libraries").device < item(more, "libraries").device
    assert (
        more.device - bare.device == item(more, "libraries").device - item(bare, "libraries").device
    )


def test_answers_that_are_written_keep_keys_and_values(tmp_path: Path) -> None:
    data = {"train": {"path": "none"}, "eval": {"path": "none"}, "format": "messages"}
    settings = {"data": {**data, "max_length": 24}, "tune": {"method": "lora"}}

    def phases(**section: Any) -> dict[str, int]:
        found = footprint(*planned(tmp_path, **settings, eval={"batch_size": 8, **section}))
        return {x.name: x.device for x in found.phases}

    assert "evaluation: answers" not in phases()
    short, long = (
        phases(metric="f1", max_new_tokens=tokens)["evaluation: answers"] for tokens in (10, 20)
    )
    # Keys and values of 2 heads of 12 in 2 layers, and once more of one layer, twice for the heap.
    assert long - short == 2 * (8 * 10 * 2 * 2 * 12 * 4) * (2 + 1)
