"""Every command that the README and docs/ show is run, on a tiny model and a few rows."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, tiny

from zoft.cli.main import main
from zoft.recipe import packaged

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL = ".demo/SmolLM2-135M-Instruct.Q4_1.gguf"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
# What needs the Hub, a model of another family, or a file of the reader's own.
ELSEWHERE = re.compile(
    r"you/(?!\S+ --dry-run)|someone/|journal\.jsonl|runs/gemma|zoft push runs/quickstart|RECIPE"
    r"|doctor \S|nf4|quantization|opt-|llama-|qwen|data\.train\.0|\bDIR\b"
)


def commands(page: Path) -> Iterator[str]:
    """The lines of code that begin with `zoft`, without what stands behind them as an explanation."""
    for line in page.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"^    (zoft .*?)(?:\s{2,}.*)?$", line):
            yield match[1]


def shown() -> list[tuple[str, str]]:
    return [
        (page.name, command)
        for page in PAGES
        for command in commands(page)
        if not ELSEWHERE.search(command)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as the pages suppose it: the demo, mine.yaml, and finished runs."""
    root = tmp_path_factory.mktemp("reader")
    tiny.llama(max_position_embeddings=4096).save_pretrained(root / "model")
    tiny.tokenizer(chat_template=TEMPLATE).save_pretrained(root / "model")
    (root / ".demo" / "movies").mkdir(parents=True)
    for name, rows in (("train", 40), ("heldout", 12)):
        lines = [{"text": "a fine film" * (1 + i % 3), "label": i % 2} for i in range(rows)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / ".demo" / "movies" / f"{name}.jsonl").write_text(text)
    (root / "recipes").mkdir()
    for name in packaged.names():
        path = packaged.path_of(name)
        assert path is not None
        (root / "recipes" / path.name).write_text(small(path.read_text(encoding="utf-8")))
    [block] = re.findall(r"```yaml\n(model:.*?)```", PAGES[0].read_text(), re.DOTALL)
    (root / "mine.yaml").write_text(small(block))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(packaged, "recipe_folder", lambda: root / "recipes")
        for run in ("quickstart", "quickstart-lora"):
            assert main(["train", run]) == 0
        for name in ("mine", "a", "b"):
            shutil.copytree("runs/quickstart", f"runs/{name}")
        yield root


def small(recipe: str) -> str:
    """The recipe, short, on the tiny model."""
    recipe = recipe.replace(MODEL, "model").replace("batch_size: 16", "batch_size: 4")
    recipe = recipe.replace("terrible", "bad")  # of which the tiny tokenizer makes one token
    return re.sub(r"steps: \d+", "steps: 8", re.sub(r"every: \d+", "every: 2", recipe))


@pytest.mark.parametrize(("page", "command"), shown())
def test_a_command_that_is_shown_works(
    page: str,
    command: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    verb, *arguments = shlex.split(command.replace(MODEL, "model"))[1:]
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdin", io.StringIO("who are you?\n"))
    arguments = ["2" if word == "50" and "--at" in arguments else word for word in arguments]
    for word in [*arguments]:
        if word.startswith("tune.layers"):
            arguments[arguments.index(word)] = "tune.layers=[0,1]"
    again = f"runs/shown/{abs(hash((page, command)))}"
    if verb == "train" and not {"--resume", "--output-dir"} & {*arguments}:
        arguments += ["--output-dir", again]
    if "--output-dir" in arguments:
        arguments[arguments.index("--output-dir") + 1] = again
    if verb == "push" and not any(word.startswith("hub.base_model=") for word in arguments):
        arguments.append("hub.base_model=you/base")  # the demo's base is a folder here
    if (verb, *arguments[:1]) == ("recipes", "cp"):
        arguments[-1] = f"{abs(hash(page))}.yaml"
    if verb in ("replay", "merge", "export"):
        for left in (*place.glob("runs/*/replayed-*"), place / "half"):
            shutil.rmtree(left, ignore_errors=True)
    assert main([verb, *arguments]) == 0, capsys.readouterr().err


def test_there_are_commands_to_run() -> None:
    found = shown()
    assert sum(page == "README.md" for page, _ in found) >= 12
    assert len(found) >= 45
    verbs = {shlex.split(command)[1] for _, command in found}
    assert {"train", "plan", "eval", "range", "validate", "data", "generate", "chat", "replay",
            "journal", "runs", "recipes", "schema", "doctor", "merge", "push"} <= verbs  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_scripts_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
    for script in re.findall(r"(?:bash|python) ((?:scripts|benchmarks|recipes)/[\w/.]+)", text):
        assert (ROOT / script).exists(), script
