"""`zoft journal show|verify|stats`: what a journal says. No torch: it answers at once."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from zoft.engine.optimizers.measurement import rms
from zoft.errors import EnvironmentProblem, RecipeError
from zoft.runs import complete
from zoft.runs.artefact import HEADER, expected, journal_of, told_steps
from zoft.runs.checksum import UNPROTECTED, protected
from zoft.runs.journal import Entry, Header, missing_entries, parse, read

LAYOUTS = (1, 2)  # of system/philox.py, which imports numpy
ENDS = 3  # lines that `show` prints from the beginning and from the end
PERCENTILES = (5, 50, 95)


@dataclass(frozen=True, slots=True)
class Statistics:
    """`nonfinite` of the `steps` changed nothing; `sizes` are |c| of all others' slopes, ascending."""

    steps: int
    nonfinite: int
    positive: int
    sizes: Sequence[float]

    def percentile(self, percent: int) -> float:
        """The least size that `percent` of all sizes do not exceed."""
        return self.sizes[max(1, -(-len(self.sizes) * percent // 100)) - 1]


def statistics_of(entries: Sequence[Entry]) -> Statistics:
    """Count steps and slopes, and sort the slopes' sizes."""
    finite = [entry.measurement for entry in entries if entry.measurement.finite]
    slopes = [c for m in finite for c in m.projected_grad]
    positive = sum(c > 0 for c in slopes)
    return Statistics(len(entries), len(entries) - len(finite), positive, sorted(map(abs, slopes)))


def show(target: Path, step: int | None, say: Callable[[str], None]) -> None:
    """The header in short and the first and last steps, or one step whole. Raises ZoftError."""
    journal = journal_of(target)
    header, entries = read(journal)
    if step is not None:
        if not 1 <= step <= len(entries):
            raise RecipeError(f"--step {step}: {journal} holds steps 1 to {len(entries)}")
        for line in _whole(entries[step - 1]):
            say(line)
        return
    for line in _head(header):
        say(line)
    shown = entries if len(entries) <= 2 * ENDS else [*entries[:ENDS], None, *entries[-ENDS:]]
    for entry in shown:
        say("..." if entry is None else _short(entry))


def verify(target: Path, say: Callable[[str], None]) -> None:
    """Look for all that can be wrong with a journal without replaying it. Raises EnvironmentProblem."""
    journal = journal_of(target)
    content = journal.read_bytes()
    header, entries, good, _ = parse(journal, content)
    say(f"format     version {header['version']}, {len(entries):,} steps without a gap")
    if good < len(content):
        say(
            f"torn       {len(content) - good} bytes of a last line that was not finished: left out"
        )
    say(f"checksums  {'right in every line' if protected(header) else UNPROTECTED}")
    told = told_steps(journal, header)
    problems = [*_header_problems(header), *_step_problems(entries, told)]
    if problems:
        raise EnvironmentProblem("\n".join(f"{journal}: {problem}" for problem in problems))
    say(f"header     complete: {len(header['parameters'])} tensors, layout {header['layout']}")
    says, files = expected(journal, header, len(entries), len(entries))
    if not files:
        say("result     nothing here says what the weights must be")
        return
    folder = journal.parent / says
    if folder.is_dir():
        found = complete.weight_hashes(folder)
        for name in files:
            if found.get(name) != files[name]:
                raise EnvironmentProblem(f"{folder / name} is not as it was written")
    result = header.get("result", {}).get("files", files)
    if result != files:
        raise EnvironmentProblem(f"{folder} holds other weights than the journal's header says")
    for name, digest in files.items():
        say(f"result     {name}, by {says}")
        say(f"sha256     {digest}")


def stats(target: Path, say: Callable[[str], None]) -> None:
    """Numbers over all steps. Raises EnvironmentProblem."""
    from zoft.runs.record import read_manifest  # loads the schema: `show` and `verify` need none

    journal = journal_of(target)
    content = journal.read_bytes()
    _, entries, size, _ = parse(journal, content)
    found = statistics_of(entries)
    say(f"steps      {found.steps:,}, {found.nonfinite} of them not finite: skipped")
    if entries:
        number = len(entries[0].measurement.projected_grad)
        beginning = content.index(b"\n") + 1
        each = (size - beginning) / len(entries)
        say(f"bytes      {size:,}: header {beginning:,}, {each:.0f} a step of {number} slopes")
    if finite := [entry for entry in entries if entry.measurement.finite]:
        shown = ", ".join(f"{p} % {found.percentile(p):.3g}" for p in PERCENTILES)
        say(f"|c|        {shown}, largest {found.sizes[-1]:.3g}")
        part = max(1, len(finite) // 10)
        first, last = (
            fmean(e.measurement.loss for e in x) for x in (finite[:part], finite[-part:])
        )
        say(f"loss       {first:.4f} over the first {part} steps, {last:.4f} over the last {part}")
        rates = [entry.lr for entry in finite]
        say(f"lr         {rates[0]:g} at first, {max(rates):g} at most, {rates[-1]:g} at last")
    if seconds := read_manifest(journal.parent).get("seconds"):
        say(f"seconds    {seconds:,.1f} in training, {seconds / max(1, len(entries)):.3f} a step")


def _head(header: Header) -> Iterator[str]:
    base, optimizer = header.get("base", {}), header.get("optimizer", {})
    revision = f" at {base['revision']}" if base.get("revision") else ""
    yield f"base       {base.get('name')}{revision}, sha256 {str(base.get('sha256'))[:12]}"
    parameters = header.get("parameters", [])
    total = sum(math.prod(shape) for _, _, shape, _ in parameters)
    method = header.get("tune", {}).get("method")
    yield (
        f"tuned      {total:,} weights in {len(parameters)} tensors, {header.get('dtype')}"
        + (f", {method}" if method else "")
    )
    kind = [optimizer.get(key) for key in ("moments", "structure", "scope", "distribution")]
    words = [str(word) for word in kind if word]
    yield f"optimizer  {', '.join([str(optimizer.get('name')), *words])}"
    yield f"written by zoft {header.get('zoft')}, seed {header.get('seed')}"
    if result := header.get("result"):
        for name, digest in result["files"].items():
            yield f"result     step {result['step']}, {name} sha256 {digest[:12]}"


def _short(entry: Entry) -> str:
    m = entry.measurement
    grads = m.projected_grad
    what = f"|c| {rms(grads):.3g}" if m.finite else "not finite: skipped"
    slopes = "" if len(grads) == 1 else f" over {len(grads)}"
    return f"step {m.step:<6} lr {entry.lr:<9.4g} loss {m.loss:<8.4f} {what}{slopes}"


def _whole(entry: Entry) -> Iterator[str]:
    m = entry.measurement
    yield f"step           {m.step}"
    yield f"lr             {entry.lr!r}"
    for name in ("loss_plus", "loss_minus", "projected_grad"):
        yield f"{name:14} {' '.join(map(repr, getattr(m, name)))}"


def _header_problems(header: Header) -> Iterator[str]:
    if missing := missing_entries(header):
        yield f"the header lacks {', '.join(missing)}"
        return
    if header["layout"] not in LAYOUTS:
        yield f"layout {header['layout']} of directions is not known here: upgrade zoft"
    try:
        numbers = {name: number for name, number, _, _ in header["parameters"]}
    except (TypeError, ValueError):
        yield "the header's parameters are not [name, number, shape, decays]"
        return
    if len(set(numbers.values())) < len(header["parameters"]):
        yield "two parameters have one name or one number"
    for name, number in numbers.items():
        # A number that is taken is passed over: only then it may be another than the name's CRC-32.
        own = zlib.crc32(name.encode())
        if number != own and own not in numbers.values():
            yield f"{name} has number {number}, by its name it is {own}"


def _step_problems(entries: Sequence[Entry], told: Mapping[str, int]) -> Iterator[str]:
    lengths = {len(entry.measurement.projected_grad) for entry in entries}
    if len(lengths) > 1:
        yield f"steps have {' or '.join(map(str, sorted(lengths)))} slopes"
    for entry in entries:
        if not (math.isfinite(entry.lr) and entry.lr >= 0):
            yield f"step {entry.measurement.step} has the rate {entry.lr}"
    for who, step in told.items():
        if step > len(entries) or (who == HEADER and step < len(entries)):
            yield f"it holds {len(entries)} steps, and {who} says {step}"
