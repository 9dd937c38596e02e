"""How much memory a run takes, from numbers alone: bytes of every item on device, host and disk.

An item is there from the loaded model to the end; of the phases (loading, a pass through the blocks, the
head, the same of an evaluation) one at a time is. The largest sum is the peak. On a CPU the device is
the host, and all of its memory is called the device's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from zoft.planning.memory.count import Count
from zoft.planning.workload import Shape, Weight
from zoft.recipe.resolved import Resolved
from zoft.recipe.schema import GENERATED
from zoft.system import process_size

Residency = Literal["device", "host", "disk"]

# Driver, cuBLAS, Triton's modules on an Ampere or Hopper card, and on its host: set aside, not measured.
CUDA_CONTEXT = 700 * 2**20
CUDA_HOST = 1500 * 2**20
CHECKS = "checks before the first step"


@dataclass(frozen=True, slots=True)
class Item:
    """Bytes of one thing in each of the three places."""

    name: str
    device: int = 0
    host: int = 0
    disk: int = 0


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a run takes where. `resident` are the numbers of the blocks that never leave the device,
    `slots` how many of the others are there at once."""

    residency: Residency
    resident: tuple[int, ...]
    slots: int
    items: tuple[Item, ...]
    phases: tuple[Item, ...]

    @property
    def device(self) -> int:
        """The peak on the device; on a CPU, of the process."""
        return sum(x.device for x in self.items) + max(x.device for x in self.phases)

    @property
    def host(self) -> int:
        return sum(x.host for x in self.items) + max(x.host for x in self.phases)

    @property
    def disk(self) -> int:
        return sum(x.disk for x in self.items)

    @property
    def held(self) -> int:
        """What is on the device between the passes."""
        return sum(x.device for x in self.items)

    @property
    def unchecked(self) -> Footprint:
        """Without what a run does beforehand only where there is room for it."""
        return replace(self, phases=tuple(x for x in self.phases if x.name != CHECKS))


def slots_for(device: str, *, tuned: bool) -> int:
    """One block computes and one is fetched. A third slot is for one that is written back, where that
    has a queue of its own (a GPU's second copy engine); a disk reads and writes in turn anyway."""
    return 3 if tuned and device != "cpu" else 2


def footprint(
    recipe: Resolved,
    shape: Shape,
    residency: Residency = "device",
    resident: Sequence[int] | None = None,
    slots: int | None = None,
) -> Footprint:
    """The memory of a run with blocks `resident` (default: all on the device, else none) on the device,
    the others in `slots` (default: as many as hide the transfers).

    `recipe` has no `auto` left but `optimizer.paired`, which counts as true: the check at the start
    runs both signs at once.
    """
    count = Count(recipe, shape)
    everything = range(shape.blocks)
    kept = set(everything if resident is None and residency == "device" else resident or ())
    streamed = [i for i in everything if i not in kept]
    cpu = recipe.device == "cpu"
    item = _on_host if cpu else Item
    arenas = {i: count.arena(i) for i in streamed}
    largest = max(arenas.values(), default=0)
    slots = min(len(streamed), slots or slots_for(recipe.device, tuned=count.writes_back))
    homes = sum(arenas.values())
    working = homes if residency == "disk" and count.writes_back else 0
    staging = 0 if cpu or residency != "disk" else min(len(streamed), 4 if count.writes_back else 2)
    here = [w for w in shape.weights if w.block is None or w.block in kept or w.adapter]
    base = [w for w in here if not w.adapter]
    items = [
        item("embeddings, norm, head", sum(count.kept(w) for w in base if w.block is None)),
        item("resident blocks", sum(count.kept(w) for w in base if w.block is not None)),
        item("adapter", sum(count.kept(w) for w in here if w.adapter)),
        item("moments", sum(count.moments(w) for w in here)),
        item("slots for streamed blocks", slots * largest),
        item("streamed blocks", host=homes if residency == "host" else 0, disk=working),
        item("staging", host=staging * largest),
        item("buffers", shape.buffers),
        item("directions", count.directions()),
        item("scratch", count.scratch()),
        # What they leave free is not handed back.
        item("states that the head is solved on", host=count.tail_states()),
        item("inputs of the last blocks", count.tail_inputs()),
        *_of_the_process(count, shape, item),
    ]
    phases = [
        *_before_the_steps(count, here, item, shape.mapped),
        *_passes(count, recipe, shape, item),
    ]
    if recipe.tune.method == "full" and not streamed:  # transformers takes them apart in copies
        experts = sum(count.kept(w) for w in shape.weights if w.kind == "experts")
        phases.append(item("saving of experts", experts))
    if shape.converted:
        held = sum(x.device + x.host for x in items if cpu or x.host)
        sizes = [4 * w.numel for w in shape.weights if not w.adapter]
        words = shape.words or shape.vocabulary
        whole = process_size.conversion(shape.converted, sizes, words)
        phases.append(item("conversion of the base", host=max(0, whole - held)))
    return Footprint(
        residency,
        tuple(sorted(kept)),
        slots,
        tuple(x for x in items if x.device or x.host or x.disk),
        tuple(phases),
    )


def _of_the_process(count: Count, shape: Shape, item: Callable[..., Item]) -> Iterator[Item]:
    """What is there beside weights and passes: rows, libraries, compiled code, files."""
    cpu = count.recipe.device == "cpu"
    texts = [x for x in (shape.train, shape.evaluation) if x]
    yield item("examples", host=sum(process_size.examples(x.number, x.tokens) for x in texts))
    yield item("tokenizer", host=process_size.tokenizer(shape.words or shape.vocabulary))
    yield item("libraries", host=process_size.libraries())
    low = cpu and count.compute < 4
    yield item("compiled products", host=process_size.kernels() if low else 0)
    yield item("result, checkpoints", disk=count.files())
    if not cpu:
        yield Item("CUDA", CUDA_CONTEXT, CUDA_HOST)


def _before_the_steps(
    count: Count, here: Sequence[Weight], item: Callable[..., Item], mapped: int
) -> Iterator[Item]:
    """Loading, where every tensor has a copy beside those that came before it and nothing else is
    there yet but the files that are `mapped`, and the checks of the probes."""
    settled = count.scratch() + count.directions() + sum(count.moments(w) for w in here)
    sizes = [count.kept(w) for w in here]
    most = max(before + size for before, size in zip(accumulate(sizes), sizes, strict=True))
    beside = most - sum(sizes) - settled
    if count.recipe.device == "cpu":
        yield item("loading", max(0, beside + mapped))
    else:
        yield item("loading", max(0, beside), host=mapped)
    yield item(CHECKS, count.checks())


def _on_host(name: str, device: int = 0, host: int = 0, disk: int = 0) -> Item:
    """On a CPU the device's memory is the host's."""
    return Item(name, device + host, 0, disk)


def _passes(
    count: Count, recipe: Resolved, shape: Shape, item: Callable[..., Item]
) -> Iterator[Item]:
    """The forward passes of a probe and of an evaluation, of which one is at work at a time."""
    yield item("probe: blocks", count.blocks(shape.train, count.rows, count.copies))
    yield item("probe: head", count.head(shape.train, count.rows, count.copies))
    yield item("gradient of a block", count.tail_gradient())
    texts, rows = shape.evaluation, recipe.eval.batch_size
    if texts is not None:
        yield item("evaluation: blocks", count.blocks(texts, rows, 1))
        yield item("evaluation: head", count.head(texts, rows, 1))
        if recipe.eval.metric in GENERATED:
            yield item("evaluation: answers", count.answers(texts))
