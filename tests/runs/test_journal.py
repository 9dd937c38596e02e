from __future__ import annotations

import json
import math
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.written import change_header, unprotect

from zoft.engine.optimizers.measurement import Measurement
from zoft.errors import EnvironmentProblem
from zoft.runs import journal
from zoft.runs.journal import Entry, Journal

HEADER = {"layout": 1, "seed": 7, "parameters": [["a.weight", 3, [4, 4], True]]}
NEVER = 1e9  # seconds between syncs
FLOAT32 = st.floats(width=32)


def shortest(value: float) -> float:
    """As the estimator rounds: a float32 in its shortest decimal form."""
    return float(str(np.float32(value)))


def entry(step: int, c: float = 3.5, lr: float = 1e-4) -> Entry:
    return Entry(Measurement(step, (0.71,), (0.69,), (shortest(c),)), lr)


def written(path: Path, steps: int = 4) -> list[bytes]:
    """A journal of some steps at `path`; its lines."""
    with Journal.create(path, HEADER, NEVER) as log:
        for step in range(1, steps + 1):
            log.append(entry(step))
    return path.read_bytes().splitlines(keepends=True)


def bits(value: float) -> bytes:
    return struct.pack("<f", value)


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    directions = draw(st.integers(1, 3))
    values = st.lists(FLOAT32, min_size=directions, max_size=directions)
    return [
        Entry(
            Measurement(step, *(tuple(map(shortest, draw(values))) for _ in range(3))),
            shortest(draw(st.floats(0, 1, width=32))),
        )
        for step in range(1, draw(st.integers(0, 4)) + 1)
    ]


@given(given_entries=entries())
def test_what_is_written_is_read_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, given_entries: list[Entry]
) -> None:
    path = tmp_path_factory.mktemp("run") / "journal.jsonl"
    with Journal.create(path, HEADER, NEVER) as log:
        for item in given_entries:
            log.append(item)
    header, found = journal.read(path)
    chain = header.pop("chain")
    assert len(chain) == 8
    assert header == {"format": "zoft-journal", "version": 1, **HEADER}
    assert [x.measurement.step for x in found] == [x.measurement.step for x in given_entries]
    for old, new in zip(given_entries, found, strict=True):
        assert bits(old.lr) == bits(new.lr)
        for name in ("loss_plus", "loss_minus", "projected_grad"):
            before, after = getattr(old.measurement, name), getattr(new.measurement, name)
            assert len(before) == len(after)
            for x, y in zip(before, after, strict=True):
                # Not finite is not finite: which kind, nobody needs.
                assert bits(x) == bits(y) if math.isfinite(x) else math.isnan(y)
        assert old.measurement.finite == new.measurement.finite


@given(values=st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 4))
def test_a_step_takes_few_bytes(
    tmp_path_factory: pytest.TempPathFactory, values: tuple[float, ...]
) -> None:
    path = tmp_path_factory.mktemp("run") / "journal.jsonl"
    lr, plus, minus, c = map(shortest, values)
    with Journal.create(path, HEADER, NEVER) as log:
        log.append(Entry(Measurement(2**32 - 1, (plus,), (minus,), (c,)), lr))
    assert len(path.read_bytes().splitlines()[1]) <= 200


def test_a_line_is_plain_json_in_shortest_form(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.create(path, HEADER, NEVER) as log:
        log.append(Entry(Measurement(1, (shortest(0.1),), (math.inf,), (math.nan,)), 1e-4))
    line = '{"step":1,"lr":0.0001,"loss_plus":[0.1],"loss_minus":[null],"projected_grad":[null]'
    written = path.read_text().splitlines()[1]
    assert written.startswith(f'{line},"crc32":"')
    assert len(written) == len(line) + 20
    unprotect(path)
    assert path.read_text().splitlines()[1] == line + "}"


def test_each_step_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.create(path, HEADER, NEVER) as log:
        assert len(journal.read(path)[1]) == 0
        for step in (1, 2, 3):
            log.append(entry(step))
            assert journal.read(path)[1][-1] == entry(step)


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_a_power_cut_loses_at_most_sync_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    now, syncs, fsync = [100.0], list[float](), os.fsync

    def noted(fd: int) -> None:
        syncs.append(now[0])
        fsync(fd)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "fsync", noted)
    with Journal.create(tmp_path / "journal.jsonl", HEADER, seconds) as log:
        for step in range(1, 10):
            now[0] += 2
            log.append(entry(step))
    # Times 102 to 118; the header is synced at 100, the end at 118.
    between = [106.0, 112.0, 118.0] if seconds else [100.0 + 2 * i for i in range(1, 10)]
    assert syncs == [100.0, *between, 118.0]


