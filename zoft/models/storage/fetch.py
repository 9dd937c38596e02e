"""From the name of a model to a folder of safetensors on this machine.

Folders and Hub snapshots that hold safetensors are used in place. A GGUF file is de-quantised to
float32, a `.bin` checkpoint (most OPT repositories) rewritten shard by shard, each once, into the
cache: `$XDG_CACHE_HOME/zoft`, by default `~/.cache/zoft`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from zoft.errors import EnvironmentProblem, disk_words, first_line, system_error
from zoft.models.storage.adapter_files import adapters_below
from zoft.models.storage.safetensors import WEIGHTS, WEIGHTS_INDEX
from zoft.system import demo
from zoft.system.atomic_io import lock, staged
from zoft.system.silence import quiet

_BIN = "pytorch_model.bin"
_BIN_INDEX = "pytorch_model.bin.index.json"
# Config, tokenizer, chat template. Repositories hold copies of the weights in other formats too
# (`consolidated*.safetensors`, `original/`, `onnx/`), so files are asked for by name.
_COMPANIONS = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
_CODE = ("*.py",)

Begin = Callable[[], None]  # called before a conversion begins


def local_safetensors(
    name: str,
    revision: str | None,
    *,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """The folder with the safetensors, config and tokenizer of the model called `name`.

    `name` is a `.gguf` file, a folder, or a Hub id (at `revision`; None: its main branch). A
    conversion takes its time; `say` is told before it begins.
    Raises EnvironmentProblem if it does not exist, cannot be fetched or cannot be converted.
    """
    companions = _COMPANIONS + (_CODE if trust_remote_code else ())
    path = Path(name).expanduser()
    begin = partial(say, f"converting {name} to safetensors, once (into {cache_folder()}) ...")
    if name.endswith(".gguf"):
        if not path.is_file():
            raise EnvironmentProblem(f"model.name: there is no file {name}{demo.hint(name)}")
        return _from_gguf(path, begin)
    if path.is_dir():
        folder = path
    elif path.exists() or name.startswith((".", "/", "~")):
        raise EnvironmentProblem(f"model.name: there is no model folder {name}")
    else:
        safetensors = (WEIGHTS, "model-*.safetensors")
        folder = snapshot(name, revision, (*companions, *safetensors))
        if not _has(folder, WEIGHTS, WEIGHTS_INDEX):
            folder = snapshot(name, revision, (*companions, _BIN, "pytorch_model-*.bin"))
    if _has(folder, WEIGHTS, WEIGHTS_INDEX):
        return folder
    if _has(folder, _BIN, _BIN_INDEX):
        return _from_bin(folder, companions, begin)
    if _has(folder, "adapter_config.json"):
        raise EnvironmentProblem(f"model.name: {name} is an adapter; name its base model")
    if below := adapters_below(folder):
        raise EnvironmentProblem(f"model.name: {name} is no model{below}")
    hidden = not name.startswith((".", "/", "~")) and name.count("/") < 2 and path.is_dir()
    raise EnvironmentProblem(
        f"model.name: {name} holds neither {WEIGHTS} nor {_BIN}"
        + (
            "; if a model of the Hub is meant, the folder of that name here hides it"
            if hidden
            else ""
        )
    )


def local_tokenizer(name: str, revision: str | None, *, trust_remote_code: bool = False) -> Path:
    """A folder with the tokenizer of the model called `name`; no weights are fetched from the Hub.

    Raises EnvironmentProblem as `local_safetensors` does.
    """
    path = Path(name).expanduser()
    if path.exists() or name.endswith(".gguf") or name.startswith((".", "/", "~")):
        return local_safetensors(name, revision, trust_remote_code=trust_remote_code)
    return snapshot(name, revision, _COMPANIONS + (_CODE if trust_remote_code else ()))


def cache_folder() -> Path:
    """Where converted models are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "zoft" / "models"


