"""Streamed models against resident ones: the same bits of losses, weights and moments."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from support import tiny
from support.offload.streamed import LAYERS, rig
from torch import Tensor

from zoft.engine.offload import streamer as streamer_module
from zoft.engine.offload.operations import Kind, Op
from zoft.engine.offload.streamer import Streamer
from zoft.models.blocks import is_placeholder

Outcome = tuple[list[float], dict[str, Tensor]]  # losses of all probes, weights and moments
STEPS = 4
TIED = partial(tiny.llama, tie=True)
UNTIED = partial(tiny.qwen2, tie=False)
MODELS = {
    "opt": tiny.opt, "llama": tiny.llama, "llama tied": TIED,
    "gpt2": tiny.gpt2, "qwen2": tiny.qwen2, "qwen2 untied": UNTIED,
}  # fmt: skip
# transfer, slots, who writes back
WAYS = [
    *(("file", slots, "device") for slots in (1, 2, 3, 4)),
    *(("memory", slots, writeback) for slots in (1, 2, 4) for writeback in ("device", "host")),
    *(("staged", slots, "device") for slots in (1, 3, 4)),
    ("staged memory", 2, "device"),
    ("staged memory", 2, "host"),
]


def run(folder: Path, steps: int = STEPS, **settings: Any) -> Outcome:
    with rig(folder, **settings) as made:
        for number in range(1, steps + 1):
            made.step(number)
        return made.losses, made.tensors()


@cache
def resident(name: str, **settings: Any) -> Outcome:
    with TemporaryDirectory() as folder:
        return run(Path(folder), build=MODELS[name], **settings)


def same(one: Outcome, other: Outcome) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, tensor in one[1].items():
        assert tensor.dtype == other[1][name].dtype
        assert torch.equal(tensor, other[1][name]), name


def equal(folder: Path, name: str, way: tuple[str, int, str], **settings: Any) -> None:
    transfer, slots, writeback = way
    streamed = run(
        folder, build=MODELS[name], transfer=transfer, slots=slots, writeback=writeback, **settings
    )
    same(resident(name, **settings), streamed)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way)))
@pytest.mark.parametrize("optimizer", ["scalar", "full"])
def test_every_way_gives_the_bits_of_a_resident_model(
    tmp_path: Path, way: tuple[str, int, str], optimizer: str
) -> None:
    equal(tmp_path, "llama", way, optimizer=optimizer)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way)))
@pytest.mark.parametrize("tune", ["lora", "some", "few"])
def test_every_way_with_frozen_weights_in_the_blocks(
    tmp_path: Path, way: tuple[str, int, str], tune: str
) -> None:
    equal(tmp_path, "llama", way, tune=tune)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "way", [("file", 3, "device"), ("memory", 2, "host")], ids=["file", "host"]
)
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_every_kind_of_model(
    tmp_path: Path, name: str, way: tuple[str, int, str], tune: str
) -> None:
    equal(tmp_path, name, way, tune=tune)


@pytest.mark.parametrize("optimizer", ["scalar", "window", "full", "mezo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("paired", [False, True], ids=["two passes", "paired"])
def test_every_rule_and_type(
    tmp_path: Path, optimizer: str, dtype: torch.dtype, paired: bool
) -> None:
    settings = {"optimizer": optimizer, "dtype": dtype, "paired": paired}
    equal(tmp_path, "opt", ("file", 2, "device"), **settings)
    equal(tmp_path, "opt", ("memory", 2, "host"), **settings)


@pytest.mark.parametrize("resident_blocks", [(), (0,), (2,), (1, 3), (0, 2, 4)])
@pytest.mark.parametrize("slots", [2, 5])
def test_resident_blocks_stand_anywhere_between(
    tmp_path: Path, resident_blocks: tuple[int, ...], slots: int
) -> None:
    settings: dict[str, Any] = {"transfer": "file", "slots": slots, "resident": resident_blocks}
    same(resident("gpt2"), run(tmp_path, build=tiny.gpt2, **settings))


def test_without_poison_the_bits_are_the_same(tmp_path: Path) -> None:
    same(resident("llama"), run(tmp_path, transfer="staged", slots=2, poison=False))


def test_a_block_that_is_many_updates_behind_gets_them_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Updates without a pass between, as on a replay; beyond a limit they are applied at once."""
    monkeypatch.setattr(streamer_module, "PENDING", 5)
    ends: list[Outcome] = []
    for transfer in (None, "file", "memory"):
        with rig(tmp_path, transfer=transfer, slots=2, optimizer="full") as made:
            measurement = made.estimator.measure(1, made._loss)
            for _ in range(8):
                made.optimizer.update(measurement, 1e-2)
                if made.streamer is not None:
                    assert len(made.streamer._updates) <= 6
            ends.append(([], made.tensors()))
    same(ends[0], ends[1])
    same(ends[0], ends[2])


# -- how much is moved, and where ---------------------------------------------------------------------


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("transfer", ["file", "memory", "staged"])
def test_a_block_comes_once_a_pass_and_goes_home_once_a_step(
    tmp_path: Path, transfer: str, paired: bool
) -> None:
    fetch: Kind = "read" if transfer == "file" else "upload"
    home: Kind = "download" if transfer == "memory" else "write"
    with rig(tmp_path, transfer=transfer, slots=2, paired=paired) as made:
        made.step(1)
        for number in range(2, 5):
            before = len(made.executor.ops)
            made.step(number)
            ops = [op.kind for op in made.executor.ops[before:]]
            assert ops.count(fetch) == (LAYERS - 1) * (1 if paired else 2)
            assert ops.count(home) == ops.count("update") == LAYERS - 1