@pytest.mark.parametrize("cut", [1, 30])
def test_a_torn_last_line_is_dropped_and_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path)
    path.write_bytes(b"".join(lines)[:-cut])
    assert [x.measurement.step for x in journal.read(path)[1]] == [1, 2, 3]
    log, _, found = Journal.reopen(path, NEVER)
    assert [x.measurement.step for x in found] == [1, 2, 3]
    assert path.read_bytes() == b"".join(lines[:-1])
    with log:
        log.append(entry(4))
    assert path.read_bytes() == b"".join(lines)


def test_a_garbled_last_line_counts_as_torn(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path)
    path.write_bytes(b"".join(lines[:-1]) + b"\0" * 20 + b"\xff\n")
    log, _, found = Journal.reopen(path, NEVER)
    log.close()
    assert len(found) == 3
    assert path.read_bytes() == b"".join(lines[:-1])


DAMAGE: dict[str, tuple[Any, str]] = {
    "not json": (lambda x: [*x[:2], b'{"step":2,\n', *x[3:]], "journal.jsonl:3 is damaged"),
    "no json bytes": (lambda x: [*x[:2], b"\xff\xfe\n", *x[3:]], "journal.jsonl:3 is damaged"),
    "no object": (lambda x: [*x[:2], b"7\n", *x[3:]], "journal.jsonl:3 is damaged"),
    "a key less": (
        lambda x: [*x[:2], x[2].replace(b"lr", b"rl"), *x[3:]],
        "journal.jsonl:3 is damaged: 'lr'",
    ),
    "a gap": (
        lambda x: [*x[:2], *x[3:]],
        "journal.jsonl:3 is damaged: step 3 where 2 belongs",
    ),
    "a gap before the last": (
        lambda x: [*x[:3], *x[4:]],
        "journal.jsonl:4 is damaged: step 4 where 3 belongs",
    ),
    "a step twice": (
        lambda x: [*x, x[-1]],
        "journal.jsonl:6 is damaged: step 4 where 5 belongs",
    ),
    "foreign": (lambda x: [b'{"event": "train"}\n', *x[1:]], "is not a journal of zoft"),
    "foreign list": (lambda x: [b"[]\n", *x[1:]], "is not a journal of zoft"),
    "text": (lambda _: [b"Dear diary,\n", b"today\n"], "journal.jsonl:1 is damaged"),
    "empty": (lambda _: [], "is empty: not a journal"),
    "torn header": (lambda x: [x[0][:-1]], "is empty: not a journal"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_and_left_as_it_is(tmp_path: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(damage(written(path))))
    before = path.read_bytes()
    with pytest.raises(EnvironmentProblem) as read:
        journal.read(path)
    assert message in str(read.value)
    for _ in range(2):  # twice: a refusal must not keep the lock
        with pytest.raises(EnvironmentProblem) as reopened:
            Journal.reopen(path, NEVER)
        assert str(reopened.value) == str(read.value)
    assert path.read_bytes() == before


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written(path)
    change_header(path, version=2)
    with pytest.raises(EnvironmentProblem, match="version 2, this zoft reads up to 1: upgrade"):
        journal.read(path)


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.create(path, HEADER, NEVER) as log:
        log.append(entry(1))
        before = path.read_bytes()
        for opener in (Journal.reopen, lambda p, s: Journal.create(p, HEADER, s)):
            with pytest.raises(EnvironmentProblem, match="is in use by another zoft"):
                opener(path, NEVER)
        assert path.read_bytes() == before
        assert journal.read(path)[1] == [entry(1)]  # reading asks for no lock
    again, _, found = Journal.reopen(path, NEVER)
    again.close()
    assert found == [entry(1)]


def test_a_new_journal_replaces_what_has_no_step(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"format": "zoft-jour')
    written(path, steps=1)
    assert journal.read(path)[1] == [entry(1)]


def test_a_journal_that_cannot_begin_lets_go_of_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with pytest.raises(TypeError, match="not JSON serializable"):
        Journal.create(path, {"seed": object()}, NEVER)
    written(path)


def test_a_full_disk_is_said() -> None:
    log = Journal(Path("/dev/full"), NEVER)
    with pytest.raises(EnvironmentProblem, match="cannot be written: No space left on device"):
        log.append(entry(1))
    log.close()


def test_half_a_line_on_a_full_disk_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A file on a disk with room for ten more bytes."""

        def write(self, data: bytes) -> int:
            return min(10, len(data))

    path = tmp_path / "journal.jsonl"
    with Journal.create(path, HEADER, NEVER) as log, monkeypatch.context() as patch:
        patch.setattr(log, "_file", Full())
        with pytest.raises(EnvironmentProblem, match="no space left on device"):
            log.append(entry(1))


def test_lines_are_json_that_any_program_reads(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    path = tmp_path / "journal.jsonl"
    with Journal.create(path, {"noise": {"bias": math.nan}}, NEVER) as log:
        log.append(Entry(Measurement(1, (math.inf,), (-math.inf,), (math.nan,)), 0.1))
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    assert journal.read(path)[0]["noise"] == {"bias": None}
