"""On a GPU: zoft's step beside two plain passes, MeZO's procedure and ZO2's, and each sweep's GB/s.

    python benchmarks/gpu.py --check      every Triton kernel against the reference on the CPU
    python benchmarks/gpu.py              two tables of markdown

The model is a LLaMA of random weights (about 1B unless the options say otherwise), stored in --dtype,
all weights tuned; only the last token of a row is scored, for everybody. A step is both probes and the
update. MeZO's procedure walks the weights +eps, -2 eps, +eps and draws the noise of every parameter anew
(peers.py); ZO2's does the same walk block by block, inside one pass of which the first half runs at +eps
and the second at -eps. Launches and synchronisations are counted by torch.profiler over one step.
Without a GPU this prints one line.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from machine import stamp
from peers import MezoProcedure
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from zoft.engine.kernels import reference
from zoft.engine.kernels.dispatch import kernels_for
from zoft.engine.kernels.numerics.exact_sum import Rounding, direction_sum
from zoft.recipe.sections.optimizers.rule import AdamConstants
from zoft.system.philox import PURPOSE_U, PURPOSE_V

EPSILON, RATE = 1e-3, 1e-6
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Step = Callable[[], object]


def main() -> None:
    """Read the options; check or measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="parity with the reference, no times")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--row", type=int, default=512, help="tokens of a row")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 4096, 16_384])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--paired", action="store_true", help="both signs in one pass")
    a = parser.parse_args()
    device = torch.device(a.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU")
        return
    if a.check:
        check(device)
        return
    # IEEE float32 and reproducible sums (docs/methods.md#repeatable-arithmetic-on-gpus).
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    print("\n".join([*steps(a, device), "", *sweeps(a, device), "", where(device)]))


def where(device: torch.device) -> str:
    """The card, and machine.py's stamp."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    return f"{card}; {stamp()}"


# -- steps ------------------------------------------------------------------------------------


def steps(a: argparse.Namespace, device: torch.device) -> list[str]:
    """One row for each contestant and batch."""
    model = toy(a, device)
    size = sum(p.numel() for p in model.parameters())
    lines = [
        f"{size / 1e9:.2f}B weights in {a.dtype}, rows of {a.row} tokens, median of {a.repeats}",
        "",
        "| tokens | step | seconds | over two passes | launches | host syncs | peak GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for tokens in a.tokens:
        ids = torch.randint(0, a.vocabulary, (max(1, tokens // a.row), a.row), device=device)
        contestants: dict[str, Step] = {
            "two plain passes": lambda ids=ids: (plain(model, ids), plain(model, ids)),  # type: ignore[misc]
            "zoft rank-1": zoft_step(model, ids, rank1=True, paired=a.paired),
            "zoft dense": zoft_step(model, ids, rank1=False, paired=a.paired),
            "MeZO": mezo_step(model, ids),
            "ZO2": zo2_step(model, ids),
        }
        base = None
        for name, step in contestants.items():
            seconds = timed(step, a.repeats, device)
            base = base or seconds
            launches, syncs = counted(step, device)
            lines.append(
                f"| {tokens} | {name} | {seconds:.4f} | {seconds / base:.2f} | {launches} | {syncs} "
                f"| {peak(step, device) / 1e9:.2f} |"
            )
    return lines


def toy(a: argparse.Namespace, device: torch.device) -> LlamaForCausalLM:
    """LLaMA's shapes: heads of 64, four queries to a key, inner width 4 times the outer's."""
    heads = max(1, a.width // 64)
    config = LlamaConfig(
        vocab_size=a.vocabulary, hidden_size=a.width, intermediate_size=4 * a.width,
        num_hidden_layers=a.layers, num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4), max_position_embeddings=max(2048, a.row),
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    model.to(getattr(torch, a.dtype)).eval().requires_grad_(False)
    return model


@torch.no_grad()
def plain(model: LlamaForCausalLM, ids: Tensor) -> float:
    """The untouched model's loss of each row's last token, read on the host."""
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=2).logits[:, 0]
    return nn.functional.cross_entropy(logits.float(), ids[:, -1]).item()


def zoft_step(model: LlamaForCausalLM, ids: Tensor, *, rank1: bool, paired: bool) -> Step:
    """Both probes and MeZO's update by zoft. All that this file knows of `zo` is in here."""
    from zoft.engine.estimator import Estimator, Losses
    from zoft.engine.probe.directions import Directions
    from zoft.engine.probe.structures.table import STRUCTURES, structure_of
    from zoft.engine.probe.view import ProbedModel

    tuned = dict(model.named_parameters())
    numbers = {name: i for i, name in enumerate(tuned)}
    view = ProbedModel(model, tuned, numbers, model.dtype, ids[:1, :8])
    directions = Directions(0, False, STRUCTURES["rank1" if rank1 else "dense"])
    estimator = Estimator(view, directions, EPSILON, paired=paired)
    last = torch.arange(1, len(ids) + 1, device=ids.device) * ids.shape[1] - 2
    weights = torch.ones(len(ids), dtype=torch.float64, device=ids.device)
    number = 0

    def losses() -> Losses:
        found = view.token_losses(ids, last, ids[:, -1])
        return Losses(found.double().view(-1, len(ids)), weights)

    def step() -> None:
        nonlocal number
        number += 1
        grads = estimator.measure(number, losses).projected_grad
        update = [-RATE * c for c in grads]
        total = directions.total([(number, k) for k in range(len(grads))], update)
        for name, parameter in tuned.items():
            structure_of(parameter, directions.structure).update(
                parameter.detach(), [total], param=numbers[name], decay=1.0,
                rounding=Rounding(0, number),
            )  # fmt: skip

    return step


def mezo_step(model: LlamaForCausalLM, ids: Tensor) -> Step:
    """MeZO's procedure, in place."""
    procedure = MezoProcedure(model, EPSILON)
    return lambda: procedure.step(lambda: plain(model, ids), 1, RATE)


def zo2_step(model: LlamaForCausalLM, ids: Tensor) -> Step:
    """ZO2's: each block runs the rows at +eps and their twins at -eps before the next one does."""
    blocks: list[nn.Module] = [*model.model.layers, model.model.embed_tokens, model.model.norm]

    def walk(i: int, scale: float) -> None:
        generator = torch.Generator(ids.device).manual_seed(1 + i)
        for parameter in blocks[i].parameters():
            z = torch.normal(0.0, 1.0, parameter.shape, generator=generator, device=ids.device,
                             dtype=parameter.dtype)  # fmt: skip
            parameter.add_(z, alpha=scale)

    def dual(i: int) -> Callable[..., Any]:
        forward = blocks[i].forward

        def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            halves = x.chunk(2)
            walk(i, EPSILON)
            plus = forward(halves[0], *args, **kwargs)
            walk(i, -2 * EPSILON)
            minus = forward(halves[1], *args, **kwargs)
            walk(i, EPSILON)
            if isinstance(plus, tuple):
                return tuple(torch.cat(pair) for pair in zip(plus, minus, strict=True))
            return torch.cat([plus, minus])

        return run

    @contextmanager
    def doubled() -> Iterator[None]:
        try:
            for i, block in enumerate(blocks):
                block.forward = dual(i)
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)

    @torch.no_grad()
    def step() -> None:
        with doubled():  # the tied head runs at theta itself, to our disadvantage
            logits = model(input_ids=ids.repeat(2, 1), use_cache=False, logits_to_keep=2).logits
        loss = nn.functional.cross_entropy(
            logits[:, 0].float(), ids[:, -1].repeat(2), reduction="none"
        )
        plus, minus = loss.view(2, -1).mean(1).tolist()
        for i in range(len(blocks)):
            walk(i, -RATE * (plus - minus) / (2 * EPSILON))

    return step


