from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.written import finished_run as a_run

from zoft.cli.main import main
from zoft.engine.optimizers.measurement import Measurement
from zoft.runs.journal import Entry, Journal
from zoft.runs.record import read_run
from zoft.runs.report import page as reports
from zoft.runs.report.page import report, reported, write_report

VOID = {"meta", "link", "path", "use", "br"}


class Tags(HTMLParser):
    """Whether tags nest, and what they point to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(v) for k, v in attrs if k in ("src", "href", "srcset", "action")]
        assert tag != "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _: list[tuple[str, str | None]]) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_the_run_and_asks_for_nothing(tmp_path: Path) -> None:
    path = write_report(a_run(tmp_path))
    assert sorted(f.name for f in path.parent.iterdir()) == [
        "journal.jsonl", "loss.png", "metrics.jsonl", "report.html", "resolved.yaml", "run.json",
    ]  # fmt: skip
    assert (path.parent / "loss.png").read_bytes().startswith(b"\x89PNG")
    page = path.read_text()
    assert page.count("<svg") == 4
    assert not re.search(r"url\(|@import|https?://", page)
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.links == ["data:,"]
    for text in (
        "a<b>&'run' $x 跑", "finished after 40 of 40 steps", "accuracy 0.700, loss 0.6000 (20 rows)",
        "accuracy 0.710, loss 0.6000 (9 rows)", "zero-shot 0.500", "<script>alert(1)</script>",
        "skipped, for a loss that was not finite1", "wall time1:13", "peak memory3.00 GiB",
        "signal to rounding noise, at the start15.0", "zoft train <x>",
    ):  # fmt: skip
        assert text in tags.text


@pytest.mark.parametrize(
    "broken", ["journal.jsonl", "run.json", "resolved.yaml", "metrics.jsonl", "evals", "one step"]
)
def test_what_is_missing_is_left_out(tmp_path: Path, broken: str) -> None:
    run = a_run(tmp_path, steps=1 if broken == "one step" else 9)
    metrics = run / "metrics.jsonl"
    if broken == "evals":
        lines = metrics.read_text().splitlines(keepends=True)
        metrics.write_text("".join(line for line in lines if '"train"' in line))
    elif broken != "one step":
        (run / broken).write_text("{ torn")
    tags = Tags()
    tags.feed(report(read_run(run)))
    assert tags.open == []
    write_report(run)


def test_the_journal_in_numbers_is_what_journal_stats_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path)
    with Journal.create(run / "journal.jsonl", {}, math.inf) as journal:
        for step, slopes in enumerate([(1.0, -3.0), (math.nan, 1.0), (2.0, 8.0)], start=1):
            journal.append(Entry(Measurement(step, (0.5,), (0.5,), slopes), 1e-3))
    with (run / "journal.jsonl").open("a") as torn:
        torn.write('{"step": 4, "pro')
    assert main(["journal", "stats", str(run)]) == 0
    said = capsys.readouterr().out
    assert "steps      3, 1 of them not finite: skipped\n" in said
    assert "|c|        5 % 1, 50 % 2, 95 % 8, largest 8\n" in said
    tags = Tags()
    tags.feed(report(read_run(run)))
    for text in (
        "steps3", "not finite1", "slopes c measured4", "positive75.0%",
        "|c|: median2|c|: middle half1 to 3|c|: 95 % below8|c|: largest8",
    ):  # fmt: skip
        assert text in tags.text


def test_a_report_that_fails_fails_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = a_run(tmp_path), list[str]()
    monkeypatch.setattr(reports, "report", lambda _: 1 / 0)
    with reported(run, said.append):
        pass
    assert said == ["warning: no report.html: ZeroDivisionError: division by zero"]
    with pytest.raises(KeyError), reported(run, said.append):
        raise KeyError("the run's own")
    assert not list(run.glob("*.tmp"))


def test_who_stops_a_run_does_not_wait_for_a_picture(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with pytest.raises(KeyboardInterrupt), reported(run, print):
        raise KeyboardInterrupt
    assert (run / "report.html").is_file()
    assert not (run / "loss.png").exists()


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_a_request_an_error_or_a_sideways_scroll(
    tmp_path: Path, width: int
) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if browser is None:
        pytest.skip("no chromium is installed")
    page = write_report(a_run(tmp_path / "x", model={"name": "very/" + "long" * 60}))
    # A frame of the width: headless windows are never narrower than 500 pixels.
    probe = tmp_path / "probe.html"
    shutil.copyfile(page, tmp_path / "page.html")
    probe.write_text(
        f"<iframe id=f src=page.html style='border:0;width:{width}px;height:900px'></iframe><pre id=o>"
        "</pre><script>onload=()=>{const d=f.contentDocument,e=d.documentElement;"
        "d.querySelectorAll('details').forEach(x=>x.open=true);"
        "o.textContent=JSON.stringify({wide:e.scrollWidth,view:f.contentWindow.innerWidth,"
        "asked:f.contentWindow.performance.getEntriesByType('resource').length,"
        "charts:[...d.querySelectorAll('svg')].map(s=>s.getBoundingClientRect().width)})}</script>"
    )
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         "--enable-logging=stderr", "--window-size=1400,1000", f"--user-data-dir={tmp_path}/profile",
         "--dump-dom", probe.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found = json.loads(re.search(r"<pre id=\"o\">(.*?)</pre>", done.stdout)[1])  # type: ignore[index]
    assert found["view"] == width
    assert found["wide"] <= width
    assert found["asked"] == 0
    assert len(found["charts"]) == 4
    assert min(found["charts"]) > 300
    assert "CONSOLE" not in done.stderr
