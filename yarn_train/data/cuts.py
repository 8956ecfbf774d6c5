"""Where a text may be cut so that the ids of its pieces, one after the other, are the ids of the text.

Whether that is so is decided from the structure of a tokenizer alone. One whose structure is not known here is never
cut: its documents are tokenised whole. Special tokens are never recognised in documents (`Encoder` sees to that), and
post-processors only add special tokens, so neither matters below. Dropout draws at random: never cut.

**Byte-level BPE** behind one of the listed expressions (GPT-2's, cl100k, Llama-3, Qwen, o200k, tekken). BPE works in
one match of the expression, so a cut x|y is exact if the matches before it, the match boundary at it and the matches
after it are those of the whole text. No expression looks behind, so the matches after a boundary never change. Those
before it cannot change if no alternative can consume x and then y, and if no lookahead is evaluated between them; the
only one, ``\\s+(?!\\S)``, is evaluated behind white space. Hence these cuts (w: printable ASCII or a letter or digit):

- w | space: a space is consumed only as the first character of a match or after white space.
- ASCII letter or digit | one of ``-,.;:!?)"`` or newline: what consumes a letter or digit goes on with letters, marks,
  digits or a contraction, which starts with an apostrophe. Only runs of punctuation swallow a following newline.
- w newline | w except ``/``: a newline after w is a match of its own or ends a run of punctuation and newlines (in
  o200k and tekken also slashes). Behind it, ``\\s+(?!\\S)`` matches nothing if w follows, since there is only one white
  space character, and ``\\s+`` matches the newline; at the end of a text the lookahead matches that same newline.

With NFC in front, no cut has a character on its right that composes with one before it or on its left one that
composes with what follows: one of both is a space, a newline or punctuation that takes no part in composition.
Added tokens that are not special are found before all this, leftmost and longest, so they must be ASCII, take no white
space from around them, and contain no possible cut; and so must the special ones, which can hide them.

**SentencePiece-style BPE** (Llama-2: spaces become ▁, one is put in front, the whole text is one word). Merges only
make strings of the vocabulary, so where no token has x and y side by side no merge spans x|y, and both sides merge as
they would alone. With a complete byte fallback no character is unknown (unknown neighbours may fuse), and one that is
not in the vocabulary becomes bytes; if no token contains a written byte, these merge with nothing. Looking up whole
words first (ignore_merges) would depend on where a word is cut: never cut. The prefix belongs to the start of a
document, so pieces are tokenised without the tokenizer's own. ▁ written in a text is a space to such a tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from string import ascii_letters
from typing import Any

SPACE = "▁"

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EXPRESSIONS = {
    "cl100k and Llama-3": _CL100K,
    "cl100k, one line end": _CL100K.replace(r"\s*[\r\n]+|", r"\s*[\r\n]|"),
    "Qwen2": _CL100K.replace("{1,3}", ""),
    "Qwen3.5": _QWEN3_5,
    "tekken": _TEKKEN,
    "o200k": _O200K,
}

# Pieces: quick alternatives for what most text is made of, each ending in a cut, then whatever comes up to the next
# cut. The quick ones are bounded, or a long run that fails at its end would be tried again from every cut inside it.
_ENDS_A_WORD = '-,.;:!?)"'  # printable ASCII, but no apostrophe: contractions
_BYTE_LEVEL_CUT = rf"(?<=[!-~\w])(?= )|(?<=[!-~\w]\n)(?=[!-.0-~\w])|(?<=[0-9A-Za-z])(?=[{_ENDS_A_WORD}\n])"
_BYTE_LEVEL_QUICK = (
    rf" ?[A-Za-z]{{1,40}}+(?=[{_ENDS_A_WORD} \n])|[,.;:!?]{{1,8}}+(?:(?= )|\n(?=[!-.0-~\w]))"
    r"|\n(?=[!-.0-~\w])(?<=[!-~\w]\n)| ?[!-~]{1,40}+(?:(?= )|\n(?=[!-.0-~\w]))| ?\w{1,40}+(?= )"
)


@dataclass(frozen=True)
class Cutting:
    """How the documents of one tokenizer are cut.

    Attributes:
        reason: one line for people: whether documents are cut, and why.
        serialized: the backend that tokenises the pieces.
        cut: matches the empty string where a text may be cut, never at its start; None: nowhere.
        pieces: ``findall`` gives the pieces of a text, which begin and end at cuts; None: the text is the only one.
        prefix: ``""``, or how ▁ is put before a document: ``always``, or where it is ``missing``.
        spaces: whether spaces are to be written as ▁ before tokenising.
    """

    reason: str
    serialized: str
    cut: re.Pattern[str] | None = None
    pieces: re.Pattern[str] | None = None
    prefix: str = ""
    spaces: bool = False

    def edges(self, text: str, size: int) -> list[int]:
        """0, cuts that leave at least ``size`` characters before each, and the length of ``text``."""
        edges, end = [0], len(text)
        while self.cut is not None and edges[-1] + size < end:
            found = self.cut.search(text, edges[-1] + size)
            if found is None or found.start() == end:
                break
            edges.append(found.start())
        return [*edges, end]

    def prefixed(self, text: str) -> str:
        """The start of a document with what the tokenizer puts before it."""
        missing = self.prefix == "missing" and not text.startswith((" ", SPACE))
        return SPACE + text if text and (missing or self.prefix == "always") else text


class _NotCut(Exception):
    """Why a tokenizer's documents stay whole."""


