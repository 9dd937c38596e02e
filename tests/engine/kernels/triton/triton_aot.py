"""Compiles every Triton kernel with no GPU and prints what came out as JSON; `test_compiled.py` runs
it in a process of its own, where nothing asked for the interpreter.

Counted are SASS instructions of one lane, uniform ones included, as nvdisasm prints them:

    loop   of the innermost loop that does the work, per element and turn: a turn is one direction in
           updates, all that is done in the others
    once   of everything else, per element; 0 where what is around the loop serves a whole tile
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from zoft.engine.kernels.numerics.exact_sum import Rounding, direction_sum
from zoft.engine.kernels.triton import probe as triton_probe
from zoft.engine.kernels.triton import products as triton_products
from zoft.engine.kernels.triton import signs as triton_signs
from zoft.engine.kernels.triton import sweeps as kernels
from zoft.engine.kernels.triton import update as triton_update
from zoft.engine.kernels.triton.launch import PRODUCT, SWEEP
from zoft.recipe.sections.optimizers.rule import AdamConstants

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
ADAM = "decay beta1 beta2 rest1 rest2 lr correction eps"
SUM, STORED, WINDOW = triton_update.SUM, triton_update.STORED, triton_update.WINDOW
AMSGRAD = triton_update.AMSGRAD


class Case(NamedTuple):
    kernel: Any
    arguments: dict[str, Any]  # Triton's type, ":16" if aligned; None and others are constants
    elements: int  # of one lane in a turn of its loop, or in all
    architectures: tuple[int, ...]
    options: dict[str, Any] = SWEEP


def perturb(
    out: str, weight: str, *, gaussian: bool = False, each: bool = False, **extra: str
) -> Case:
    arguments = {
        "out": f"*{out}", "minus": None, "weight": f"*{weight}", "rows": None, "ks": None,
        "scales": None, "table": "*fp32:16" if gaussian else None, "count": "i64",
        "pieces": "i32", "offset": "i64", "seed": "i64", "step": "i64", "param": "i64", "k": "i64",
        "scale": "fp32", "GAUSSIAN": gaussian, "EACH": each, **extra,
    }  # fmt: skip
    return Case(triton_probe.perturb_kernel, arguments, 8 if gaussian else 16, (90,))


def update(mode: int, weight: str) -> dict[str, Any]:
    moment = "*fp32" if mode in (STORED, AMSGRAD) else None
    return {
        "weight": f"*{weight}", "exp_avg": moment, "exp_avg_sq": moment,
        "max_exp_avg_sq": "*fp32" if mode == AMSGRAD else None, "plan": "*i64:16",
        "terms": "i32", "sums": "i32", "param": "i64", **dict.fromkeys(ADAM.split(), "fp32"),
        "rounding_seed": "i64", "rounding_step": "i64", "MODE": mode,
    }  # fmt: skip


def dense(mode: int, weight: str, *, gaussian: bool = False) -> Case:
    pairs = triton_update.pairs_of(mode, gaussian)
    arguments = {
        **update(mode, weight), "table": "*fp32:16" if gaussian else None, "n": "i64",
        "seed": "i64", "GAUSSIAN": gaussian, "PAIRS": pairs,
    }  # fmt: skip
    return Case(triton_update.dense_kernel, arguments, 8 * pairs, (90,))


def rank1(mode: int, weight: str, *, aligned: bool = True) -> Case:
    rows = triton_update.rows_of(mode, aligned)
    arguments = {
        **update(mode, weight), "u": "*i8", "v_factors": "*i8", "parts": "i32",
        "batches": "i32", "stride": "i64:16", "rows": "i64", "columns": "i64", "ALIGNED": aligned,
        "ROWS": rows,
    }  # fmt: skip
    return Case(triton_update.rank1_kernel, arguments, 8 * rows, (90,))


def cases() -> dict[str, Case]:
    """By name. Every kernel for both architectures, its variants for one."""
    draw = {"seed": "i64"}
    around = {"which": "*i64:16", "columns": "i64:16", "count": "i32"}
    both = (80, 90)
    return {
        "perturb float32": perturb("fp32", "fp32")._replace(architectures=both),
        "perturb bfloat16": perturb("bf16", "bf16"),
        "perturb float16": perturb("fp16", "fp16"),
        "perturb bfloat16 Gaussian": perturb("bf16", "bf16", gaussian=True),
        "perturb_pair float32 to bfloat16": perturb("bf16", "fp32", minus="*bf16"),
        "perturb_rows bfloat16": perturb("bf16", "bf16", rows="*i64:16"),
        "perturb_each float32": perturb("fp32", "fp32", each=True, ks="*i64:16", scales="*fp32:16"),
        "signs": Case(
            triton_signs.signs_kernel,
            {"out": "*i8:16", "table": "*i64:16", "ks": "*i64:16", "n": "i32", "step": "i64", **draw},
            4, both,
        ),
        "factors": Case(
            triton_signs.factors_kernel,
            {"u": "*i8:16", "v": "*i8:16", "plan": "*i64:16", "terms": "i32", "param": "i64",
             "rows": "i64:16", "columns": "i64:16", "width": "i64:16", **draw},
            4, both,
        ),
        "project bfloat16, 3 twins, padded": Case(
            triton_products.project_kernel,
            {"s": "*fp32:16", "x": "*bf16:16", "v": "*i8:16", "scales": "*fp32:16",
             "padded": "*bf16:16", "vectors": "i32", "factors": "i64", "width": "i64:16", "J": 3,
             **around},
            16, both, PRODUCT,
        ),
        "spread bfloat16": Case(
            triton_products.spread_kernel,
            {"padded": "*bf16:16", "s": "*fp32:16", "vectors": "i32", "width": "i64:16", "BLOCK": 16,
             **around},
            2, both, PRODUCT,
        ),
        "widen bfloat16": Case(
            triton_products.widen_kernel,
            {"out": "*bf16:16", "weight": "*bf16:16", "u": "*i8:16", "parts": "i32",
             "rows": "i64:16", "columns": "i64:16", "width": "i64:16", "factors": "i32"},
            32, both, PRODUCT,
        ),
        "prefill": Case(
            triton_products.prefill_kernel,
            {"y": "*fp32:16", "s": "*fp32:16", "u": "*i8:16", "bias": "*fp32:16", "parts": "i32",
             "vectors": "i32", "biases": "i32", **around},
            32, both, PRODUCT,
        ),
        "add_directions float32": dense(SUM, "fp32")._replace(architectures=both),
        "add_directions bfloat16": dense(SUM, "bf16"),
        "add_directions float16": dense(SUM, "fp16"),
        "add_directions bfloat16 Gaussian": dense(SUM, "bf16", gaussian=True),
        "radazo_full float32": dense(STORED, "fp32"),
        "radazo_full bfloat16": dense(STORED, "bf16")._replace(architectures=both),
        "zo_adamm float32": dense(AMSGRAD, "fp32"),
        "zo_adamm bfloat16": dense(AMSGRAD, "bf16"),
        "radazo_window bfloat16": dense(WINDOW, "bf16")._replace(architectures=both),
        "radazo_window float32 Gaussian": dense(WINDOW, "fp32", gaussian=True),
        "add_directions float32 rank-1": rank1(SUM, "fp32"),
        "add_directions bfloat16 rank-1": rank1(SUM, "bf16")._replace(architectures=both),
        "add_directions bfloat16 rank-1, columns % 512 != 0": rank1(SUM, "bf16", aligned=False),
        "radazo_full float32 rank-1": rank1(STORED, "fp32")._replace(architectures=both),
        "zo_adamm bfloat16 rank-1": rank1(AMSGRAD, "bf16"),
        "radazo_window bfloat16 rank-1": rank1(WINDOW, "bf16")._replace(architectures=both),
    }  # fmt: skip


def compiled(case: Case, architecture: int) -> dict[str, Any]:
    """One row of the table, and what the PTX holds of that no update may do."""
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(case.kernel.arg_names):
        kind = case.arguments[name]
        if isinstance(kind, str):
            signature[name], _, aligned = kind.partition(":")
            if aligned:
                attributes[i,] = [["tt.divisibility", 16]]
        else:
            signature[name], constants[name] = "constexpr", kind
    source = triton.compiler.ASTSource(case.kernel, signature, constants, attributes)
    binary = triton.compile(source, GPUTarget("cuda", architecture, 32), options=case.options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(binary.asm["ptx"])
        sass = _run("nvdisasm", "-c", str(cubin))
        usage = _run("cuobjdump", "-res-usage", str(cubin))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, shared, local = map(int, found.groups())
    loop, rest = instructions(sass)
    text = binary.asm["ptx"]
    tiles = (triton_update.dense_kernel, triton_update.rank1_kernel)
    if loop and case.kernel not in tiles:
        rest = 0
    return {
        "registers": registers,
        "spills": stack + local,
        "shared": shared,
        "loop": round(loop / case.elements, 2),
        "once": round(rest / case.elements, 2),
        "inexact": sorted(set(re.findall(r"approx|ftz|div\.full|atom|red\.", text))),
        "fma": len(re.findall(r"\bfma\.", text)),
        "barriers": len(re.findall(r"bar\.sync|shfl\.", text)),
    }


def instructions(sass: str) -> tuple[int, int]:
    """Length of the innermost loop with the most stores and additions, and of all the rest."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line.strip()):
            labels[label[1]] = len(lines)
        elif instruction := re.match(r"/\*[0-9a-f]{4,}\*/\s+(.*);", line.strip()):
            lines.append(instruction[1])
    # A branch to itself pads the code behind its end.
    stops = (i for i, x in enumerate(lines) if x.startswith("BRA") and labels.get(_target(x)) == i)
    end = next(stops, len(lines))
    loops = [
        (labels[_target(x)], i + 1)
        for i, x in enumerate(lines[:end])
        if "BRA" in x and labels.get(_target(x), end) <= i
    ]
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]

    def work(loop: tuple[int, int]) -> tuple[int, int]:
        text = "\n".join(lines[slice(*loop)])
        return len(re.findall(r"\b(?:FADD|FFMA|DADD|STG)\b", text)), loop[0] - loop[1]

    if not inner:
        return 0, end
    begin, stop = max(inner, key=work)
    return stop - begin, end - (stop - begin)


