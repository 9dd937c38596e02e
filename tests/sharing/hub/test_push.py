"""Pushes to a real server and back: what goes up, what comes down, and who may."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support.hub.pushed import PUSHED, snapshot
from support.hub.server import READ, STRANGER, WRITE, Hub
from support.hub.session import Client, Runs


@pytest.fixture(scope="module")
def pushed(hub: Hub, client: Client, runs: Runs) -> dict[str, dict[str, Any]]:
    """The names under which both runs were pushed, and what the command said."""
    (runs.lora / "final" / "notes.txt").write_text("mine")  # nothing that zoft wrote
    before = snapshot(runs.folder)
    hub.log.clear()
    lora = client.zoft("push", runs.lora, "tester/lora", "--what", "all")
    full = client.zoft("push", runs.full, "hub.base_model=tester/base", "hub.repo_id=full")
    assert snapshot(runs.folder) == before
    return {"lora": lora, "full": full}


def test_both_arrive_private_and_say_where(hub: Hub, pushed: dict[str, dict[str, Any]]) -> None:
    for name, done in pushed.items():
        assert (done["code"], done["err"]) == (0, "")
        repo = hub.store.repos[f"tester/{name}"]
        assert re.fullmatch(
            rf"pushed         \d+ files, to {hub.api}/tester/{name} at {repo.branches['main'][:12]}\n",
            done["out"],
        )
        assert repo.private
        assert len(repo.commits) == 2


@pytest.mark.usefixtures("pushed")
def test_nothing_but_the_allowlist_reaches_the_server(hub: Hub) -> None:
    journal = {"journal.jsonl", "start/adapter_config.json", "start/adapter_model.safetensors"}
    assert hub.store.files("tester/lora").keys() == {*PUSHED, *journal}
    weights = {"config.json", "generation_config.json", "model.safetensors"}
    adapter = {name for name in PUSHED if name.startswith("adapter")}
    assert hub.store.files("tester/full").keys() == (PUSHED - adapter - {"loss.png"}) | weights
    known = {entry.sha256 for repo in hub.store.repos.values() for files in repo.commits.values()
             for entry in files.values()}  # fmt: skip
    sent = [path for method, path, _ in hub.log if method == "PUT"]
    assert sent
    assert {path.split("/")[4] for path in sent} <= known  # and no object but those of the commits
    assert [path for path in sent if "/full/" in path][-1].endswith("/2")  # in parts


@pytest.mark.usefixtures("pushed")
def test_what_is_pushed_names_the_base_by_its_id_and_no_place_here(hub: Hub, runs: Runs) -> None:
    commit = hub.store.repos["tester/base"].branches["main"]
    lora, full = hub.store.files("tester/lora"), hub.store.files("tester/full")
    for config in (lora["adapter_config.json"], lora["start/adapter_config.json"]):
        assert json.loads(config)["base_model_name_or_path"] == "tester/base"
        assert json.loads(config)["revision"] == commit
    header = json.loads(lora["journal.jsonl"].splitlines()[0])
    assert (header["base"]["name"], header["base"]["revision"]) == ("tester/base", commit)
    assert (
        lora["journal.jsonl"].splitlines()[1:]
        == ((runs.lora / "journal.jsonl").read_bytes().splitlines()[1:])
    )
    for name, content in [*lora.items(), *full.items()]:
        for secret in (str(runs.folder), str(Path.home()) + "/", str(Path.cwd()), "hf_"):
            assert secret.encode() not in content, name
    assert b"name: tester/base" in full["recipe.yaml"]
    assert b"path: train.jsonl" in full["recipe.yaml"]
    assert str(runs.folder) in (runs.full / "final" / "recipe.yaml").read_text()


@pytest.mark.usefixtures("pushed")
def test_the_card_is_what_the_hub_wants(hub: Hub, runs: Runs) -> None:
    data: Any = ModelCard(hub.store.files("tester/lora")["README.md"].decode()).data
    assert data.library_name == "peft"
    assert (data.base_model, data.base_model_relation) == ("tester/base", "adapter")
    assert (data.license, data.pipeline_tag) == ("apache-2.0", "text-generation")
    assert data.datasets is None  # files, and no Hub set
    assert {"zoft", "lora"} <= set(data.tags)
    names = {result.metric_name for result in data.eval_results}
    assert names == {
        f"{m}, {when}" for m in ("accuracy", "loss") for when in ("zero-shot", "after 12 steps")
    }
    full: Any = ModelCard(hub.store.files("tester/full")["README.md"].decode())
    assert (full.data.library_name, full.data.base_model_relation) == ("transformers", "finetune")
    for part in ("zero-shot", "peak memory", "torch 2", "seed", "## Limits", 'ed("tester/full")'):
        assert part in full.text
    here = ModelCard.load(runs.full / "final" / "README.md")
    assert here.data.license == "apache-2.0"  # from the README.md beside the base
    assert here.data.base_model is None
    manifest = json.loads((runs.full / "final" / "COMPLETE").read_text())
    assert manifest["README.md"]["size"] == (runs.full / "final" / "README.md").stat().st_size


@pytest.mark.usefixtures("pushed")
def test_a_second_push_makes_no_commit(hub: Hub, client: Client, runs: Runs) -> None:
    commits = len(hub.store.repos["tester/lora"].commits)
    hub.log.clear()
    done = client.zoft("push", runs.lora, "tester/lora", "--what", "all")
    assert done["out"].startswith("nothing to push: all of it is in ")
    assert len(hub.store.repos["tester/lora"].commits) == commits
    assert not any("commit" in path or method == "PUT" for method, path, _ in hub.log)


@pytest.mark.usefixtures("pushed")
def test_the_hub_gives_the_runs_logits(client: Client, runs: Runs) -> None:
    lora = ("adapter", "tester/lora", "tester/base", str(runs.lora / "final"), WRITE)
    full = ("model", "tester/full", "", str(runs.full / "final"), WRITE)
    assert client("difference", *lora) == 0.0
    assert client("difference", *full) == 0.0
    weights = load_file(runs.lora / "final" / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)


@pytest.mark.parametrize("name", ["lora", "full"])
@pytest.mark.usefixtures("pushed")
def test_eval_scores_a_repository_as_the_run_did(client: Client, runs: Runs, name: str) -> None:
    method = f"tune.method={name}"
    done = client.zoft("eval", f"tester/{name}", runs.folder / "recipe.yaml", method)
    assert (done["code"], done["err"]) == (0, "")
    folder = runs.lora if name == "lora" else runs.full
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    loss = next(e["loss"] for e in events if e["event"] == "final")
    assert f"loss {loss:.4f}" in done["out"]


def test_another_base_is_noted(hub: Hub, client: Client, runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"other")
    hub.store.add_folder("tester/other", tmp_path)
    done = client.zoft("push", runs.full, "noted", "hub.base_model=tester/other@main")
    assert done["out"].startswith("note: model.safetensors of tester/other is not the file that ")
    assert b"base_model: tester/other\n" in hub.store.files("tester/noted")["README.md"]


def test_a_dry_run_asks_no_server(hub: Hub, client: Client, runs: Runs) -> None:
    hub.log.clear()
    done = client.zoft("push", runs.lora, "you/x", "--dry-run", "--what", "journal", token=None)
    assert done["code"] == 0
    assert hub.log == []
    names = [line.split()[1] for line in done["out"].splitlines()[:-1]]
    assert names == [
        "README.md", "journal.jsonl", "loss.png", "metrics.jsonl", "recipe.yaml",
        "start/adapter_config.json", "start/adapter_model.safetensors",
    ]  # fmt: skip
    assert "files would go to you/x (private, main)" in done["out"]


def test_public_and_a_branch(hub: Hub, client: Client, runs: Runs) -> None:
    done = client.zoft("push", runs.lora, "open", "--public", "--revision", "v1")
    assert done["code"] == 0, done
    repo = hub.store.repos["tester/open"]
    assert not repo.private
    assert hub.store.files("tester/open", "v1").keys() == {*PUSHED, "loss.png"}
    assert hub.store.files("tester/open") == {}
    again = client.zoft("push", runs.lora, "open")  # nobody said that it may be public
    assert again["code"] == 4
    assert again["err"].startswith("error: tester/open is public: --public")
    assert hub.store.files("tester/open") == {}


def test_a_branch_is_named_behind_the_id(client: Client, runs: Runs, tmp_path: Path) -> None:
    recipe, lora = runs.folder / "recipe.yaml", ("tune.method=lora", "optimizer.lr=1e-2")
    base = "hub.base_model=tester/base"
    for name in ("lora", "full"):
        run = runs.folder / name
        done = client.zoft(
            "push", run, f"branched-{name}", base, "--what", "all", "--revision", "v1"
        )
        assert done["code"] == 0, done
    name = "adapter_model.safetensors"
    for verb in (
        ("eval", "tester/branched-lora@v1", recipe, *lora),
        ("eval", "tester/branched-full@v1", recipe),
        ("generate", "tester/branched-lora@v1", "--prompt", "a", "--max-new-tokens", 2),
        ("replay", "tester/branched-lora@v1", "--out", tmp_path / "replayed"),
        ("train", recipe, *lora, "model.name=tester/base", "tune.adapter=tester/branched-lora@v1",
         "train.steps=1", "checkpoint.every=0", "--output-dir", tmp_path / "more"),
    ):  # fmt: skip
        done = client.zoft(*verb)
        assert (done["code"], done["err"].count("error")) == (0, 0), done
    expected = (runs.lora / "final" / name).read_bytes()
    assert (tmp_path / "more" / "start" / name).read_bytes() == expected
    assert (tmp_path / "replayed" / name).read_bytes() == expected

    missing = client.zoft("eval", "tester/branched-full@v2", recipe)
    assert missing["code"] == 4
    assert missing["err"] == "error: tester/branched-full has no revision 'v2'\n"
    assert client.zoft("eval", "tester/branched-full", recipe)["code"] == 4  # main is empty
    wrong = client.zoft("train", recipe, "model.name=tester/base@v1")
    assert wrong["err"].endswith("nor a Hub id: a revision is written as model.revision\n")


@pytest.mark.parametrize(
    ("arguments", "token", "code", "answer"),
    [
        (["lora", "tester/no"], None, 4, "you are not logged in: log in with `hf auth login`"),
        (["lora", "tester/no"], "hf_bad", 4, "the Hub refuses the token"),
        (["lora", "tester/no"], READ, 4, "the token of tester may only read"),
        (["lora", "tester/lora"], STRANGER, 4, "may not"),
        (["lora", "nobody/no"], WRITE, 4, "the token may not write there"),
        (["lora"], WRITE, 2, "where to? zoft push"),
        (["lora", "a/b/c"], WRITE, 2, "hub.repo_id"),
        (["lora", "tester/no", "seed=1"], WRITE, 2, "a push changes nothing but hub.*"),
        (["lora", "tester/none", "--what", "model"], WRITE, 2, "holds an adapter"),
        (["full", "tester/none"], WRITE, 2, "add hub.base_model=USER/BASE"),
        (
            ["full", "tester/no", "hub.base_model=tester/nix"],
            WRITE,
            4,
            "cannot find the base model",
        ),
        (["model", "tester/no"], WRITE, 4, "is neither a run nor a checkpoint"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(
    hub: Hub,
    client: Client,
    runs: Runs,
    arguments: list[str],
    token: str | None,
    code: int,
    answer: str,
) -> None:
    run, *more = arguments
    done = client.zoft("push", runs.folder / run, *more, token=token)
    assert done["code"] == code
    assert done["err"].count("\n") == 1
    assert answer in done["err"]
    assert "hf_" not in done["err"].replace("hf_hub", "")
    assert (
        "tester/none" not in hub.store.repos
    )  # what is wrong here is said before anything is made
    if "tester/no" in hub.store.repos:  # made, and not used
        assert hub.store.files("tester/no") == {}
