"""A tokenizer in GGUF's words: byte-level BPE, whose way of cutting text into words has a name there."""

from __future__ import annotations

import json
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from zoft.errors import RecipeError

# How text is cut into words before merges apply (tokenizer.json, pre_tokenizer) -> llama.cpp's name.
_DIGITS = {"type": "Digits", "individual_digits": True}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_WORDS.replace("DIGITS", "{1,3}"): "llama-bpe", _WORDS.replace("DIGITS", ""): "qwen2"}


def add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Tokens, merges, special ids and the chat template, for an embedding of so many rows.

    Raises RecipeError if GGUF has no words for this tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise RecipeError("the tokenizer has no tokenizer.json")
    content = json.loads(backend.to_str())
    name = words_named(content)
    tokens, kinds = _tokens(tokenizer, content, rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = content["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if number is not None:
            add(number)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(begins)
    writer.add_add_space_prefix(False)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name: `default` is the one that llama.cpp takes
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template is not None:
        writer.add_chat_template(template)


def words_named(content: dict[str, Any]) -> str:
    """llama.cpp's name for how this tokenizer.json cuts text into words. Raises RecipeError."""
    if content["model"]["type"] != "BPE" or content["model"].get("byte_fallback"):
        raise RecipeError("the tokenizer is no byte-level BPE")
    if content.get("normalizer") is not None and content["normalizer"].get("type") != "NFC":
        raise RecipeError("the tokenizer rewrites text before it cuts it (normalizer)")
    found = content.get("pre_tokenizer") or {}
    parts = found["pretokenizers"] if found.get("type") == "Sequence" else [found]
    last = parts[-1]
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        if parts[:-1] == [] and last.get("use_regex", True):
            return "gpt-2"
        if parts[:-1] == [_DIGITS] and last.get("use_regex", True):
            return "smollm"
        if len(parts) == 2 and parts[0].get("type") == "Split" and not last.get("use_regex"):
            split = _SPLITS.get(parts[0]["pattern"].get("Regex"))
            if split and parts[0]["behavior"] == "Isolated" and not parts[0]["invert"]:
                return split
    raise RecipeError("the tokenizer cuts text into words in a way that zoft has no name for")


def _tokens(
    tokenizer: PreTrainedTokenizerBase, content: dict[str, Any], rows: int
) -> tuple[list[str], list[int]]:
    """One for each row of the embedding; rows without a token get a name that no text has."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(by_id) >= rows:
        raise RecipeError(f"the tokenizer has token {max(by_id)}, the model {rows} rows for them")
    added = {entry["id"]: entry for entry in content["added_tokens"]}
    kinds = []
    for number in range(rows):
        if number not in by_id:
            kind = gguf.TokenType.UNUSED
        elif number in added:
            special = added[number]["special"]
            kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        else:
            kind = gguf.TokenType.NORMAL
        kinds.append(int(kind))
    return [by_id.get(number, f"[PAD{number}]") for number in range(rows)], kinds
