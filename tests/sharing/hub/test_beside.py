"""Uploads beside a run, with a stand-in for what sends them."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from support import small

from zoft.errors import Diverged, Interrupted
from zoft.recipe.load import load_recipe
from zoft.recipe.schema import Recipe
from zoft.sharing.hub import beside, push
from zoft.sharing.hub.push import Pusher, pushing
from zoft.sharing.hub.upload import Pushed
from zoft.system.signals import Stop

SECONDS = 20.0  # until a test gives up


class Hub:
    """What `push._send` becomes: it notes each folder's name and what is in it, and waits for leave."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.sent: list[str] = []
        self.most, self.now = 0, 0
        self.entered, self.leave = threading.Semaphore(0), threading.Semaphore(0)
        self.fails: set[str] = set()

    def send(
        self, _recipe: Recipe, _run: object, weights: Path, *_: object, **__: object
    ) -> Pushed:
        self.now += 1
        self.most = max(self.most, self.now)
        self.begun.append(weights.name)
        self.entered.release()
        assert self.leave.acquire(timeout=SECONDS)
        self.now -= 1
        if weights.name in self.fails:
            raise OSError("the line is dead")
        self.sent.append((weights / "model.safetensors").read_text())
        return Pushed("you/it", "c0ffee", 1)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub()
    monkeypatch.setattr(push, "_send", found.send)
    monkeypatch.setattr(push, "require_write_access", lambda *_, **__: "you/it")
    return found


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    source = small.write(tmp_path, "lora")
    settings = ("hub.push=checkpoint", "hub.repo_id=you/it", "hub.base_model=you/base")
    (tmp_path / "run").mkdir()
    return load_recipe(source, [*settings, f"output_dir={tmp_path / 'run'}"])


def checkpoint(recipe: Recipe, step: int) -> Path:
    folder = Path(recipe.output_dir or "", f"checkpoint-{step:06d}")
    folder.mkdir()
    (folder / "model.safetensors").write_text(str(step))
    return folder


@pytest.mark.parametrize("links", [True, False])
def test_one_is_under_way_and_the_newest_follows_though_the_run_deletes_them(
    links: bool, hub: Hub, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    if not links:  # a file system without
        monkeypatch.setattr(os, "link", refuse)
    said: list[str] = []
    with pushing(recipe, said.append, Stop()) as pusher:
        for step in (1, 2, 3, 4):
            folder = checkpoint(recipe, step)
            pusher.at_checkpoint(recipe, folder)
            assert hub.entered.acquire(timeout=SECONDS) if step == 1 else True
            shutil.rmtree(folder)
        assert hub.begun == ["checkpoint-000001"]  # and nobody waited for it
        for _ in range(3):
            hub.leave.release()
        pusher.wait()
        assert hub.sent == ["1", "4"]
        assert hub.most == 1
    assert said[0].startswith("pushes to ")
    assert sum(line.startswith("pushed ") for line in said) == 2
    assert said.count("waiting for the upload of checkpoint-000001 and checkpoint-000004 ...") == 1
    assert list(Path(recipe.output_dir or "").iterdir()) == []


def test_a_failure_is_a_line_and_the_next_one_follows(hub: Hub, recipe: Recipe) -> None:
    hub.fails = {"checkpoint-000001"}
    said: list[str] = []
    with pushing(recipe, said.append, Stop()) as pusher:
        for step in (1, 2):
            pusher.at_checkpoint(recipe, checkpoint(recipe, step))
            hub.leave.release()
        pusher.wait()
    assert hub.sent == ["2"]
    failed = Path(recipe.output_dir or "", "checkpoint-000001")
    line = f"not pushed, the run is whole: the line is dead. Later: zoft push {failed}"
    assert said.count(line) == 1


def test_a_disk_that_refuses_is_a_line(
    hub: Hub, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    said: list[str] = []
    pusher = Pusher("you/it", said.append)
    monkeypatch.setattr(shutil, "copytree", refuse)
    pusher.at_checkpoint(recipe, folder := checkpoint(recipe, 1))
    assert said == [f"not pushed, the run is whole: the disk is full. Later: zoft push {folder}"]
    assert hub.begun == []


def test_an_interrupt_does_not_wait_and_names_what_is_not_up(hub: Hub, recipe: Recipe) -> None:
    said: list[str] = []
    stop = Stop()

    def run() -> None:
        with pushing(recipe, said.append, stop) as pusher:
            pusher.at_checkpoint(recipe, checkpoint(recipe, 1))
            assert hub.entered.acquire(timeout=SECONDS)
            stop.signal = 2
            pusher.wait()

    with pytest.raises(Interrupted):
        run()
    folder = Path(recipe.output_dir or "", "checkpoint-000001")
    assert said[-1] == (
        f"not pushed, the run is whole: it was not waited for. Later: zoft push {folder}"
    )
    hub.leave.release()  # the answer, after all: nobody hears of it
    for thread in threading.enumerate():
        if thread.name == beside.NAME:
            thread.join(SECONDS)
            assert not thread.is_alive()
    assert said[-1].startswith("not pushed")


def test_a_run_that_ends_otherwise_waits(hub: Hub, recipe: Recipe) -> None:
    said: list[str] = []

    def run() -> None:
        with pushing(recipe, said.append, Stop()) as pusher:
            pusher.at_checkpoint(recipe, checkpoint(recipe, 1))
            threading.Timer(0.2, hub.leave.release).start()
            raise Diverged("not finite")

    with pytest.raises(Diverged):
        run()
    assert hub.sent == ["1"]
