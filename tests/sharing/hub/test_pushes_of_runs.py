"""Runs that push by themselves: asked first, not harmed by what goes wrong, silent about tokens."""

from __future__ import annotations

import pytest
from support.hub.faults import Fault
from support.hub.pushed import PUSHED
from support.hub.server import READ, WRITE, Hub
from support.hub.session import Client, Runs

LORA = ("tune.method=lora", "optimizer.lr=1e-2", "model.name=tester/base")


@pytest.mark.parametrize("token", [None, "hf_bad", READ])
def test_without_the_right_to_write_no_step_is_taken(
    client: Client, runs: Runs, token: str | None
) -> None:
    hub = ("hub.push=end", "hub.repo_id=tester/early")
    out = runs.folder / "early"
    done = client.zoft(
        "train", runs.folder / "recipe.yaml", "--output-dir", out, *LORA, *hub, token=token
    )
    assert done["code"] == 4
    assert done["err"].startswith("error: cannot ")
    assert done["err"].count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(("token", "code"), [(READ, 4), (WRITE, 0)])
def test_a_check_beforehand_asks_and_makes_nothing(
    hub: Hub, client: Client, runs: Runs, token: str | None, code: int
) -> None:
    settings = ("hub.push=end", "hub.repo_id=tester/asked", f"output_dir={runs.folder / 'asked'}")
    done = client.zoft("validate", runs.folder / "recipe.yaml", *LORA, *settings, token=token)
    assert done["code"] == code, done
    assert ("hub         ok, logged in" in done["out"]) == (code == 0)
    assert ("may only read" in done["err"]) == (code == 4)
    assert "tester/asked" not in hub.store.repos


def test_a_base_without_a_name_is_refused_before_the_run(client: Client, runs: Runs) -> None:
    hub = ("hub.push=end", "hub.repo_id=tester/early")
    out = runs.folder / "early"
    done = client.zoft("train", runs.folder / "recipe.yaml", "--output-dir", out, *hub)
    assert (done["code"], out.exists()) == (2, False)
    assert "add hub.base_model=USER/BASE" in done["err"]


def test_checkpoints_and_the_end_are_pushed_and_the_token_stands_nowhere(
    hub: Hub, client: Client, runs: Runs
) -> None:
    settings = ("hub.push=checkpoint", "hub.repo_id=tester/steps")
    out = runs.folder / "steps"
    recipe = runs.folder / "recipe.yaml"
    done = client.zoft("train", recipe, "--output-dir", out, *LORA, *settings)
    assert (done["code"], done["err"]) == (0, "")
    assert f"pushes to {hub.api}/tester/steps (private)" in done["out"]
    assert done["out"].count("\npushed ") == 3
    _, five, ten, end = hub.store.repos["tester/steps"].commits
    for commit, step in ((five, 5), (ten, 10), (end, 12)):
        files = hub.store.files("tester/steps", commit)
        assert files.keys() == PUSHED - ({"loss.png"} if step < 12 else set())
        assert f"{step} of 12".encode() in files["README.md"]
        assert f"after {step} steps".encode() in files["README.md"]
        folder = out / ("final" if step == 12 else f"checkpoint-{step:06d}")
        name = "adapter_model.safetensors"
        assert files[name] == (folder / name).read_bytes()
    assert client.zoft("push", out, "tester/steps")["out"].startswith("nothing to push")
    assert WRITE not in done["out"]
    for folder in (out, hub.store.folder, client.home):
        for path in folder.rglob("*"):
            assert not path.is_file() or WRITE.encode() not in path.read_bytes(), path


def test_a_checkpoint_that_cannot_be_pushed_does_not_hold_the_run(
    hub: Hub, client: Client, runs: Runs
) -> None:
    """The first requests are those that ask for the right to write."""
    settings = ("hub.push=checkpoint", "hub.repo_id=tester/slow", "logging.every=1")
    out = runs.folder / "slow"
    hub.faults.planned = {"tester/slow": Fault("hang", 3)}
    recipe = runs.folder / "recipe.yaml"
    done = client.zoft("train", recipe, "--output-dir", out, *LORA, *settings)
    hub.faults.planned = {}
    assert (done["code"], done["err"]) == (0, "")
    lines = done["out"].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("pushed "))
    [last] = [i for i, line in enumerate(lines) if line.startswith("step 12/12")]
    assert last < first
    assert any(line.startswith("waiting for the upload of checkpoint-000005") for line in lines)
    assert hub.store.files("tester/slow")["README.md"].find(b"12 of 12") > 0


def test_a_failed_push_is_a_line_and_the_run_is_whole(hub: Hub, client: Client, runs: Runs) -> None:
    settings = ("hub.push=end", "hub.repo_id=tester/unlucky", "checkpoint.every=0")
    out = runs.folder / "unlucky"
    hub.faults.planned = {"tester/unlucky": Fault("503", 3, times=99)}
    recipe = runs.folder / "recipe.yaml"
    done = client.zoft("train", recipe, "--output-dir", out, *LORA, *settings)
    hub.faults.planned = {}
    assert (done["code"], done["err"]) == (0, "")
    *_, last = done["out"].splitlines()
    assert last == (
        "not pushed, the run is whole: cannot push to tester/unlucky: the Hub answered 503 Service "
        f"Unavailable. Later: zoft push {out}"
    )
    assert hub.store.files("tester/unlucky") == {}
    again = client.zoft("push", out)
    assert again["out"].startswith("pushed         8 files, to ")


def test_tuning_goes_on_from_a_pushed_adapter(client: Client, runs: Runs) -> None:
    out = runs.folder / "more"
    assert client.zoft("push", runs.lora, "again")["code"] == 0
    settings = ("tune.adapter=tester/again", "train.steps=2", "checkpoint.every=0")
    done = client.zoft("train", runs.folder / "recipe.yaml", "--output-dir", out, *LORA, *settings)
    assert (done["code"], done["err"]) == (0, "")
    name = "adapter_model.safetensors"
    assert (out / "start" / name).read_bytes() == (runs.lora / "final" / name).read_bytes()
    assert (out / "final" / name).read_bytes() != (runs.lora / "final" / name).read_bytes()
