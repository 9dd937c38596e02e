"""A push meets every fault at every request: the repository is old or new, the run is untouched."""

from __future__ import annotations

from support.hub.faults import Fault, Kind
from support.hub.pushed import PUSHED, snapshot
from support.hub.server import WRITE, Hub
from support.hub.session import Client, Runs

REQUESTS = (
    "repos/create", "auth-check/write", "{name}", "revision/main", "validate-yaml",
    "preupload/main", "objects/batch", "upload/", "lfs/verify", "commit/main",
)  # fmt: skip
COMMIT = len(REQUESTS) - 1
EVERYWHERE: tuple[Kind, ...] = ("500", "hang", "cut")
OLD = b"---\nlicense: mit\n---\nwhat stood there before"
NEW = {*PUSHED, "loss.png"}


def planned() -> dict[str, Fault]:
    """Repository -> what goes wrong, once, in a push to it."""
    faults = [Fault(kind, at) for kind in EVERYWHERE for at in range(len(REQUESTS))]
    faults += [Fault(kind, at) for kind in ("503", "429") for at in (0, 3, 4, 6, 7, COMMIT)]
    faults += [Fault("lost", 0), Fault("lost", 7), Fault("lost", COMMIT)]
    faults += [Fault("stale", at) for at in (4, 5, COMMIT)]
    return {f"tester/{fault.kind}-at-{fault.at:02}": fault for fault in faults}


def seeded(hub: Hub, faults: dict[str, Fault]) -> None:
    for name in faults:
        hub.store.create(name, private=True)
        hub.store.commit(name, "main", {"README.md": hub.store.keep(OLD)})


def require_old_or_new(hub: Hub, name: str) -> None:
    """Every commit is what stood there, what somebody else added to that, or the whole push."""
    for commit in hub.store.repos[name].commits:
        files = hub.store.files(name, commit)
        assert files.keys() - {"theirs.txt"} in (set(), {"README.md"}, NEW)
        assert (files.get("README.md", OLD) == OLD) == (files.keys() - {"theirs.txt"} != NEW)


def test_one_fault_of_any_kind_at_any_request_is_outlived(
    hub: Hub, client: Client, runs: Runs
) -> None:
    (runs.lora / "loss.png").write_bytes(b"\x89PNG a plot")
    faults, before = planned(), snapshot(runs.lora)
    seeded(hub, faults)
    hub.faults.planned = faults
    answers = client("pushes", str(runs.lora), list(faults), WRITE)
    hub.faults.planned = {}
    assert len(faults) >= 30
    weights = (runs.lora / "final" / "adapter_model.safetensors").read_bytes()
    for name, fault in faults.items():
        [hit] = fault.hit
        assert REQUESTS[fault.at].format(name=name) in hit
        said, failure = answers[name]
        assert failure is None, (name, said)
        assert hub.store.files(name)["adapter_model.safetensors"] == weights
        assert hub.store.files(name).keys() - {"theirs.txt"} == NEW
        require_old_or_new(hub, name)
        theirs = fault.kind == "stale"
        assert len(hub.store.repos[name].commits) == 3 + theirs, "one push is one commit"
        if fault.at == COMMIT and fault.kind != "stale":
            sent = [path for method, path, _ in hub.log if method == "PUT" and f"/{name}/" in path]
            assert len(sent) == 1, "what arrived is not sent again"
    assert snapshot(runs.lora) == before


def test_a_fault_in_any_part_of_a_large_file_is_outlived(
    hub: Hub, client: Client, runs: Runs
) -> None:
    faults = {
        f"tester/{kind}-part-{at:02}": Fault(kind, at)
        for kind in ("500", "cut") for at in (7, 9, 10, 11)
    }  # fmt: skip
    seeded(hub, faults)
    hub.faults.planned = faults
    answers = client("pushes", str(runs.full), list(faults), WRITE, "hub.base_model=tester/base")
    hub.faults.planned = {}
    weights = (runs.full / "final" / "model.safetensors").read_bytes()
    for name, fault in faults.items():
        assert ("/upload/" in fault.hit[0]) == (fault.at < 10)
        assert ("/complete/" in fault.hit[0]) == (fault.at == 10)
        assert answers[name][1] is None
        assert hub.store.files(name)["model.safetensors"] == weights
        assert len(hub.store.repos[name].commits) == 3


def test_a_push_that_fails_leaves_the_old_revision_and_can_be_repeated(
    hub: Hub, client: Client, runs: Runs
) -> None:
    lasting: list[tuple[Kind, int]] = [
        ("500", 0), ("429", 2), ("cut", 3), ("503", COMMIT), ("cut", COMMIT)
    ]  # fmt: skip
    faults = {f"tester/{kind}-from-{at:02}": Fault(kind, at, times=99) for kind, at in lasting}
    before = snapshot(runs.lora)
    seeded(hub, faults)
    hub.faults.planned = faults
    failed = client("pushes", str(runs.lora), list(faults), WRITE)
    hub.faults.planned = {}
    for name in faults:
        assert failed[name][1].startswith(f"cannot push to {name}: ")
        assert hub.store.files(name) == {"README.md": OLD}
    again = client("pushes", str(runs.lora), list(faults), WRITE)
    for name in faults:
        assert again[name] == [[], None]
        assert hub.store.files(name).keys() == NEW
        require_old_or_new(hub, name)
    assert snapshot(runs.lora) == before
