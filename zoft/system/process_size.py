"""What a process takes beside its model: libraries, what they compile, a tokenizer.

Resident sizes, measured on Linux: `python benchmarks/plan.py --libraries` and benchmarks/RESULTS.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from zoft.system.host_memory import KEPT_KERNELS

# Of a run whose model has no size: torch, transformers, peft, numba and its kernels, matplotlib.
LIBRARIES = 620 * 2**20
IMPORTED = 440 * 2**20  # of these before the first pass: nothing compiled, nothing drawn
# torchao and bitsandbytes, which peft imports where they are installed.
QUANTIZERS = 50 * 2**20
KERNEL = 2**20  # of a product that oneDNN compiled for one shape
WORD = 700  # of a tokenizer's vocabulary: 32 MiB with 49,152
TOKEN = 40  # of a token in a Python tuple: a pointer and an int
EXAMPLE = 1024  # of an example around its tokens


def libraries() -> int:
    """The size of a run without a model, with what is installed here."""
    return LIBRARIES + _quantizers()


def conversion(file: int, tensors: Sequence[int], words: int) -> int:
    """The size of a process that rewrites a file of so many bytes in float32: it has imported all of
    that, and holds the file, the tensors, the largest once more, and two tokenizers."""
    held = file + sum(tensors) + max(tensors) + 2 * tokenizer(words)
    return IMPORTED + _quantizers() + held


def tokenizer(words: int) -> int:
    return WORD * words


def examples(number: int, tokens: int) -> int:
    return EXAMPLE * number + TOKEN * tokens


def kernels() -> int:
    """What oneDNN keeps of the products that it compiled, as it does in low precision on a CPU."""
    return KEPT_KERNELS * KERNEL


def _quantizers() -> int:
    return QUANTIZERS if find_spec("torchao") else 0