def _target(line: str) -> str:
    found = re.search(r"`\((\.L_x_\d+)\)", line)
    return found[1] if found else ""


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run(
        [TOOLS / tool, *arguments], capture_output=True, text=True, check=True
    ).stdout


def variants() -> dict[str, int]:
    """How many compiled variants of each kernel serve three calls that differ in their step alone."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    seen: dict[str, set[str]] = {}

    def record(kernel: Any) -> None:
        # What a launch on a GPU would look up in its cache, without the launch.
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)

        def run(*arguments: Any, **options: Any) -> None:
            del options["grid"], options["warmup"]
            _, specialized, _ = bind(*arguments, **options)
            seen.setdefault(kernel.__name__, set()).add(f"{specialized} {options}")

        kernel.run = run

    for kernel in {case.kernel for case in cases().values()}:
        record(kernel)
    weight, matrix = torch.zeros(1000), torch.zeros(10, 100)
    signs = torch.zeros(4000, dtype=torch.int8)
    for seed, step, k, scale in (
        (1, 1, 1, 1.0),
        (2**32 - 1, 16, 0, -1e-3),
        (0, 2**32 - 1, 2**24 - 1, 3.0),
    ):
        key = {"seed": seed, "step": step, "param": seed}
        kernels.perturb(weight, weight, **key, k=k, scale=scale, gaussian=False)
        table = torch.zeros(1 + k % 2, 4, dtype=torch.int64)
        kernels.signs(signs, table, seed=seed, step=step, ks=torch.arange(1 + k % 17))
        addresses = [(step, i) for i in range(1 + k % 17)]
        terms = direction_sum(seed, False, addresses, [scale] * len(addresses))
        adam, rounding = AdamConstants(0.9, 0.99, scale, step / 2**32, 1e-8), Rounding(seed, step)
        kernels.update_dense(weight, [terms], param=seed, decay=scale, rounding=rounding)
        kernels.update_rank1(matrix, [terms], param=seed, decay=scale, rounding=rounding)
        window = [terms] * (1 + k % 17)
        kernels.update_dense(
            weight.half(), window, param=seed, decay=1.0, rounding=rounding, adam=adam
        )
    return {name: len(found) for name, found in seen.items()}


if __name__ == "__main__":
    if sys.argv[1:] == ["--variants"]:
        print(json.dumps(variants()))
        sys.exit()
    rows = {
        f"{name} | sm_{architecture}": compiled(case, architecture)
        for name, case in cases().items()
        if not sys.argv[1:] or any(word in name for word in sys.argv[1:])
        for architecture in case.architectures
    }
    print(json.dumps(rows))
