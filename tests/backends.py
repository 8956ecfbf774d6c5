"""Small tokenizers of the families that documents are cut for, and texts that are hard to cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from yarn_train.data.cuts import EXPRESSIONS

BOS, EOS = "<s>", "</s>"
TEXT = [
    "The whale isn't a fish, said the captain; it's a beast of the sea. </s>\n\nCall me Ishmael.\nSome years ago\n",
    "def f(x):\n    return x // 2  # it's 12345\r\n\tpass\n\n\n" * 2,
    "Der Wal: été naïve “quoted” — dash. Кит не рыба, сказал капитан.\n鲸鱼不是鱼。\nשלום עולם مرحبا\n",  # noqa: RUF001
]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
_WORDS = (
    "the whale The WHALE it's IT'S don't we'll 12345 7 x's 'twas camelCase snake_case http://a.b/c// . ; ... -- ! ? \" "
    "' ( ) / _ <| ▁ ▁▁ ▁a </s> <s> <0x0A> <think> , . é e\u0301 \u0301 été ſ \u212a \u037e ʰ ǅ ² ① ٣ Кит рыба 鲸鱼 。 "  # noqa: RUF001
    "한국 \u1112\u1161\u11ab \u1161 שלום مرحبا नमस्ते 👍🏽 🇩🇪 👨\u200d👩 “quoted” —"
)
FRAGMENTS = _WORDS.split()
SPACES = [
    ".\n/",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    "\t",
    "   ",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x85",
    "\u00a0",
    "\u2028",
    "\u3000",
    "\u180e",
]
ODD = ["\x00", "\ufeff", "\u200b", "\U000e0041", "\x7f"]

texts = st.one_of(
    st.lists(st.sampled_from([*FRAGMENTS, *[" "] * 25, *SPACES, *ODD]), min_size=6, max_size=60).map("".join),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80),
    st.text(alphabet=" \n\r'a1.é▁", max_size=40),
)


def _train(tokenizer: Tokenizer, special: Sequence[str], vocab_size: int, alphabet: Sequence[str] = ()) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special), initial_alphabet=list(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)


@cache
def byte_level(expression: str | None = None, nfc: bool = False, added: tuple[AddedToken, ...] = ()) -> Tokenizer:
    """A byte-level BPE, BOS = 0 and EOS = 1; with the name of an expression it splits by that, else like GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    if expression is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(EXPRESSIONS[expression]), "isolated")
        tail = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, tail])
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, [BOS, EOS], 500, sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_tokens(list(added))
    return tokenizer


@cache
def sentencepiece(style: str = "prepend") -> Tokenizer:
    """A Llama-2 style BPE with byte fallback, <unk> 0, BOS 1, EOS 2: prepend, replace, or a Metaspace's scheme."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    lines = pre_tokenizers.Split("\n", "removed")
    words = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, words])
    _train(tokenizer, ["<unk>", BOS, EOS, *BYTES], 560)
    replace = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    if style == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif style == "replace":
        tokenizer.normalizer = replace
    else:
        scheme, _, split = style.partition(" ")
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split == "split")
    plain = json.loads(tokenizer.to_str())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(plain))


STYLES = ["prepend", "replace", "always", "first", "never", "always split", "first split", "never split"]


def families() -> dict[str, Callable[[], Tokenizer]]:
    """Everything that must be cut, by name."""
    think = (AddedToken("<think>", special=False, normalized=False), AddedToken("</s>x", special=False))
    found: dict[str, Callable[[], Tokenizer]] = {
        "GPT-2": byte_level,
        "GPT-2, NFC": lambda: byte_level(nfc=True),
        "GPT-2, added": lambda: byte_level(added=think),
        "Qwen2, NFC, added": lambda: byte_level("Qwen2", True, think),
    }
    for name in EXPRESSIONS:
        found[name] = lambda name=name: byte_level(name)
    for style in STYLES:
        found[f"sentencepiece {style}"] = lambda style=style: sentencepiece(style)
    return found


def changed(tokenizer: Tokenizer, **parts: Any) -> str:
    """The JSON of a tokenizer with parts replaced; ``model`` is updated, not replaced."""
    described = json.loads(tokenizer.to_str())
    described["model"].update(parts.pop("model", {}))
    return json.dumps({**described, **parts})


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text as the tokenizer gives them, special tokens being text."""
    tokenizer.encode_special_tokens = True
    return tokenizer.encode(text, add_special_tokens=False).ids
