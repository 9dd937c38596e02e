"""How much memory a run takes, from numbers alone: bytes of every item on device, host and disk.

An item is there from the loaded model to the end; of the phases (loading, a pass through the blocks, the
head, the same of an evaluation) one at a time is. The largest sum is the peak. On a CPU the device is
the host, and all of its memory is called the device's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from zoft.engine.probe.directions import MatrixBytes
from zoft.engine.probe.head import chunk_words
from zoft.engine.probe.structures.table import STRUCTURES
from zoft.planning.workload import Shape, Texts, Weight
from zoft.recipe.resolved import Resolved
from zoft.recipe.schema import GENERATED
from zoft.system import process_size
from zoft.system.device import DTYPES

Residency = Literal["device", "host", "disk"]

ALIGN = 512  # bytes; where a tensor of a block's arena may begin
# Driver, cuBLAS, Triton's modules on an Ampere or Hopper card, and on its host: set aside, not measured.
CUDA_CONTEXT = 700 * 2**20
CUDA_HOST = 1500 * 2**20
# On a CPU a pass takes so many times what lives in it: a heap has gaps where batches of other widths
# were, and matrix products in low precision pack their operands. Measured, see benchmarks/RESULTS.md.
HEAP_BLOCKS, HEAP_HEAD = 2.0, 1.8
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
    count = _Count(recipe, shape)
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
    texts = [x for x in (shape.train, shape.evaluation) if x]
    words = shape.words or shape.vocabulary
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
        item("examples", host=sum(process_size.examples(x.number, x.tokens) for x in texts)),
        item("tokenizer", host=process_size.tokenizer(words)),
        item("libraries", host=process_size.libraries()),
        item("compiled products", host=process_size.kernels() if cpu and count.compute < 4 else 0),
        item("result, checkpoints", disk=count.files()),
    ]
    if not cpu:
        items.append(Item("CUDA", CUDA_CONTEXT, CUDA_HOST))
    settled = count.scratch() + count.directions() + sum(count.moments(w) for w in here)
    loading = item("loading", max(0, max(map(count.kept, here)) - settled))
    checks = item(CHECKS, count.checks())
    phases = [loading, checks, *_passes(count, recipe, shape, item)]
    if recipe.tune.method == "full" and not streamed:  # transformers takes them apart in copies
        experts = sum(count.kept(w) for w in shape.weights if w.kind == "experts")
        phases.append(item("saving of experts", experts))
    if shape.converted:
        held = sum(x.device + x.host for x in items if cpu or x.host)
        sizes = [4 * w.numel for w in shape.weights if not w.adapter]
        whole = process_size.conversion(shape.converted, sizes, words)
        phases.append(item("conversion of the base", host=max(0, whole - held)))
    return Footprint(
        residency,
        tuple(sorted(kept)),
        slots,
        tuple(x for x in items if x.device or x.host or x.disk),
        tuple(phases),
    )


def _on_host(name: str, device: int = 0, host: int = 0, disk: int = 0) -> Item:
    """On a CPU the device's memory is the host's."""
    return Item(name, device + host, 0, disk)


def _passes(
    count: _Count, recipe: Resolved, shape: Shape, item: Callable[..., Item]
) -> Iterator[Item]:
    """The forward passes of a probe and of an evaluation, of which one is at work at a time."""
    yield item("probe: blocks", count.blocks(shape.train, count.rows, count.copies))
    yield item("probe: head", count.head(shape.train, count.rows, count.copies))
    texts, rows = shape.evaluation, recipe.eval.batch_size
    if texts is not None:
        yield item("evaluation: blocks", count.blocks(texts, rows, 1))
        yield item("evaluation: head", count.head(texts, rows, 1))
        if recipe.eval.metric in GENERATED:
            yield item("evaluation: answers", count.answers(texts))


class _Count:
    """Bytes of one thing after the other, for one recipe and shape."""

    def __init__(self, recipe: Resolved, shape: Shape) -> None:
        self.recipe, self.shape, self.quantization = recipe, shape, recipe.model.quantization
        self.own = DTYPES[recipe.model.dtype].itemsize
        self.compute = DTYPES[recipe.model.compute_dtype].itemsize
        settings = recipe.optimizer
        self.structure = STRUCTURES[settings.structure]
        self.copies = 2 if settings.sides == 2 and settings.paired is not False else 1
        self.states = len(settings.state())
        self.rows = recipe.train.micro_batch_size
        self.writes_back = any(w.tuned and not w.adapter for w in shape.weights)

    # -- weights ----------------------------------------------------------------------------------

    def kept(self, weight: Weight) -> int:
        """As it is stored: what learns in model.dtype, what is frozen as it is computed with."""
        if weight.tuned or weight.adapter or self.recipe.tune.method == "full":
            return weight.numel * self.own
        if self.quantization == "none" or weight.kind != "product" or weight.block is None:
            return weight.numel * self.compute
        if self.quantization == "int8":  # and a float32 scale for each row
            return weight.numel + 4 * weight.shape[0]
        # Two to a byte, a byte of scale for 64, a float32 for 256 of these.
        return -(-weight.numel // 2) + -(-weight.numel // 64) + 4 * -(-weight.numel // (64 * 256))

    def moments(self, weight: Weight) -> int:
        """The rule's state of a tuned weight, in float32."""
        return 4 * self.states * weight.numel if weight.tuned else 0

    def arena(self, block: int) -> int:
        """All of a block that travels: its weights, and the state of those that are tuned."""
        mine = [w for w in self.shape.weights if w.block == block and not w.adapter]
        sizes = [s for w in mine for s in (self.kept(w), *[4 * w.numel] * (w.tuned * self.states))]
        return sum(-(-size // ALIGN) * ALIGN for size in sizes)

    def files(self) -> int:
        """final/, and as many checkpoints as are kept while one more is written."""
        full = self.recipe.tune.method == "full"
        result = sum(self.kept(w) for w in self.shape.weights if full or w.adapter)
        settings, steps = self.recipe.checkpoint, self.recipe.train.steps
        number = steps // settings.every if settings.every else 0
        number = min(number, settings.keep_last + settings.keep_best + 1)
        return result + number * (result + sum(map(self.moments, self.shape.weights)))

    # -- probes -----------------------------------------------------------------------------------

    def directions(self) -> int:
        """What is drawn of every tuned matrix for every direction of a pass."""
        each = self.recipe.train.batch_size if self.recipe.optimizer.scope == "example" else 1
        tuned = [w.shape for w in self.shape.weights if w.tuned and len(w.shape) > 1]
        covered = filter(self.structure.covers, tuned)
        return each * sum(prod(s[:-2]) * self._bytes(*s[-2:]).factors for s in covered)

    def _bytes(self, rows: int, columns: int) -> MatrixBytes:
        """What the structure needs for a matrix, or for a chunk of its rows."""
        return self.structure.matrix_bytes(
            rows, columns, stored=self.own, computed=self.compute, copies=self.copies
        )

    def scratch(self) -> int:
        """The arenas of engine/probe/scratch.py at their highest: a module's perturbed weight or
        weights, and with rank-1 products a padded copy of their input."""
        matrices = [self._matrix(w) for w in self.shape.weights if w.name != self.shape.head]
        texts = [(self.shape.train, self.rows * self.copies)]
        if self.shape.evaluation:
            texts.append((self.shape.evaluation, self.recipe.eval.batch_size))
        heads = [self._head_matrix(x, rows) for x, rows in texts]
        return max(matrices + heads) + self._inputs()

    def _matrix(self, weight: Weight) -> int:
        if not weight.tuned or weight.kind == "table":
            return 0
        if weight.kind == "experts" and self.structure.covers(weight.shape):  # one after the other
            return self._bytes(*weight.shape[-2:]).copy
        if weight.kind in ("whole", "experts"):
            vector = weight.numel == max(weight.shape, default=1)  # IA3's have a row or a column
            return weight.numel * (4 * self.runs if vector else self.compute)
        return self._bytes(weight.shape[0], weight.shape[1]).copy

    def _head_matrix(self, texts: Texts, rows: int) -> int:
        [head] = [w for w in self.shape.weights if w.name == self.shape.head]
        if not head.tuned or not texts.scored:
            return 0
        return self._bytes(self._words(texts, rows), self.shape.hidden).copy

    def _inputs(self) -> int:
        """Of the widest input of a tuned matrix, what its product keeps."""
        tuned = [w.shape for w in self.shape.weights if w.tuned and w.kind == "product"]
        each = max((self._bytes(*shape).input for shape in tuned), default=0)
        return self._vectors(self.shape.train, self.rows * self.copies) * each

    @property
    def runs(self) -> int:
        """Rows of a pass that have a vector of their own."""
        return self.copies * (self.rows if self.recipe.optimizer.scope == "example" else 1)

    def checks(self) -> int:
        """What zoft/engine/moved.py takes: what is tuned outside the blocks and in the largest of them
        once more, and all logits of one example; or the head as it is computed with."""
        mine = [w for w in self.shape.weights if w.tuned or w.name == self.shape.head]
        exact = all(self.kept(w) == 4 * w.numel for w in mine)
        moved, largest = dict[int | None, int](), 0
        for w in mine:
            each = self.own if w.adapter else 4 if exact else self.compute
            moved[w.block] = moved.get(w.block, 0) + each * w.numel * w.tuned
            largest = max(largest, 0 if exact or w.adapter else 4 * w.numel * w.tuned)
        outside, texts = moved.pop(None, 0), self.shape.train
        logits = texts.rows * texts.typical * self.shape.vocabulary * 4
        return outside + max(moved.values(), default=0) + largest + logits

    # -- passes -----------------------------------------------------------------------------------

    def _vectors(self, texts: Texts, rows: int) -> int:
        tune = self.recipe.tune
        virtual = tune.virtual_tokens if tune.method == "prompt" else 0
        return rows * texts.rows * (texts.longest + virtual)

    def _words(self, texts: Texts, rows: int) -> int:
        """Of the vocabulary, at a time (engine/probe/head.py)."""
        if not self.shape.trace(1, 8).bare_head:
            return self.shape.vocabulary
        scored = max(1, rows * texts.rows * texts.scored)
        return min(self.shape.vocabulary, chunk_words(scored, self.shape.hidden))

    def blocks(self, texts: Texts, rows: int, copies: int) -> int:
        """Activations of a pass over so many examples, so often."""
        live = self.shape.trace(rows * texts.rows * copies, texts.longest).live
        return self._taken(live, HEAP_BLOCKS)

    def head(self, texts: Texts, rows: int, copies: int) -> int:
        """The hidden states and, where all words count, the logits: as computed, and in float32 beside
        the chunk before or their exponentials."""
        hidden = self._vectors(texts, rows * copies) * self.shape.hidden * self.compute
        scored = rows * copies * texts.rows * texts.scored
        low = self.compute if self.compute < 4 else 0
        logits = scored * self._words(texts, rows * copies) * (low + 2 * 4)
        return self._taken(2 * hidden + logits, HEAP_HEAD)

    def answers(self, texts: Texts) -> int:
        """Prompts as one pass, every token's keys and values, and a layer's again as they grow; logits
        of the last column, as computed and in float32."""
        rows, longest = self.recipe.eval.batch_size, texts.longest
        tokens = longest + self.recipe.eval.max_new_tokens
        kept = rows * tokens * self.shape.cache
        grows = kept // max(1, self.shape.blocks)
        logits = rows * self.shape.vocabulary * (self.compute + 2 * 4)
        live = self.shape.trace(rows, longest).live
        return self._taken(live + kept + grows + logits, HEAP_BLOCKS)

    def _taken(self, live: int, heap: float) -> int:
        return int(live * heap) if self.recipe.device == "cpu" else live