# -- sweeps -----------------------------------------------------------------------------------


def sweeps(a: argparse.Namespace, device: torch.device) -> list[str]:
    """GB/s of each sweep over one large matrix, and that over the card's copy rate."""
    kernels, dtype = kernels_for(device), getattr(torch, a.dtype)
    weight = torch.randn(4 * a.width, 4 * a.width, device=device).to(dtype)
    out, other = torch.empty_like(weight), torch.empty_like(weight)
    m, v = (torch.zeros(weight.shape, device=device) for _ in range(2))
    key: dict[str, Any] = {"seed": 1, "step": 2, "param": 3, "k": 0, "scale": EPSILON}
    common: dict[str, Any] = {"param": 3, "decay": 1.0, "rounding": Rounding(1, 2)}
    adam = AdamConstants(0.9, 0.99, 1e-6, 0.01, 1e-8)

    def terms(count: int, *, gaussian: bool = False) -> Any:
        return direction_sum(1, gaussian, [(2, k) for k in range(count)], [1e-9] * count)

    one, two, many = terms(1), terms(1, gaussian=True), terms(16)
    window = [terms(1) for _ in range(22)]
    width = weight.element_size()
    cases: dict[str, tuple[int, Step]] = {
        "copy": (2 * width, lambda: out.copy_(weight)),
        "perturb": (2 * width, lambda: kernels.perturb(out, weight, **key, gaussian=False)),
        "perturb Gaussian": (2 * width, lambda: kernels.perturb(out, weight, **key, gaussian=True)),
        "perturb_pair": (
            3 * width,
            lambda: kernels.perturb_pair(out, other, weight, **key, gaussian=False),
        ),
        "add_directions, 1": (2 * width, lambda: kernels.update_dense(weight, [one], **common)),
        "add_directions, 1 Gaussian": (
            2 * width,
            lambda: kernels.update_dense(weight, [two], **common),
        ),
        "add_directions, 1 rank-1": (
            2 * width,
            lambda: kernels.update_rank1(weight, [one], **common),
        ),
        "add_directions, 16 rank-1": (
            2 * width,
            lambda: kernels.update_rank1(weight, [many], **common),
        ),
        "radazo_full": (
            2 * width + 16,
            lambda: kernels.update_dense(weight, [one], adam=adam, moments=(m, v), **common),
        ),
        "radazo_window, 22": (
            2 * width,
            lambda: kernels.update_dense(weight, window, adam=adam, **common),
        ),
    }
    lines = ["| sweep | GB/s | over copy |", "|---|---|---|"]
    copied = 0.0
    for name, (moved, sweep) in cases.items():
        rate = moved * weight.numel() / timed(sweep, a.repeats, device) / 1e9
        copied = copied or rate
        lines.append(f"| {name} | {rate:.0f} | {rate / copied:.2f} |")
    return lines


