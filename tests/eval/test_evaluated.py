"""Which documents an evaluation reads, and how much of each."""

from __future__ import annotations

import hashlib
import random
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from support import ROOT

from yarn_train.config import Config, DataConfig, EvalConfig
from yarn_train.data.documents import read_all
from yarn_train.data.encode import recipe_of
from yarn_train.data.sources import open_documents
from yarn_train.data.tokenize import bracket_ids, encode_document, id_dtype, load_tokenizer
from yarn_train.errors import DataError
from yarn_train.eval import documents
from yarn_train.eval.documents import beginning, choose_documents, evaluated, held_out, in_order

BOOKS = {"source": "pg19", "path": "emozilla/pg19", "revision": "abc"}


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        (BOOKS, {}, ("pg19", "emozilla/pg19", "abc")),
        (BOOKS, {"source": "text"}, ("text", "emozilla/pg19", "abc")),
        (BOOKS, {"source": "text", "path": "own"}, ("text", "own", None)),  # the commit is the other data set's
        ({"source": "mixture"}, {"source": "pg19", "path": "books"}, ("pg19", "books", None)),
        (
            {"source": "pretokenized", "path": "rows", "revision": "abc"},
            {"source": "stdlib"},
            ("stdlib", "rows", "abc"),
        ),
    ],
)
def test_eval_takes_what_it_does_not_say_from_data(data: Any, options: Any, expected: tuple[str, str, str | None]):
    found = evaluated(Config(data=DataConfig(**data, column="story", held_out=0.3), eval=EvalConfig(**options)))
    assert (found.source, found.path, found.revision) == expected
    assert (found.column, found.held_out) == ("story", 0.3)


def encoder_of(tokenizer):
    return recipe_of(tokenizer.backend_tokenizer.to_str(), *bracket_ids(tokenizer), id_dtype(len(tokenizer))).encoder()


@pytest.fixture(scope="module")
def texts(books):
    """Books of words, this project's own Python, and what tokenizers stumble over."""
    odd = ["", " ", "a" * 3000, "a</s>b " * 400, "é\n\n  \tx" * 700, "".join(map(chr, range(1, 2000)))]
    python = [p.read_text() for p in sorted((ROOT / "yarn_train/data").glob("*.py"))[:4]]
    return [*odd, *python, *(p.read_text() for p in sorted((books / "test").glob("*.txt"))[:2])]


@pytest.mark.parametrize("which", ["tiny", "base"])
def test_the_beginning_has_the_ids_of_the_whole_text(texts, tiny_tokenizer, which, monkeypatch):
    tokenizer = tiny_tokenizer if which == "tiny" else load_tokenizer(ROOT / "data/base")
    encoder, draws = encoder_of(tokenizer), random.Random(0)
    for text in texts:
        whole = encode_document(tokenizer, text)
        for size in (1, 50, 2**16):
            monkeypatch.setattr(documents, "PIECE", size)
            wanted = draws.randint(1, 400)
            ids = beginning(encoder, text, wanted)
            assert len(ids) >= min(wanted, len(whole))
            assert np.array_equal(ids, whole[: len(ids)])
        assert np.array_equal(beginning(encoder, text, None), whole)


def test_of_a_long_document_only_the_beginning_is_tokenised(tiny_tokenizer, books, monkeypatch):
    text = (books / "test/test0.txt").read_text() * 200
    encoder = encoder_of(tiny_tokenizer)
    seen: list[int] = []
    real = type(encoder).encode_part
    monkeypatch.setattr(
        type(encoder), "encode_part", lambda self, t, first: seen.append(len(t)) or real(self, t, first)
    )
    beginning(encoder, text, 300)
    assert len(text) > 2 * documents.PIECE
    assert sum(seen) < documents.PIECE + 100


def test_no_more_documents_are_read_than_are_taken(tiny_tokenizer, books, tmp_path):
    for number in range(6):
        for split in ("train", "validation", "test"):
            (tmp_path / split).mkdir(exist_ok=True)
            shutil.copy(books / "test/test0.txt", tmp_path / split / f"{number}.txt")
    data = DataConfig(source="pg19", path=str(tmp_path))
    listed = list(open_documents(data, "test"))
    names = [document.name for document in listed]
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    assert by_hash != names
    taken = held_out(EvalConfig(documents=2), data, tiny_tokenizer, 20, 30)
    assert [name for name, _ in taken] == by_hash[:2]
    first = held_out(EvalConfig(documents=2, order="first"), data, tiny_tokenizer, 20, 30)
    assert [name for name, _ in first] == names[:2]
    assert all(ids.dtype == torch.int64 and len(ids) == 30 for _, ids in taken + first)
    encoder, read = encoder_of(tiny_tokenizer), []
    encoded = ((read.append(name) or name, encoder.encode(text)) for name, text in read_all(in_order(listed, "hash")))
    assert [name for name, _ in choose_documents(encoded, 1, 20)] == read == by_hash[:1]


def test_documents_are_chosen_by_name_and_length_alone(caplog):
    encoded = [(f"doc{i}", np.arange(10 * i, dtype=np.uint16)) for i in range(20)]
    chosen = choose_documents(iter(encoded), 4, 100)
    assert [n for n, _ in chosen] == ["doc10", "doc11", "doc12", "doc13"]
    assert all(len(t) >= 100 and t.dtype == torch.int64 for _, t in chosen)
    assert not caplog.records
    assert len(choose_documents(encoded, 99, 100)) == 10
    assert "only 10 documents have 100 tokens" in caplog.text


def test_no_document_long_enough_says_what_there_was():
    with pytest.raises(DataError, match=r"2 documents, the longest of 7 tokens.*at least 8 tokens.*fix: "):
        choose_documents([("a", [1] * 7), ("b", [1] * 3)], 4, 8)
    with pytest.raises(DataError, match="0 documents"):
        choose_documents([], 4, 8)
