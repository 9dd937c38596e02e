"""What each thing of a run takes: weights, moments, directions, the activations of a pass; in bytes."""

from __future__ import annotations

from math import prod

from zoft.engine.probe.directions import MatrixBytes
from zoft.engine.probe.head import chunk_words
from zoft.engine.probe.structures.table import STRUCTURES
from zoft.planning.workload import Shape, Texts, Weight
from zoft.recipe.resolved import Resolved
from zoft.system.device import DTYPES

ALIGN = 512  # bytes; where a tensor of a block's arena may begin
# On a CPU a pass takes so many times what lives in it: a heap has gaps where batches of other widths
# were, and matrix products in low precision pack their operands. Measured, see benchmarks/RESULTS.md.
HEAP_BLOCKS, HEAP_HEAD = 2.0, 1.8


class Count:
    """Bytes of one thing after the other, for one recipe and shape."""

    def __init__(self, recipe: Resolved, shape: Shape) -> None:
        self.recipe, self.shape, self.quantization = recipe, shape, recipe.model.quantization
        self.own = DTYPES[recipe.model.dtype].itemsize
        self.compute = DTYPES[recipe.model.compute_dtype].itemsize
        settings = recipe.optimizer
        self.structure = STRUCTURES[settings.structure]
        self.probed = any(w.tuned for w in shape.weights)
        paired = self.probed and settings.sides == 2 and settings.paired is not False
        self.copies = 2 if paired else 1
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

    # -- the tail ---------------------------------------------------------------------------------

    def tail_states(self) -> int:
        """The hidden states on which the head's rows are solved, in float64, once more as they are
        multiplied."""
        tune, number = self.recipe.tune, self.shape.train.number
        rows = min(tune.tail_rows, number or tune.tail_rows)
        return 2 * 8 * rows * self.shape.hidden if tune.tail != "none" else 0

    def tail_inputs(self) -> int:
        """What entered the last blocks in all passes of a step, and left them."""
        exact = [w.block for w in self.shape.weights if w.exact]
        settings = self.recipe.optimizer
        passes = settings.directions * settings.sides + (settings.sides == 1) if self.probed else 1
        vectors = self._vectors(self.shape.train, self.recipe.train.batch_size * passes)
        kept = len({*exact} - {None}) + 1
        return vectors * self.shape.hidden * self.compute * kept if exact else 0

    def tail_gradient(self) -> int:
        """Activations of one of the last blocks with their graph, its gradient, and numbers of the size
        of its largest weight while that is moved (zoft/engine/tail/update.py)."""
        last = max(
            (w.block for w in self.shape.weights if w.exact and w.block is not None), default=0
        )
        mine = [w for w in self.shape.weights if w.exact and w.block == last]
        if not mine:
            return 0
        texts, names = self.shape.train, {w.name for w in mine}
        saved = self.shape.saved(names, self.rows * self.copies * texts.rows, texts.longest)
        largest = max(w.numel for w in mine)
        moving = (7 if self.own < 4 else 5) * 4 * largest
        return self._taken(saved, HEAP_BLOCKS) + sum(w.numel * self.own for w in mine) + moving

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
