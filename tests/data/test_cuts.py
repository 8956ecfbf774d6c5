"""Cutting is exact for every family that is cut; what is not known is left whole."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise

import pytest
from backends import BYTES, EOS, byte_level, changed, families, ids, sentencepiece, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from yarn_train.data.cuts import EXPRESSIONS, SPACE, Cutting, cutting

FAMILIES = families()


def pieces_of(found: Cutting, text: str) -> list[str]:
    assert found.pieces is not None
    pieces = found.pieces.findall(text)
    assert "".join(pieces) == text
    return pieces


def ids_in_pieces(found: Cutting, backend: Tokenizer, pieces: list[str]) -> list[int]:
    if pieces:
        pieces = [found.prefixed(pieces[0]), *pieces[1:]]
    written = [piece.replace(" ", SPACE) if found.spaces else piece for piece in pieces]
    return [i for piece in written for i in ids(backend, piece)]


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_of_pieces_are_the_ids_of_the_text(name: str):
    backend = FAMILIES[name]()
    found = cutting(backend.to_str())
    own = Tokenizer.from_str(found.serialized)

    @settings(max_examples=150, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        assert ids_in_pieces(found, own, pieces_of(found, text)) == ids(backend, text)
        parts = [text[a:b] for a, b in pairwise(found.edges(text, 3))]
        assert "".join(parts) == text
        assert ids_in_pieces(found, own, parts) == ids(backend, text)
        assert [p for part in parts for p in pieces_of(found, part)] or not text

    check()


@pytest.mark.parametrize("name", [None, *EXPRESSIONS])
@pytest.mark.parametrize("nfc", [False, True])
def test_words_of_pieces_are_the_words_of_the_text(name: str | None, nfc: bool):
    """Stronger than equal ids, which a vocabulary without the merges in question would give by luck."""
    backend = byte_level(name, nfc)
    found = cutting(backend.to_str())

    def words(text: str) -> list[str]:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)] if normal else []

    @settings(max_examples=300, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        assert [word for piece in pieces_of(found, text) for word in words(piece)] == words(text)

    check()


LETTERS = "ab, \n" + SPACE


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_vocabulary_is_cut_wrongly(data: st.DataObject):
    """Random merges over few characters: tokens that join everything with everything."""
    vocab = {token: i for i, token in enumerate(BYTES)}
    for letter in data.draw(st.sets(st.sampled_from(LETTERS.replace(" ", "")))):
        vocab[letter] = len(vocab)
    merges = []
    for _ in range(data.draw(st.integers(0, 12)) if len(vocab) > 256 else 0):
        parts = st.sampled_from([t for t in vocab if t not in BYTES])
        left, right = data.draw(parts), data.draw(parts)
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append((left, right))
    plain = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token=None))
    normalizer = json.loads(sentencepiece().to_str())["normalizer"]
    backend = Tokenizer.from_str(changed(plain, normalizer=normalizer))
    found = cutting(backend.to_str())
    own = Tokenizer.from_str(found.serialized)
    for text in data.draw(st.lists(st.text(alphabet=LETTERS + "é", max_size=20), max_size=5)):
        assert ids_in_pieces(found, own, pieces_of(found, text)) == ids(backend, text)


def replaced(old: str, new: str) -> str:
    changed_text = byte_level("tekken").to_str().replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1])
    assert changed_text != byte_level("tekken").to_str()
    return changed_text


def added(content: str, **flags: bool) -> str:
    own = Tokenizer.from_str(byte_level().to_str())
    own.add_tokens([AddedToken(content, special=False, **flags)])
    return own.to_str()


def llama(**parts: object) -> str:
    return changed(sentencepiece(), **parts)


VOCAB = json.loads(sentencepiece().to_str())["model"]["vocab"]
SPLIT = {"type": "Split", "pattern": {"Regex": EXPRESSIONS["Qwen2"]}, "behavior": "Isolated", "invert": False}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WHOLE = {
    "dropout": (changed(byte_level(), model={"dropout": 0.1}), "dropout"),
    "dropout, sentencepiece": (llama(model={"dropout": 0.1}), "dropout"),
    "another model": (Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str(), "WordLevel"),
    "no pre_tokenizer": (changed(byte_level(), pre_tokenizer=None), "pre_tokenizer"),
    "prefix space": (changed(byte_level(), pre_tokenizer={**LEVEL, "add_prefix_space": True}), "pre_tokenizer"),
    "no expression": (changed(byte_level(), pre_tokenizer=LEVEL), "pre_tokenizer"),
    "unknown expression": (replaced(r"|\s+(?!\S)", r"|\s+(?=\S)"), "pre_tokenizer"),
    "two splits": (
        changed(byte_level(), pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT, SPLIT, LEVEL]}),
        "pre_tokenizer",
    ),
    "removed": (replaced("Isolated", "Removed"), "pre_tokenizer"),
    "inverted": (byte_level("tekken").to_str().replace('"invert":false', '"invert":true'), "pre_tokenizer"),
    "NFKC": (changed(byte_level(), normalizer={"type": "NFKC"}), "normalizer"),
    "added token with a space": (added("a b"), "added token 'a b'"),
    "added token with a cut": (added("x,y"), "added token"),
    "added token that takes spaces": (added("<think>", lstrip=True), "added token"),
    "added word": (added("think", single_word=True), "added token"),
    "added token that composes": (added("\u0301x"), "added token"),
    "added, sentencepiece": (
        llama(added_tokens=[{**json.loads(llama())["added_tokens"][0], "special": False}]),
        "not special",
    ),
    "no byte fallback": (llama(model={"byte_fallback": False}), "bytes"),
    "a byte is missing": (llama(model={"vocab": {t: i for t, i in VOCAB.items() if t != "<0x41>"}}), "bytes"),
    "bytes merge": (llama(model={"vocab": {**VOCAB, "<0x41><0x42>": len(VOCAB)}}), "bytes may merge"),
    "ignore_merges": (llama(model={"ignore_merges": True}), "where a word begins"),
    "suffix": (llama(model={"end_of_word_suffix": "</w>"}), "where a word begins"),
    "shared ids": (llama(model={"vocab": {**VOCAB, "new": 5}}), "share ids"),
    "another replacement": (
        changed(
            sentencepiece("first"), pre_tokenizer={"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"}
        ),
        "pre_tokenizer",
    ),
    "another normalizer": (llama(normalizer={"type": "NFC"}), "pre_tokenizer"),
    "two normalizers": (llama(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}]}), "pre_tokenizer"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_may_not_be_cut_stays_whole_and_says_why(case: str):
    serialized, reason = WHOLE[case]
    found = cutting(serialized)
    assert re.search(reason, found.reason), found.reason
    assert found.reason.startswith("documents are tokenised whole: ")
    assert found.cut is None
    assert found.pieces is None
    assert found.edges("a b " * 10, 3) == [0, 40]
    assert found.serialized == serialized


def test_a_special_token_that_can_hide_an_added_one_counts():
    own = Tokenizer.from_str(added("<think>"))
    assert cutting(own.to_str()).pieces is not None
    own.add_special_tokens(["a <th"])
    assert cutting(own.to_str()).pieces is None
    assert EOS in own.get_vocab()


def test_words_are_pieces():
    found = cutting(byte_level().to_str())
    assert pieces_of(found, "The whale, it's.\nCall me\n\nnow") == [
        "The", " whale", ",", " it's.\n", "Call", " me", "\n\nnow",
    ]  # fmt: skip
    found = cutting(sentencepiece().to_str())
    assert pieces_of(found, "The whale sang\nCall  me") == ["The", " whale", " sang", "\n", "Call", "  me"]


JOINED = llama(model={"vocab": {**VOCAB, "\n": len(VOCAB), "e\n": len(VOCAB) + 1}})


@pytest.mark.parametrize("serialized", [byte_level().to_str(), llama(), JOINED], ids=["bytes", "llama", "joined"])
def test_no_part_of_a_text_is_empty(serialized: str):
    found = cutting(serialized)
    text = "the whale\n" * 3
    for size in range(1, len(text) + 2):
        edges = found.edges(text, size)
        assert (edges[0], edges[-1]) == (0, len(text))
        assert all(b - a >= size for a, b in pairwise(edges[:-1]))
        assert edges[-1] > edges[-2]
    assert found.edges("", 3) == [0, 0]


@pytest.mark.parametrize("family", ["GPT-2", "o200k", "sentencepiece prepend", "sentencepiece never split"])
@pytest.mark.parametrize("unit", ["a,", "w", " ", "\n", SPACE, ", ", "'", "é", ".\n", "1", "a\n ", "\n\n.", "x-"])
def test_no_text_is_slow_to_cut(family: str, unit: str):
    found = cutting(FAMILIES[family]().to_str())
    text = unit * (300_000 // len(unit)) + "é\t"
    started = time.process_time()
    pieces_of(found, text)
    found.edges(text, 1000)
    assert time.process_time() - started < 1.5
