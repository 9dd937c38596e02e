"""What `torch.get_device_module` finds for the stand-in: the names of `torch.cuda` that zoft needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from support.accelerator.tensor import KIND, Open


class Module:
    """Answers for the card that is open; without one there is none."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return Open.card is not None

    def device_count(self) -> int:
        return int(self.is_available())

    def current_device(self) -> int:
        return 0

    def device(self, _device: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, _seed: int) -> None:
        """Drawn from the CPU's generator, which is seeded with it."""

    def get_rng_state(self, _device: Any = None) -> torch.Tensor:
        return torch.zeros(0, dtype=torch.uint8)

    def set_rng_state(self, _state: torch.Tensor, _device: Any = None) -> None:
        """The CPU's generator is put back by whoever puts this one back."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return including_emulation

    def get_device_properties(self, _device: Any = None) -> SimpleNamespace:
        return SimpleNamespace(name=f"{KIND} card")

    def mem_get_info(self, _device: Any = None) -> tuple[int, int]:
        return Open.card.size - Open.card.used, Open.card.size

    def memory_reserved(self, _device: Any = None) -> int:
        return int(Open.card.used)

    def max_memory_allocated(self, _device: Any = None) -> int:
        return int(Open.card.peak)

    def synchronize(self, _device: Any = None) -> None:
        Open.card.wait("synchronize")
        Open.card.streams.synchronize()

    def Stream(self, device: Any = None) -> Any:  # noqa: N802
        return Open.card.streams.Stream(device)

    @property
    def Event(self) -> Any:  # noqa: N802
        return Open.card.streams.Event

    def stream(self, stream: Any) -> Any:
        return Open.card.streams.stream(stream)

    def current_stream(self, _device: Any = None) -> Any:
        return Open.card.streams.current_stream()

    def cudart(self) -> SimpleNamespace:
        return SimpleNamespace(cudaHostRegister=_lock, cudaHostUnregister=_unlock)


def _lock(address: int, size: int, _flags: int) -> int:
    if not Open.card.pins:
        return 2
    Open.card.pinned[address] = size
    return 0


def _unlock(address: int) -> None:
    Open.card.pinned.pop(address, None)
