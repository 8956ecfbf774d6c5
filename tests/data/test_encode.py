"""The encoder of one process gives the ids of the unsplit tokenizer, whatever its chunks and cache."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from backends import STYLES, byte_level, changed, families, ids, sentencepiece, texts
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from yarn_train.data import encode
from yarn_train.data.cuts import SPACE
from yarn_train.data.encode import Encoder, recipe_of
from yarn_train.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
UINT16 = np.dtype(np.uint16)
FAMILIES = families()


def marks(name: str) -> tuple[int, int]:
    return (1, 2) if name.startswith("sentencepiece") else (0, 1)


def unsplit(name: str) -> Encoder:
    return Encoder(Tokenizer.from_str(FAMILIES[name]().to_str()), *marks(name), UINT16)


def in_pieces(name: str) -> Encoder:
    return recipe_of(FAMILIES[name]().to_str(), *marks(name), UINT16).encoder()


@pytest.mark.parametrize("name", FAMILIES)
def test_tiny_chunks_and_a_tiny_cache_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encode, "CHUNK", 7)
    monkeypatch.setattr(encode, "CACHED", 3)
    monkeypatch.setattr(encode, "LONGEST", 5)
    reference, encoder = unsplit(name), in_pieces(name)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(texts)
    def check(text: str) -> None:
        found = encoder.encode(text)
        assert found.tolist() == reference.encode(text).tolist() == ids(FAMILIES[name](), text)
        assert found.dtype == UINT16

    check()
    assert len(encoder._cache) <= 3
    assert len(encoder._cache._before) <= 3
    assert max(map(len, encoder._cache), default=0) <= 5


def test_pieces_come_from_the_cache():
    encoder = in_pieces("GPT-2")
    first = encoder.encode("the whale " * 100)
    encoder._cache._make = lambda piece: pytest.fail(f"{piece!r} again")
    assert np.array_equal(encoder.encode("the whale " * 100), first)


def test_a_full_cache_keeps_what_is_in_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encode, "CACHED", 2)
    made: list[str] = []
    cache = encode._Cache(lambda piece: made.append(piece) or b"")  # type: ignore[func-returns-value]
    for piece in "abacadaea":
        assert cache[piece] == b""
    assert made == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("chunk", [4, 2**19])
def test_a_marker_that_is_one_token_is_cut_inside_as_without_pieces(chunk: int, monkeypatch: pytest.MonkeyPatch):
    """Merges, or a flag that says the marker is not special, can make ``</s>`` in a text the id of EOS."""
    monkeypatch.setattr(encode, "CHUNK", chunk)
    backend = Tokenizer.from_str(FAMILIES["GPT-2"]().to_str())
    backend.add_tokens([AddedToken("<eos>", special=False)])
    eos = backend.token_to_id("<eos>")
    whole = Encoder(Tokenizer.from_str(backend.to_str()), 0, eos, UINT16)
    encoder = recipe_of(backend.to_str(), 0, eos, UINT16).encoder()
    text = "the whale <eos> a fish<eos> it is " * 3
    found = encoder.encode(text)
    assert np.array_equal(found, whole.encode(text))
    assert not encoder.has_marker(found)
    assert backend.decode(found.tolist()) == text


def mergeable(tokenizer: Tokenizer, marker: str = "</s>") -> str:
    """The same tokenizer with merges that make ``marker`` of plain characters."""
    described = json.loads(tokenizer.to_str())
    vocab, merges = described["model"]["vocab"], described["model"]["merges"]
    for token in [*marker, *(marker[:end] for end in range(2, len(marker)))]:
        vocab.setdefault(token, max(vocab.values()) + 1)
    merges[:0] = [[marker[:end], marker[end]] for end in range(1, len(marker))]
    return json.dumps(described)


UNPREFIXED = ("replace", "never", "never split")


@pytest.mark.parametrize("style", [*STYLES, "ByteLevel"])
@pytest.mark.parametrize("chunk", [4, 2**19])
def test_only_a_document_begins_with_the_prefix_not_what_follows_a_marker(
    style: str, chunk: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(encode, "CHUNK", chunk)
    if style == "ByteLevel":
        space = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
        serialized = mergeable(Tokenizer.from_str(changed(byte_level(), pre_tokenizer=space)))
        bos, eos = 0, 1
    else:
        serialized, bos, eos = mergeable(sentencepiece(style)), 1, 2
    whole = Encoder(Tokenizer.from_str(serialized), bos, eos, UINT16)
    encoder = recipe_of(serialized, bos, eos, UINT16).encoder()
    assert (encoder.cutting.pieces is None) == (style == "ByteLevel")
    assert eos in ids(whole.backend, "a</s>b")

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @example(["a", "b"])
    @example(["", "the whale", " a fish ", ""])
    @example(["a", "<unk>b"])
    @given(st.lists(texts.filter(lambda text: SPACE not in text), min_size=2, max_size=3))
    def check(parts: list[str]) -> None:
        text = "</s>".join(parts)
        found = encoder.encode(text)
        assert np.array_equal(found, whole.encode(text))
        assert not encoder.has_marker(found)
        decoded = whole.backend.decode(found.tolist(), skip_special_tokens=False)
        added = style == "prepend" or (style not in UNPREFIXED and not text.startswith(" "))
        assert decoded == " " * added + text

    check()


def test_plain_text_that_gives_a_marker_is_refused():
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    with pytest.raises(DataError, match="ids of BOS or EOS from plain text"):
        Encoder(backend, 0, 1, UINT16).encode("a")


def test_an_id_beyond_the_dtype_is_refused():
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 70_000}, merges=[]))
    with pytest.raises(DataError, match=r"id 70000.*65535"):
        Encoder(backend, 8, 9, UINT16).encode("ab")
    assert Encoder(backend, 8, 9, np.dtype(np.int32)).encode("ab").tolist() == [0, 70_000]


def test_brackets_keep_the_dtype():
    found = recipe_of(sentencepiece().to_str(), 1, 2, UINT16).bracketed(np.array([7, 8], dtype=UINT16))
    assert (found.tolist(), found.dtype) == ([1, 7, 8, 2], UINT16)


REAL = [(ROOT / "data" / "base", 0, 1), (ROOT.parent / "shared" / "models" / "stories3M", 1, 2)]


@pytest.mark.parametrize(("folder", "bos", "eos"), REAL, ids=lambda value: getattr(value, "name", ""))
def test_the_ids_of_real_tokenizers(folder: Path, bos: int, eos: int):
    if not folder.exists():
        pytest.skip(f"{folder.name} is not on this machine")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = recipe_of(backend.to_str(), bos, eos, UINT16)
    assert found.cutting.pieces is not None
    encoder, reference = found.encoder(), Encoder(backend, bos, eos, UINT16)
    files = [
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "yarn_train" / "data").glob("*.py"),
        *(ROOT / "tests").glob("*.py"),
    ]
    for file in files:
        text = file.read_bytes().decode()
        assert np.array_equal(encoder.encode(text), reference.encode(text)), file
        assert np.array_equal(encoder.encode(text + "  "), reference.encode(text + "  ")), file
    check = settings(max_examples=200, deadline=None)(
        given(texts)(lambda text: np.testing.assert_array_equal(encoder.encode(text), reference.encode(text)))
    )
    check()


@pytest.mark.parametrize("name", ["GPT-2", "o200k", "sentencepiece prepend"])
def test_a_book_of_5_mb_on_one_line(name: str):
    words = np.random.default_rng(0).choice(
        ["whale", "fish,", "captain.", "beast", "été", "\u201cquoted\u201d"], 700_000
    )
    text = " ".join(words)
    assert len(text.encode()) > 5_000_000
    started = time.process_time()
    found = in_pieces(name).encode(text)
    assert time.process_time() - started < 10
    assert np.array_equal(found[:1000], unsplit(name).encode(text[:20_000])[:1000])
    assert FAMILIES[name]().decode(found.tolist(), skip_special_tokens=False).removeprefix(" ") == text


@pytest.mark.parametrize(
    "unit", ["whale ", pytest.param("w", marks=pytest.mark.long), pytest.param("é", marks=pytest.mark.long)]
)
def test_a_line_of_20_mb_takes_bounded_time(unit: str):
    text = unit * (20_000_000 // len(unit.encode()))
    started = time.process_time()
    found = in_pieces("GPT-2").encode(text)
    assert time.process_time() - started < 60
    assert len(found) > 1_000_000
