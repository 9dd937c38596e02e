"""The accelerator: streams, events, pinned memory, sizes and abilities, for any kind that torch knows.

A kind is what torch calls a device's type: `cuda` (NVIDIA, AMD), `xpu` (Intel) and others, each with a
module of its own, which `torch.get_device_module` finds. What the others share is used, so that a new
kind needs a name and no code. torch's error for a full card is `torch.OutOfMemoryError` on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

Device = torch.device | str


def first() -> str | None:
    """The first device of the kind that torch was built for, such as `cuda:0`; None if none is here."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return f"{found.type}:0" if found and has_streams(found.type) and count(found.type) else None


def known(kind: str) -> bool:
    """Whether torch has a device type of this name."""
    try:
        return torch.device(kind).index is None
    except RuntimeError:
        return False


def has_streams(kind: str) -> bool:
    """Whether torch offers streams of this kind that work can be handed to."""
    try:
        return hasattr(torch.get_device_module(kind), "Stream")
    except RuntimeError:  # a type that this torch has no module for
        return False


def count(kind: str) -> int:
    """How many devices of a kind that has streams are here."""
    module = torch.get_device_module(kind)
    return int(module.device_count()) if module.is_available() else 0


def current(device: Device) -> AbstractContextManager[object]:
    """Make the device its kind's current one inside: what a Triton launch goes to."""
    guard: AbstractContextManager[object] = _module(device).device(device)
    return guard


def synchronize(device: Device) -> None:
    """Block until all streams of the device are empty; nothing to wait for on a CPU."""
    _module(device).synchronize(device)


# -- streams and events -----------------------------------------------------------------------------


def new_stream(device: Device) -> Any:
    return _module(device).Stream(device)


def current_stream(device: Device) -> Any:
    return _module(device).current_stream(device)


def on_stream(stream: Any, device: Device) -> AbstractContextManager[object]:
    """Hand what is launched inside to this stream of the device."""
    entered: AbstractContextManager[object] = _module(device).stream(stream)
    return entered


def new_event(device: Device) -> Any:
    """Make an event. A thread that waits for it sleeps, and leaves its core to the host's own work."""
    kind = _module(device).Event
    return kind(blocking=True) if _may_block(kind) else kind()


@cache
def _may_block(kind: type) -> bool:
    return "blocking" in signature(kind).parameters


# -- memory -----------------------------------------------------------------------------------------


def memory_bytes(device: Device) -> tuple[int, int]:
    """What is free on the device, and all that it has."""
    free, total = _module(device).mem_get_info(device)
    return int(free), int(total)


def reserved_bytes(device: Device) -> int:
    """What torch holds of the device, for tensors and for reuse."""
    return int(_module(device).memory_reserved(device))


def peak_bytes(device: Device) -> int:
    """The most that tensors took of the device at a time."""
    return int(_module(device).max_memory_allocated(device))


def pin(memory: Tensor, device: Device) -> bool:
    """Lock host memory for copies from and to the device; False if the system refuses, or the kind
    cannot lock memory that is there already.

    Registered rather than taken from torch's pinned allocator, which rounds up to powers of two. To be
    undone with `unpin` before the memory is dropped: its addresses will be something else's.
    """
    runtime = _runtime(device)
    if runtime is None:
        return False
    if int(runtime.cudaHostRegister(memory.data_ptr(), memory.numel(), 0)) == 0:
        return True
    # CUDA remembers the refusal, and the next kernel that torch launches would be blamed for it.
    with suppress(RuntimeError):
        torch.zeros(1, device=device)
    return False


def unpin(memory: Tensor, device: Device) -> None:
    """Undo `pin`, after all copies from and to the memory are done."""
    _runtime(device).cudaHostUnregister(memory.data_ptr())


def pin_all(memories: Sequence[Tensor], device: Device) -> bool:
    """Pin every one of them, or none where the system refuses one."""
    for number, memory in enumerate(memories):
        if not pin(memory, device):
            for pinned in memories[:number]:
                unpin(pinned, device)
            return False
    return True


def _runtime(device: Device) -> Any:
    """The runtime behind the module, where torch shows it: HIP's on AMD, under CUDA's names."""
    show = getattr(_module(device), "cudart", None)
    return show and show()


def send(tensor: Tensor, device: Device) -> Tensor:
    """Copy a small tensor of the host to the device, without waiting for what runs there; on a CPU it is
    there already, and an outline has no data."""
    if torch.device(device).type in ("cpu", "meta"):
        return tensor.to(device)
    # torch keeps the pinned copy until the device has read it.
    return tensor.pin_memory().to(device, non_blocking=True)


# -- abilities --------------------------------------------------------------------------------------


def has_bfloat16(device: Device) -> bool:
    """Whether the hardware itself multiplies bfloat16."""
    with current(device):
        return bool(_module(device).is_bf16_supported(including_emulation=False))


def description(device: Device) -> str:
    """The device's name, and the version of its instruction set where its kind has one."""
    found = _module(device).get_device_properties(device)
    if not hasattr(found, "major"):
        return str(found.name)
    return f"{found.name}, compute capability {found.major}.{found.minor}"


def _module(device: Device) -> Any:
    return torch.get_device_module(torch.device(device))
