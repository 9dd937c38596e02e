from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.events import train_event

from zoft.errors import EnvironmentProblem
from zoft.runs.metrics import Metrics, format_primary, in_words, primary_metric, scalars

VALUES = st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text()


@given(
    events=st.lists(
        st.tuples(
            st.sampled_from(["train", "eval", "checkpoint", "final"]),
            st.integers(0, 2**32),
            st.dictionaries(st.sampled_from("abc"), VALUES),
        )
    )
)
def test_events_come_back(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int, dict[str, Any]]]
) -> None:
    metrics = Metrics(tmp_path_factory.mktemp("run") / "metrics.jsonl")
    returned = [metrics.write(event, step, **values) for event, step, values in events]
    assert returned == [{"event": e, "step": s, **v} for e, s, v in events]
    assert metrics.read() == returned


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    event = metrics.write("eval", 1, a=math.nan, b=math.inf, c=(-math.inf, 1.0), d=0.5)
    assert event == {"event": "eval", "step": 1, "a": None, "b": None, "c": [None, 1.0], "d": 0.5}
    assert json.loads(metrics.path.read_text()) == event


def test_each_event_is_in_the_file_at_once(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    assert metrics.read() == []
    for step in range(3):
        metrics.write("train", step)
        assert len(Metrics(metrics.path).read()) == step + 1


@pytest.mark.parametrize(
    "torn", ['{"event": "train", "st', '{"event": "train", "step": 3}', "\0\0"]
)
def test_a_torn_line_is_ignored_and_gone_after_a_rewind(tmp_path: Path, torn: str) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    first = metrics.write("train", 1)
    with metrics.path.open("a") as file:
        file.write(torn)
    assert metrics.read() == [first]
    metrics.rewind(1)
    second = metrics.write("train", 2)
    assert metrics.read() == [first, second]


def test_a_rewind_forgets_what_lies_beyond_and_the_end(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for step in range(4):
        metrics.write("train", step)
    metrics.write("eval", 2)
    metrics.write("final", 2)
    metrics.rewind(2)
    kept = [(event["event"], event["step"]) for event in metrics.read()]
    assert kept == [("train", 0), ("train", 1), ("train", 2), ("eval", 2)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_damaged_line_hides_no_other_and_goes_with_a_rewind(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    first = metrics.write("train", 1)
    with metrics.path.open("ab") as file:
        file.write(b'{"event": "train", "st{"event": "train"}\n\xff\n[1]\n{"event": "train"}\n')
    second = metrics.write("train", 2)
    assert metrics.read() == [first, second]
    metrics.rewind(2)
    assert len(metrics.path.read_text().splitlines()) == 2


def test_a_rewind_of_nothing(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.rewind(5)
    assert metrics.read() == []


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"no/metrics\.jsonl cannot be written: No such"):
        Metrics(tmp_path / "no" / "metrics.jsonl").write("train", 1)


def test_a_score_in_words() -> None:
    event = {"accuracy": 0.5321, "loss": 1.104, "rows": 1000}
    assert in_words(event) == "accuracy 0.532, loss 1.1040 (1,000 rows)"
    assert in_words({"loss": None, "rows": 5}) == "loss not finite (5 rows)"
    event = {"step": 3, "exact_match": 0.5, "f1": 0.61, "loss": 2, "rows": 5, "seconds": 1.2}
    assert in_words(event) == "exact match 0.500, f1 0.610, loss 2.0000 (5 rows)"


def test_the_first_score_of_an_event_stands_for_it() -> None:
    event = {"event": "eval", "step": 3, "accuracy": 0.5321, "loss": 1.104, "rows": 1000}
    assert primary_metric(event) == ("accuracy", 0.5321)
    assert format_primary(event) == "accuracy 0.532"
    assert format_primary({"event": "eval", "step": 0, "loss": 1.104}) == "loss 1.1040"
    assert format_primary({"event": "eval", "step": 0, "loss": None}) == "loss not finite"


def test_trackers_get_one_number_for_each_key() -> None:
    event = train_event(3, loss_plus=[1.0, 2.0], projected_grad=[3.0, -4.0])
    found = scalars(event)
    assert found["train/loss_plus"] == 1.5
    assert found["train/projected_grad"] == pytest.approx(math.sqrt(12.5))
    assert found["train/loss"] == 0.5
    assert not {"train/step", "train/event"} & set(found)
    broken = train_event(3, loss=None, loss_plus=[None, 1.0], projected_grad=[None, 1.0])
    assert not {"train/loss", "train/loss_plus", "train/projected_grad"} & set(scalars(broken))
    assert scalars({"event": "checkpoint", "step": 5, "path": "checkpoint-000005"}) == {}


def test_somebody_can_look_after_every_event(tmp_path: Path) -> None:
    seen: list[int] = []
    metrics = Metrics(tmp_path / "metrics.jsonl", lambda: seen.append(1))
    metrics.write("train", 1)
    metrics.write("eval", 1)
    assert len(seen) == 2