def arenas(streamer: Streamer) -> list[int]:
    return [arena.data_ptr() for arena in (*streamer._slots, *streamer.stagings)]


@pytest.mark.parametrize("transfer", ["file", "memory", "staged"])
def test_fifty_steps_allocate_no_arena(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transfer: str
) -> None:
    """Slots and stagings stay where they are, and no update is kept longer than it is needed."""
    with rig(tmp_path, tiny.opt, transfer=transfer, slots=3) as made:
        assert made.streamer is not None
        made.step(1)
        before = arenas(made.streamer)

        def refuse(*_args: object) -> None:
            raise AssertionError("an arena in a step")

        monkeypatch.setattr(streamer_module, "new_arena", refuse)
        places: set[int] = set()
        for number in range(2, 52):
            made.step(number)
            assert len(made.streamer._updates) <= 2
        for number in made.streamer.visits():
            parameters = made.streamer.blocks[number].parameters.values()
            places |= {p.untyped_storage().data_ptr() for p in parameters}
        assert arenas(made.streamer) == before
        assert places <= set(before)


# -- what is not there, and what goes wrong -----------------------------------------------------------


def test_a_weight_that_is_not_there_is_nan_and_shows_in_the_loss(tmp_path: Path) -> None:
    with rig(tmp_path, transfer="file", slots=2) as made:
        assert made.streamer is not None
        for number, block in made.streamer.blocks.items():
            assert all(map(is_placeholder, block.parameters.values())), number
            assert all(p.isnan().all() for p in block.parameters.values())
        block = made.streamer.blocks[3]
        block.module._forward_pre_hooks.clear()  # nobody fetches it
        with pytest.raises(AssertionError):
            made.step(1)
        assert all(map(torch.isnan, torch.tensor(made.losses)))


def test_slots_are_full_of_nan_before_they_are_filled(tmp_path: Path) -> None:
    """What reads a slot too early or too late sees it: a copy that never happens is in the loss."""
    with rig(tmp_path, transfer="memory", slots=2) as made:
        made.step(1)
        work = made.streamer._work  # type: ignore[union-attr]
        made.streamer._work = lambda op: (lambda: None) if op.kind == "upload" else work(op)  # type: ignore[union-attr, method-assign]
        with pytest.raises(AssertionError):
            made.step(2)


# transfer, who writes back, what is tuned -> the kinds of operations that a step has
KINDS = {
    ("file", "device", "lora"): ("poison", "read", "enter", "leave"),
    ("memory", "device", "lora"): ("upload",),
    ("memory", "host", "full"): ("host_update", "upload", "update"),
    ("staged", "device", "full"): ("read", "upload", "update", "download", "write", "leave"),
}


@pytest.mark.parametrize(
    ("way", "kind"), [(way, kind) for way, kinds in KINDS.items() for kind in kinds]
)
@pytest.mark.parametrize("number", [0, 2])
def test_an_error_in_any_operation_is_raised_and_nothing_hangs(
    tmp_path: Path, way: tuple[str, str, str], kind: str, number: int
) -> None:
    """Updates on their way home may be lost, so that this run is over; but it ends."""
    transfer, writeback, tune = way
    with rig(tmp_path, transfer=transfer, slots=2, writeback=writeback, tune=tune) as made:
        made.step(1)
        left = iter(range(number, -1, -1))
        made.executor.fails = lambda op: op.kind == kind and next(left, -1) == 0

        def go_on() -> None:
            for later in range(2, 6):
                made.step(later)
            made.tensors()

        for _ in range(2):
            with pytest.raises(OSError, match="no such luck"):
                go_on()


@pytest.mark.parametrize("left_out", range(1, 30, 4))
def test_after_ctrl_c_between_two_operations_nothing_waits_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: int
) -> None:
    with rig(tmp_path, transfer="file", slots=2, tune="lora") as made:
        assert made.streamer is not None
        work, left = made.streamer._work, iter(range(left_out, 0, -1))

        def interrupted(op: Op) -> Any:
            if next(left, 0) == 1:
                raise KeyboardInterrupt
            return work(op)

        monkeypatch.setattr(made.streamer, "_work", interrupted)
        for _ in range(2):  # at once, and again
            with pytest.raises(KeyboardInterrupt):
                made.step(1)


def test_a_pass_that_is_broken_off_in_a_block_leaves_it(tmp_path: Path) -> None:
    class Enough(BaseException):
        """Not even an Exception, like Ctrl-C: no forward hook runs after it."""

    with rig(tmp_path, transfer="file", slots=2, tune="lora") as made:
        assert made.streamer is not None
        inner = made.streamer.blocks[1].module.get_submodule("mlp")

        def stop(*_args: object) -> None:
            raise Enough

        for number in range(1, STEPS + 1):
            handle = inner.register_forward_pre_hook(stop)
            with pytest.raises(Enough):
                made.step(number)
            handle.remove()
            made.step(number)
        same(resident("llama", tune="lora"), (made.losses, made.tensors()))