def cutting(serialized: str) -> Cutting:
    """How to cut the texts of a tokenizer, from the JSON of its backend (``backend.to_str()``)."""
    try:
        backend = json.loads(serialized)
        if backend["model"]["type"] != "BPE":
            raise _NotCut(f"a {backend['model']['type']} model may join what a cut separates")
        if backend["model"]["dropout"]:
            raise _NotCut("dropout makes its ids random")
        return _sentencepiece(backend) or _byte_level(backend, serialized)
    except _NotCut as reason:
        return Cutting(f"documents are tokenised whole: {reason}", serialized)


def _byte_level(backend: dict[str, Any], serialized: str) -> Cutting:
    steps = backend["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps]) if steps.get("type") in ("Sequence", "ByteLevel") else []
    own = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": len(steps) == 1}
    if not steps or {key: steps[-1].get(key) for key in own} != own or not _known(steps[:-1]):
        raise _NotCut("its pre_tokenizer is none that is known to be cut safely")
    if backend["normalizer"] not in (None, {"type": "NFC"}):
        raise _NotCut("its normalizer is none that is known to be cut safely")
    _check_added(backend["added_tokens"])
    cut = re.compile(_BYTE_LEVEL_CUT)
    pieces = re.compile(f"{_BYTE_LEVEL_QUICK}|{_up_to(_BYTE_LEVEL_CUT)}")
    return Cutting("documents are cut at spaces and line ends (byte-level BPE)", serialized, cut, pieces)


def _known(steps: list[dict[str, Any]]) -> bool:
    """Whether what comes before ``ByteLevel`` is nothing, or one split by an expression of the list."""
    allowed = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in EXPRESSIONS.values()
    ]
    return not steps or (len(steps) == 1 and steps[0] in allowed)


def _check_added(added: list[dict[str, Any]]) -> None:
    """Raise if an added token that is not special, or one that can hide such a token, can touch a cut."""
    if all(token["special"] for token in added):
        return
    for token in added:
        grabs = not token["special"] and (token["lstrip"] or token["rstrip"] or token["single_word"])
        content = token["content"]
        if grabs or not content.isascii() or re.search(rf"\s|[0-9A-Za-z][{_ENDS_A_WORD}]", content):
            raise _NotCut(f"its added token {content!r} may lie across a cut")


_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}


def _sentencepiece(backend: dict[str, Any]) -> Cutting | None:
    """The cutting of a SentencePiece-style BPE; None if it is none."""
    normalizer, metaspace = backend["normalizer"], backend["pre_tokenizer"]
    if metaspace is None and normalizer in (_REPLACE, {"type": "Sequence", "normalizers": [_PREPEND, _REPLACE]}):
        prefix = "" if normalizer == _REPLACE else "always"
    elif normalizer is None and metaspace and metaspace["type"] == "Metaspace" and metaspace["replacement"] == SPACE:
        prefix = "" if metaspace["prepend_scheme"] == "never" else "missing"
    else:
        return None
    _check_sentencepiece(backend)
    splits = {**metaspace, "prepend_scheme": "never"} if metaspace and metaspace["split"] else None
    derived = {**backend, "normalizer": None, "pre_tokenizer": splits}
    cut, pieces = _vocabulary_cuts(backend["model"]["vocab"])
    return Cutting(
        "documents are cut where no token of the vocabulary joins what is beside a space or line end "
        "(SentencePiece-style BPE)",
        json.dumps(derived, ensure_ascii=False),
        cut,
        pieces,
        prefix,
        spaces=True,
    )


def _check_sentencepiece(backend: dict[str, Any]) -> None:
    """Raise if the argument from the vocabulary does not hold."""
    model = backend["model"]
    vocab = model["vocab"]
    written = {f"<0x{byte:02X}>" for byte in range(256)}
    if not all(token["special"] for token in backend["added_tokens"]):
        raise _NotCut("it has added tokens that are not special")
    if not model["byte_fallback"] or not written <= vocab.keys():
        raise _NotCut("without tokens for all bytes, unknown characters beside each other may become one token")
    if any("<0x" in token and any(byte in token for byte in written) for token in vocab.keys() - written):
        raise _NotCut("bytes may merge")
    if model["ignore_merges"] or model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        raise _NotCut("its merges depend on where a word begins and ends")
    if len(set(vocab.values())) < len(vocab):
        raise _NotCut("tokens share ids")


def _vocabulary_cuts(vocab: Iterable[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """(cut, pieces) beside ▁ (or the space it stands for), newlines and punctuation, as far as no token joins both."""
    joined = {pair for token in vocab for pair in pairwise(token)}
    before_space = _class(a for a, b in joined if b == SPACE)
    before_newline = _class(a for a, b in joined if b == "\n")
    after_newline = _class(b for a, b in joined if a == "\n")
    after_letter = _class(b for b in ",.;:!?\"'-" if not any((a, b) in joined for a in ascii_letters))
    ends = rf"(?<!{before_space})(?=[ {SPACE}])|(?<!{before_newline})(?=\n)"
    cut = rf"(?!\A)(?:{ends}|(?<=\n)(?!{after_newline})|(?<=[A-Za-z])(?={after_letter}))"
    word = rf"[ {SPACE}]{{0,16}}+[A-Za-z]{{1,40}}+(?={after_letter})"
    quick = rf"{word}|[ {SPACE}]{{0,16}}+[^ {SPACE}\n]{{1,40}}+(?:{ends}|\Z)|\n(?!{after_newline})"
    return re.compile(cut), re.compile(f"{quick}|{_up_to(cut)}")


def _class(characters: Iterable[str]) -> str:
    """An expression for one of ``characters``; ▁ stands for the space too. Matches nothing if there are none."""
    found = sorted({*characters})
    if not found:
        return r"[^\s\S]"
    return "[" + "".join(map(re.escape, [*found, " "] if SPACE in found else found)) + "]"


def _up_to(cut: str) -> str:
    return rf"(?s:.+?)(?:{cut}|\Z)"
