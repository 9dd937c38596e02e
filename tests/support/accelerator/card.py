"""The stand-in accelerator: a card of a set size over the CPU, which is as strict as CUDA and counts.

Operators on the compute stream are done at once, after what the stream waits for; copies that are handed
to another stream are done late, in random order between streams (`late.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import torch
from torch import Tensor

from support.accelerator.late import LateStreams
from support.accelerator.tensor import (
    KIND,
    CardTensor,
    mapped,
    storage,
    tensors_in,
    unwrapped,
)

aten = torch.ops.aten
# The host has to know a size or a number that is on the card.
WAITED_FOR = {
    aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive,
    aten.bincount, aten._linalg_check_errors,
}  # fmt: skip
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}  # by CPU indices too


@dataclass(frozen=True)
class Transfer:
    """`to` the card or to the host; `blocking` if the host stood still for it."""

    to: str
    bytes: int
    blocking: bool
    place: str


class Allocation:
    """Memory of the card, given back when no tensor lies in it any more. `shared`: with copy streams."""

    def __init__(self, card: Card, size: int) -> None:
        if card.used + size > card.size:
            wanted, free = (f"{x / 2**20:.2f} MiB" for x in (size, card.size - card.used))
            raise torch.OutOfMemoryError(
                f"{KIND} out of memory. Tried to allocate {wanted}. GPU 0 has {free} free."
            )
        self.card, self.size, self.shared = card, size, False
        card.used += size
        card.peak = max(card.peak, card.used)

    def __del__(self) -> None:
        if hasattr(self, "size"):
            self.card.used -= self.size


@dataclass
class Card:
    """`synchronisations`: where the host waited for the card; `faults`: what CUDA would let pass or
    do only sometimes. `pins`: whether host memory may be locked."""

    size: int = 2 * 2**30
    pins: bool = True
    seed: int = 0
    used: int = 0
    peak: int = 0
    operators: int = 0
    synchronisations: list[str] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    pinned: dict[int, int] = field(default_factory=dict)  # address -> bytes

    def __post_init__(self) -> None:
        self.streams = LateStreams(Random(self.seed), self.faults)

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Do one operator as the card would. Raises RuntimeError where devices are mixed."""
        self.operators += 1
        if func in (aten.copy_.default, aten._to_copy.default):
            target = args[0] if func is aten.copy_.default else kwargs.get("device")
            if self._crosses(args[1 if func is aten.copy_.default else 0], target):
                return self._moved(func, args, kwargs)
        self._require_one_device(func, args, kwargs)
        if self._waits(func, args):
            self.wait(str(func))
        reads, writes = _accesses(func, args, kwargs)
        held_args, held_kwargs = mapped(unwrapped, args), mapped(unwrapped, kwargs)
        if func.is_view:  # touches no number
            return self._wrapped(func(*held_args, **held_kwargs), args, kwargs)
        if not self.streams.computing():
            assert writes, f"{func} on a stream for copies"
            self.streams.later(reads, writes, lambda: func(*held_args, **held_kwargs))
            return args[0]
        with self.streams.at_once(reads, writes):
            found = func(*held_args, **held_kwargs)
        for tensor in writes:
            assert tensor.shape == tensor.held.shape, f"{func} changes a shape in place"
        if not isinstance(found, Tensor | tuple | list) and func is not aten.sym_size.default:
            self.wait(str(func))
        return self._wrapped(found, args, kwargs)

    def wait(self, what: str) -> None:
        """Note that the host waits for the card."""
        self.synchronisations.append(f"{what} in {_place()}")

    def wrap(self, held: Tensor) -> CardTensor:
        """A tensor of the card with memory of its own."""
        return CardTensor(held, Allocation(self, held.untyped_storage().nbytes()))

    # -- one operator -------------------------------------------------------------------------------

    def _crosses(self, source: Any, target: Any) -> bool:
        """Whether a copy goes from one device to the other."""
        if target is None:
            return False
        device = target.device if isinstance(target, Tensor) else torch.device(target)
        return isinstance(source, Tensor) and source.device.type != device.type

    def _moved(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Copy between the card and the host."""
        in_place = func is aten.copy_.default
        source = args[1 if in_place else 0]
        late = bool(args[2] if in_place and len(args) > 2 else kwargs.get("non_blocking", False))
        to = "host" if isinstance(source, CardTensor) else "card"
        host = args[0] if in_place and to == "host" else None if to == "host" else source
        self.transfers.append(Transfer(to, source.nbytes, not late, _place()))
        if not late:
            self.wait(f"blocking copy to the {to}")
        elif host is None or not self._is_pinned(host):
            self.faults.append(f"non-blocking copy of memory that is not pinned in {_place()}")
        reads = [x for x in (source,) if isinstance(x, CardTensor)]
        writes = [x for x in args[:1] if in_place and isinstance(x, CardTensor)]
        plain = mapped(unwrapped, args), mapped(unwrapped, kwargs)
        if not self.streams.computing() and late:
            self.streams.later(reads, writes, lambda: func(*plain[0], **plain[1]))
            return args[0]
        with self.streams.at_once(reads, writes):
            found = func(*plain[0], **plain[1])
        if in_place:
            return args[0]
        return found if to == "host" else self.wrap(found)

    def _require_one_device(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Raise what CUDA raises where the card's tensors meet the host's; a single number may."""
        indices = list(tensors_in(args[1])) if func.overloadpacket in INDEXED else []
        for tensor in tensors_in([*args, kwargs]):
            if isinstance(tensor, CardTensor) or not tensor.dim():
                continue
            if any(tensor is index for index in indices):
                self.transfers.append(Transfer("card", tensor.nbytes, True, _place()))
                self.wait("indices of the host")
                continue
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{KIND}:0 and {tensor.device}! (when checking an argument of {func})"
            )

    def _waits(self, func: Any, args: Sequence[Any]) -> bool:
        packet = func.overloadpacket
        if packet in INDEXED:
            return any(x.dtype in (torch.bool, torch.uint8) for x in tensors_in(args[1]))
        if packet is aten.repeat_interleave:
            return isinstance(args[-1], Tensor)
        return packet in WAITED_FOR

    def _wrapped(self, found: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What an operator gives back: an argument, a view of one, or memory of its own."""
        device = kwargs.get("device")
        if device is not None and torch.device(device).type != KIND:
            return found
        given = [x for x in tensors_in([*args, kwargs]) if isinstance(x, CardTensor)]
        same = {id(x.held): x for x in given}
        memory = {storage(x.held): x.allocation for x in given}

        def wrap(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if id(leaf) in same:
                return same[id(leaf)]
            there = memory.get(storage(leaf))
            return self.wrap(leaf) if there is None else CardTensor(leaf, there)

        return mapped(wrap, found)

    def _is_pinned(self, tensor: Tensor) -> bool:
        begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        return any(at <= begin and end <= at + size for at, size in list(self.pinned.items()))


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """The arguments that an operator writes: their places and names."""
    found = enumerate(func._schema.arguments)
    return tuple((i, x.name) for i, x in found if x.alias_info and x.alias_info.is_write)


def _accesses(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[list[CardTensor], list[CardTensor]]:
    """The card's tensors that an operator reads, and those that it writes."""
    changed = [args[i] if i < len(args) else kwargs.get(name) for i, name in _written(func)]
    writes = [x for x in tensors_in(changed) if isinstance(x, CardTensor)]
    reads = [x for x in tensors_in([*args, kwargs]) if isinstance(x, CardTensor)]
    return [x for x in reads if not any(x is y for y in writes)], writes


def _place() -> str:
    """The nearest line of the package that is being run, or else of the test."""
    frame: Any = sys._getframe(2)
    through = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if "/zoft/" in file:
            return f"{file.rpartition('/zoft/')[2]}:{frame.f_lineno}{through}"
        if not through and "/support/" not in file and "/torch/" not in file:
            through = f" through {file.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return through