# -- measuring --------------------------------------------------------------------------------


def sync(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(step: Step, repeats: int, device: torch.device) -> float:
    """Median seconds, after two steps that compile and allocate."""
    seconds = []
    for i in range(repeats + 2):
        sync(device)
        begun = time.perf_counter()
        step()
        sync(device)
        if i > 1:
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def counted(step: Step, device: torch.device) -> tuple[int, int]:
    """Kernel launches of one step, and how often the host waited for the device."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    sync(device)
    with torch.profiler.profile(activities=activities) as profile:
        step()
    names = [event.name for event in profile.events() or ()]
    launches = sum("LaunchKernel" in name for name in names)
    # A copy to pageable memory on the host waits, too: it shows as the wait behind it.
    return launches, sum(name.startswith(("cudaStreamSync", "cudaEventSync")) for name in names)


def peak(step: Step, device: torch.device) -> int:
    """Bytes that torch held at most during a step."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device)


# -- parity -----------------------------------------------------------------------------------


def check(device: torch.device) -> None:
    """Every kernel on the device against the reference on the CPU, bit for bit."""
    from zoft.engine.kernels.triton import sweeps as triton

    bad = 0
    for name, run in parities().items():
        for dtype in DTYPES:
            ours, theirs = run(triton, device, dtype), run(reference, torch.device("cpu"), dtype)
            close = name == "project"  # the order of its sums is free
            same = all(equal(x.cpu(), y, close) for x, y in zip(ours, theirs, strict=True))
            bad += not same
            print(f"{'ok  ' if same else 'FAIL'} {name} {str(dtype).removeprefix('torch.')}")
    print(where(device))
    if bad:
        raise SystemExit(f"{bad} kernels differ from the reference")


def equal(x: Tensor, y: Tensor, close: bool) -> bool:
    """Of the same bits; two NaN are equal."""
    if close:
        return torch.allclose(x, y, rtol=1e-5, atol=1e-4)
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32}[x.element_size()]
    return bool(((x.view(kind) == y.view(kind)) | (x.isnan() & y.isnan())).all())


