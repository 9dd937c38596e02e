"""What a push sends, and what it must leave alone."""

from __future__ import annotations

from pathlib import Path

PUSHED = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "loss.png", "metrics.jsonl",
    "recipe.yaml", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a folder: when it was written, and what it holds."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