def make_cache_folder() -> Path:
    """The same, made if need be. Raises EnvironmentProblem where it cannot be."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"{folder} cannot be made ({error.strerror}): set XDG_CACHE_HOME to a folder that can"
        ) from error
    return folder


def _has(folder: Path, *names: str) -> bool:
    """Whether the folder holds a file of one of these names."""
    return any((folder / name).is_file() for name in names)


def snapshot(
    name: str,
    revision: str | None,
    patterns: tuple[str, ...],
    *,
    ignored: tuple[str, ...] = ("*/*",),
    key: str = "model.name: ",
) -> Path:
    """The files of a Hub repository that match, from the Hub or, without a network, its cache.

    `key` is what named it, for what is raised: EnvironmentProblem.
    """
    login = "log in with `hf auth login` or set HF_TOKEN"
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(ignored)
        )
    except HFValidationError as error:
        problem = f"{name!r} is neither a folder here nor a Hub id"
        if key and "@" in name:
            problem += ": a revision is written as model.revision"
        raise EnvironmentProblem(f"{key}{problem}") from error
    except GatedRepoError as error:
        problem = f"{name} is gated: accept its terms at {constants.ENDPOINT}/{name}, then {login}"
        raise EnvironmentProblem(f"{key}{problem}") from error
    except RepositoryNotFoundError as error:
        problem = f"{name} is neither a folder here nor a model on the Hub; if it is private, "
        raise EnvironmentProblem(f"{key}{problem}{login}") from error
    except RevisionNotFoundError as error:
        raise EnvironmentProblem(f"{name} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        problem = f"{name} is neither a folder here nor in the cache, and the Hub is out of reach"
        raise EnvironmentProblem(f"{key}{problem}") from error
    except Exception as error:  # proxies, TLS, time-outs, full disks: many classes, one answer
        raise EnvironmentProblem(f"cannot fetch {name}: {first_line(error)}") from error
    return Path(folder)


def local_folder(name: str) -> Path | None:
    """Where a folder's or a `.gguf` file's safetensors lie already: nothing is fetched or converted."""
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        path = cache_folder() / _gguf_name(path)
    return path if path.is_dir() else None


def _gguf_name(file: Path) -> str:
    """Name the folder of a converted file after its own name and its content's sha256."""
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {file}: {error.strerror}") from error
    return f"{file.stem}-{digest[:16]}"


def _from_gguf(file: Path, begin: Begin) -> Path:
    """Convert a GGUF file, unless it was converted before, and return the folder."""

    def build(target: Path) -> None:
        with quiet(), redirect_stderr(io.StringIO()):  # the bar of this conversion has no switch
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
            model = AutoModelForCausalLM.from_pretrained(
                str(file.parent),
                gguf_file=file.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),  # otherwise it cannot be saved
            )
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)

    return _once(_gguf_name(file), file, begin, build)


def _from_bin(folder: Path, companions: tuple[str, ...], begin: Begin) -> Path:
    """Convert `pytorch_model*.bin`, unless they were converted before, and return the folder."""
    index = folder / _BIN_INDEX
    try:
        names = (
            set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if index.exists()
            else ()
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise EnvironmentProblem(f"cannot read {index}: {first_line(error)}") from error
    shards = [folder / Path(name).name for name in sorted(names)] or [folder / _BIN]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise EnvironmentProblem(f"{folder} lacks {', '.join(missing)}, which its index names")
    files = sorted({file for glob in companions for file in folder.glob(glob)} - {index})
    # Shards may hold hundreds of gigabytes: their sizes and times stand for their bytes.
    stamps = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in (*shards, *files)]
    key = hashlib.sha256(repr((str(folder.resolve()), stamps)).encode()).hexdigest()[:16]

    def build(target: Path) -> None:
        weight_map: dict[str, str] = {}
        total = 0
        for number, shard in enumerate(shards, start=1):
            tensors = _read_bin(shard)
            part = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            name = WEIGHTS if len(shards) == 1 else part
            save_file(tensors, target / name, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(tensors, name))
            total += sum(tensor.nbytes for tensor in tensors.values())
        if len(shards) > 1:
            content = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (target / WEIGHTS_INDEX).write_text(json.dumps(content, indent=2))
        for file in files:
            shutil.copy(file, target)

    return _once(f"{folder.name}-{key}", folder, begin, build)


def _read_bin(shard: Path) -> dict[str, Tensor]:
    """The tensors of one `.bin` file, each in memory of its own: safetensors refuses views."""
    try:
        # torch maps zip archives, its format since 1.6, and reads older files whole.
        mapped = zipfile.is_zipfile(shard)
        state = torch.load(shard, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        problem = f"{shard} holds more than tensors (or is damaged): not opened"
        raise EnvironmentProblem(problem) from error
    tensors = {
        key: value.clone(memory_format=torch.contiguous_format)
        for key, value in (state.items() if isinstance(state, dict) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise EnvironmentProblem(f"{shard} holds no tensors")
    return tensors


def _once(key: str, source: Path, begin: Begin, build: Callable[[Path], None]) -> Path:
    """The cached folder `key`; made by `build` if it is not there, complete or not at all."""
    target = cache_folder() / key
    if target.is_dir():
        return target
    make_cache_folder()
    try:
        with target.with_name(f".{key}.lock").open("w") as file:
            lock(file)  # the ranks of one machine convert together: one works
            if target.is_dir():
                return target
            begin()
            with staged(target) as partial:
                partial.mkdir()
                build(partial)
    except (EnvironmentProblem, MemoryError):
        raise
    except Exception as error:  # whatever transformers, torch and gguf raise at a file they dislike
        refused = system_error(error)
        reason = disk_words(refused) if refused else first_line(error)
        raise EnvironmentProblem(f"cannot convert {source}: {reason}") from error
    return target
