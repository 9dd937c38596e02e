"""`zoft range --groups` on a tiny model: its table, what it says of noise, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import small

from zoft.cli.main import main
from zoft.engine.group_probes import Probed
from zoft.training.range.groups import Group, table, verdict

SETTINGS = ["--groups", "--directions", "3", "--rows", "6"]


def group(name: str, signal: float, curvature: float = 100.0) -> Group:
    """Sixteen equal samples of an energy of 12, eight rows in each."""
    return Group(name, 1000, Probed(np.array([[signal, 12.0, curvature]] * 16), 8))


def test_the_greatest_gain_is_first_and_what_is_unknown_last() -> None:
    lines = table(
        [group("poor", 4.0), group("lost", 0.001), group("rich", 8.0), group("all weights", 4.0)]
    )
    assert [line.split()[0] for line in lines] == ["group", "rich", "poor", "lost", "all", "?"]
    assert lines[1].split()[1:] == ["1,000", "8", "12", "100", "4", "0"]
    assert lines[3].split()[1:] == ["1,000", "0.001?", "12", "100", "-"]
    assert lines[4].split()[2:] == ["1,000", "4", "12", "100", "1"]


def test_the_table_fits_80_columns() -> None:
    widest = group("gate_up_proj middle", 1.23456e-5, -1.23456e-5)
    lines = table([widest, group("all weights", 123456.0)])
    assert max(map(len, lines)) <= 80
    assert all(" " in line[26:40] for line in lines[1:2])


def test_the_noise_scale_says_what_a_direction_for_each_example_is_worth() -> None:
    said = " ".join(verdict(group("all weights", 4.0).probed, 16))
    assert "2 ± 0 rows" in said
    assert "train.batch_size=16" in said
    assert "worth 6 times" in said  # (16 + 2) / (1 + 2)
    unknown = " ".join(verdict(group("all weights", 0.001).probed, 16))
    assert "above" in unknown
    assert "at most" in unknown


@pytest.mark.parametrize("method", ["full", "lora"])
def test_every_group_has_a_line(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(small.write(tmp_path, method))
    before = {path.name for path in tmp_path.iterdir()}
    assert main(["range", source, *SETTINGS, "data.train.limit=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    kinds = ("q_proj", "v_proj") if method == "lora" else tuple("qkvo")
    begin = next(i for i, line in enumerate(lines) if line.startswith("group "))
    names = [line.split()[0] for line in lines[begin + 1 :] if line.strip()]
    assert sum(name.startswith(kinds) for name in names) >= 2 * len(kinds)
    groups = 4 if method == "lora" else 2 * 8 + 3
    passes = 3 * (2 * (groups + 1) + 1)
    # Five examples are fewer than the rows that were asked for.
    assert f"{passes} passes of 5 rows" in " ".join(lines)
    assert f"{groups} groups and all weights: 3 directions" in " ".join(lines)
    total = next(line for line in lines if line.startswith("all weights"))
    tuned = next(line for line in lines if line.startswith("tuning "))
    assert total.split()[2] == tuned.split()[1]
    assert any(line.startswith("noise scale n") for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--groups", "--plot", "x.png"], 2, "--plot"),
        (["--rows", "8"], 2, "--groups, which is not given"),
        (["--groups", "data.train.limit=1"], 3, "data.train: "),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = str(small.write(tmp_path))
    capsys.readouterr()
    assert main(["range", source, *arguments]) == code
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert said in error