def parities() -> dict[str, Callable[[Any, torch.device, torch.dtype], list[Tensor]]]:
    """Name -> what a kernel module makes of the same inputs on a device."""
    key: dict[str, Any] = {"seed": 2**32 - 3, "step": 17, "param": 0xDEADBEEF}
    common: dict[str, Any] = {"param": 11, "decay": 0.9999, "rounding": Rounding(7, 3)}
    adam = AdamConstants(0.9, 0.99, 1e-3, 0.0297, 1e-8)
    sizes = (1, 255, 8193, 1_000_003)
    shapes = ((7,), (1_000_003,), (37, 577), (300, 2048))

    def weights(shape: int | tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        shape = (shape,) if isinstance(shape, int) else shape
        scale = torch.exp2(torch.randint(-30, 6, shape, generator=generator).float())
        return (torch.randn(shape, generator=generator) * scale).to(dtype).to(device)

    def perturbed(gaussian: bool) -> Callable[[Any, torch.device, torch.dtype], list[Tensor]]:
        def run(kernels: Any, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
            found = []
            for n in sizes:
                for offset in (0, 2**40 + 77):
                    weight = weights(n, device, torch.float32)
                    out, plus, minus = (
                        torch.empty(n, dtype=dtype, device=device) for _ in range(3)
                    )
                    z = {**key, "k": 5, "scale": 3e-3, "gaussian": gaussian, "offset": offset}
                    kernels.perturb(out, weight, **z)
                    kernels.perturb_pair(plus, minus, weight.to(dtype), **z)
                    found += [out, plus, minus]
            matrix, rows = (
                weights((41, 1031), device, dtype),
                torch.tensor([40, 0, 7], device=device),
            )
            out = torch.empty(3, 1031, device=device)
            kernels.perturb_rows(out, matrix, rows, **key, k=5, scale=0.01, gaussian=gaussian)
            return [*found, out]

        return run

    def each(kernels: Any, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        ks = torch.tensor([0, 5, 2**24 - 1], device=device)
        scales = torch.tensor([1e-3, -1e-3, 0.3], device=device)
        out = torch.empty(3, 8193, dtype=dtype, device=device)
        kernels.perturb_each(out, weights(8193, device, dtype), **key, ks=ks, scales=scales)
        return [out]

    def factors(kernels: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        out = torch.empty(3 * (577 + 2048), dtype=torch.int8, device=device)
        table = [[5, PURPOSE_U, 577, 0], [5, PURPOSE_V, 2048, 3 * 577]]
        kernels.signs(
            out, torch.tensor(table, device=device), seed=1, step=2,
            ks=torch.tensor([0, 5, 9], device=device),
        )  # fmt: skip
        return out[: 3 * 577].view(3, 577), out[3 * 577 :].view(3, 2048)

    def project(kernels: Any, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        _, v = factors(kernels, device)
        x = weights((6, 2048), device, torch.float32).clamp(-1, 1).to(dtype)
        s = torch.empty(1, 6, device=device)
        padded = torch.zeros(6, 2056, dtype=dtype, device=device)
        which = torch.tensor([2, 0, 1], device=device)
        kernels.project(s, x, v[None], which, torch.full((3,), 1e-3, device=device), padded)
        return [s, padded.float()]

    def around(kernels: Any, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        u, v = factors(kernels, device)
        which = torch.tensor([2, 0, 1], device=device)
        s = torch.linspace(-1, 1, 6, device=device)
        padded = torch.zeros(6, 2056, dtype=dtype, device=device)
        kernels.spread(padded, s, which, 2048)
        wide = torch.empty(577, 2056, dtype=dtype, device=device)
        kernels.widen(wide, weights((577, 2048), device, dtype), u)
        y = torch.empty(6, 577, device=device)
        kernels.prefill(y, s, u, which, torch.ones(1, 577, device=device) / 3)
        return [u, v, padded, wide, y]

    def updated(
        gaussian: bool, rank1: bool
    ) -> Callable[[Any, torch.device, torch.dtype], list[Tensor]]:
        def terms(count: int, step: int) -> Any:
            coefficients = [(-1) ** i * 1e-3 / (1 + i) for i in range(count)]
            return direction_sum(7, gaussian, [(step, k) for k in range(count)], coefficients)

        def run(kernels: Any, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
            found = []
            for shape in shapes:
                a, b, c = (weights(shape, device, dtype) for _ in range(3))
                m, v = (
                    weights(shape, device, torch.float32) * 1e-4,
                    torch.zeros(shape, device=device),
                )
                outer = rank1 and len(shape) == 2
                update = kernels.update_rank1 if outer else kernels.update_dense
                update(a, [terms(5, 3)], **common)
                update(b, [terms(2, 3)], adam=adam, moments=(m, v), **common)
                update(c, [terms(2, s) for s in (1, 2, 3)], adam=adam, **common)
                found += [a, b, c, m, v]
            return found

        return run

    return {
        "perturb, _pair, _rows": perturbed(False),
        "perturb, _pair, _rows Gaussian": perturbed(True),
        "perturb_each": each,
        "project": project,
        "signs, spread, widen, prefill": around,
        "updates": updated(False, False),
        "updates Gaussian": updated(True, False),
        "updates rank-1": updated(False, True),
    }


if __name__ == "__main__":
    main()
