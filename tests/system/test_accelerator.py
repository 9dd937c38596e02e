from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from zoft.system.accelerator import new_event, pin, unpin

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("answer", [0, 2])
def test_pinning_registers_what_is_there_and_may_be_refused(
    monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    memory = torch.empty(8192, dtype=torch.uint8)
    calls: list[object] = []
    zeros: list[bool] = []

    def register(address: int, size: int, flags: int) -> int:
        calls.append((address, size, flags))
        return answer

    def next_kernel(*_args: object, **_options: object) -> None:
        zeros.append(True)
        raise RuntimeError("CUDA error: out of memory")  # what registering left behind

    runtime = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=calls.append)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch, "zeros", next_kernel)
    assert pin(memory, GPU) == (answer == 0)
    assert calls == [(memory.data_ptr(), 8192, 0)]
    assert zeros == [True] * (answer != 0)
    unpin(memory, GPU)
    assert calls[1:] == [memory.data_ptr()]


def test_what_cannot_register_memory_pins_none() -> None:
    assert not pin(torch.empty(4096, dtype=torch.uint8), torch.device("xpu", 0))


def test_an_event_lets_its_waiters_sleep_where_its_kind_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Spinning:
        pass

    class Sleeping:
        def __init__(self, blocking: bool = False) -> None:
            self.blocking = blocking

    monkeypatch.setattr(torch.cuda, "Event", Sleeping)
    monkeypatch.setattr(torch.xpu, "Event", Spinning)
    assert new_event("cuda:0").blocking
    assert isinstance(new_event("xpu:0"), Spinning)
