"""tokenizer.json as llama.cpp's tokenizers: byte-level BPE ("gpt2") or BPE with byte fallback ("llama").

Byte-level BPE splits text first, and llama.cpp has these splits by name only: a tokenizer whose split it does not have
is refused. BPE with byte fallback becomes SentencePiece, where a score per token says what is merged first: minus the
rank of the merge that makes it.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from .package import GGUFError, library

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {_LETTERS + r"\p{N}{1,3}" + _REST: "llama-bpe", _LETTERS + r"\p{N}" + _REST: "qwen2"}
NEVER_MERGED = -1e6  # score of a token that no merge makes


def write_vocabulary(writer: Any, folder: Path, size: int) -> None:
    """Add all tokenizer keys; ids from the tokenizer's end up to `size` become unused tokens.

    Raises:
        GGUFError: no tokenizer.json, or a tokenizer that llama.cpp does not have.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise GGUFError(f"{path} is missing: a GGUF holds its tokenizer")
    data = json.loads(path.read_text(encoding="utf-8"))
    model = data["model"]
    if model.get("type") != "BPE":
        raise GGUFError(f"{path}: a {model.get('type')} tokenizer; only BPE is verified against llama.cpp")
    gguf, sentences = library(), bool(model.get("byte_fallback"))
    if sentences:
        _check_sentences(path, data)
    writer.add_tokenizer_model("llama" if sentences else "gpt2")
    writer.add_tokenizer_pre("default" if sentences else split_name(path, data))
    tokens, kinds = _tokens(gguf, data, size, sentences)
    writer.add_token_list(tokens)
    if sentences:
        writer.add_token_scores(_scores(tokens, model["merges"]))
        writer.add_add_space_prefix("Prepend" in json.dumps(data.get("normalizer")))
    writer.add_token_types(kinds)
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it warns about templates for pairs of texts
    gguf.SpecialVocab(folder, load_merges=not sentences, n_vocab=len(tokens)).add_to_gguf(writer, quiet=True)


def split_name(path: Path, data: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits text before merging.

    Raises:
        GGUFError: it has none.
    """
    steps = data.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    name = None
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        name = "gpt-2"
    elif kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        name = "smollm"
    elif kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        name = SPLITS.get(steps[0]["pattern"].get("Regex"))
    normal = data.get("normalizer")
    plain = normal is None or (name == "qwen2" and normal.get("type") == "NFC")
    whole = bool(data["model"].get("ignore_merges")) == (name == "llama-bpe")
    if name is None or not plain or not whole or steps[-1].get("add_prefix_space"):
        raise GGUFError(f"{path}: llama.cpp has no tokenizer that splits text as this one does ({kinds})")
    return name


def _check_sentences(path: Path, data: dict[str, Any]) -> None:
    steps = data.get("normalizer") or {}
    kinds = [step.get("type") for step in steps.get("normalizers", [steps])]
    before = data.get("pre_tokenizer")
    if kinds not in (["Prepend", "Replace"], ["Replace"]) or before is not None:
        raise GGUFError(f"{path}: BPE with byte fallback, but not SentencePiece's way with spaces ({kinds}, {before})")


def _tokens(gguf: Any, data: dict[str, Any], size: int, sentences: bool) -> tuple[list[str], list[int]]:
    """(tokens by id, what each is)."""
    kind = gguf.TokenType
    by_id = {number: (token, kind.NORMAL) for token, number in data["model"]["vocab"].items()}
    if sentences:
        by_id |= {n: (t, kind.BYTE) for n, (t, _) in by_id.items() if len(t) == 6 and t.startswith("<0x")}
    for added in data.get("added_tokens", []):
        by_id[added["id"]] = (added["content"], kind.CONTROL if added["special"] else kind.USER_DEFINED)
    unknown = data["model"].get("unk_token")
    by_id |= {n: (t, kind.UNKNOWN) for n, (t, _) in by_id.items() if sentences and t == unknown}
    if max(by_id) >= size:
        raise GGUFError(f"the tokenizer has an id {max(by_id)}, the model only {size} tokens")
    listed = [by_id.get(number, (f"[PAD{number}]", kind.UNUSED)) for number in range(size)]
    return [token for token, _ in listed], [int(what) for _, what in listed]


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """Minus the rank of the first merge that makes each token."""
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(first + second, -float(rank))
    return [ranks.get(token, NEVER_MERGED) for token in tokens]
