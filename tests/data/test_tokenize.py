from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from yarn_train.data.sources import Document, documents
from yarn_train.data.tokenize import (
    _Encoder,
    encode_document,
    id_dtype,
    load_tokenizer,
    tokenize_documents,
    tokenizer_sha256,
)
from yarn_train.errors import DataError


def write(tmp_path: Path, *texts: str | bytes) -> list[Document]:
    listed = []
    for i, text in enumerate(texts):
        file = tmp_path / f"{i}.txt"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        listed.append(Document(file.name, file))
    return listed


@pytest.mark.parametrize("kind", ["plain", "adds_bos", "mergeable"])
def test_one_bos_and_one_eos_per_document(tokenizers_by_kind: dict[str, str], tmp_path: Path, kind: str):
    listed = write(tmp_path, "a", "", "a</s>a<s>", "</s></s>", "a" * 50)
    for name, ids in tokenize_documents(listed, tokenizers_by_kind[kind], workers=1):
        assert (ids[0], ids[-1]) == (0, 1), name
        assert not np.isin(ids[1:-1], [0, 1]).any(), name
        assert ids.dtype == np.uint16


def test_an_empty_document_is_its_two_marks(plain: str, tmp_path: Path):
    ((_, ids),) = tokenize_documents(write(tmp_path, ""), plain, workers=1)
    assert ids.tolist() == [0, 1]


def test_marks_written_in_a_text_stay_text(tokenizers_by_kind: dict[str, str]):
    for kind in ("plain", "adds_bos", "mergeable"):
        tokenizer = load_tokenizer(tokenizers_by_kind[kind])
        ids = encode_document(tokenizer, "a</s>a</s><s>a")
        assert "".join(tokenizer.convert_ids_to_tokens(ids.tolist())) == "a</s>a</s><s>a"


def test_other_special_tokens_in_a_text_stay_text_too(tokenizers_by_kind: dict[str, str]):
    tokenizer = load_tokenizer(tokenizers_by_kind["padded"])
    assert tokenizer.pad_token_id in tokenizer("a<pad>")["input_ids"]
    assert tokenizer.pad_token_id not in encode_document(tokenizer, "a<pad>")


def test_gpt_style_uses_eos_for_both_ends(tokenizers_by_kind: dict[str, str], tmp_path: Path):
    ((_, ids),) = tokenize_documents(write(tmp_path, "whale"), tokenizers_by_kind["eos_only"], workers=1)
    assert (ids[0], ids[-1]) == (1, 1)
    assert 1 not in ids[1:-1]


def test_no_eos_is_refused(tokenizers_by_kind: dict[str, str], tmp_path: Path):
    with pytest.raises(DataError, match="eos_token=None"):
        list(tokenize_documents(write(tmp_path, "a"), tokenizers_by_kind["no_eos"], workers=1))


def test_no_tokenizer_is_one_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"model\.path: got '.*nothing'"):
        load_tokenizer(tmp_path / "nothing")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_round_trips(byte_backend: Tokenizer, text: str):
    ids = _Encoder(byte_backend, 0, 1, np.dtype(np.uint16)).encode(text)
    assert byte_backend.decode(ids.tolist(), skip_special_tokens=False) == text


@pytest.fixture(scope="session")
def byte_backend(tokenizers_by_kind: dict[str, str]) -> Tokenizer:
    return Tokenizer.from_file(f"{tokenizers_by_kind['plain']}/tokenizer.json")


def test_ids_are_those_of_the_tokenizer_and_nothing_warns(plain: str, caplog: pytest.LogCaptureFixture):
    tokenizer = load_tokenizer(plain)
    text = "The whale is not a fish.\n    return x\n" * 100  # model_max_length is 16
    with caplog.at_level(logging.WARNING):
        ids = encode_document(tokenizer, text)
    assert not caplog.records
    assert ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_encoding_a_document_leaves_the_tokenizer_as_it_was(plain: str):
    tokenizer = load_tokenizer(plain)
    backend = tokenizer.backend_tokenizer
    before = backend.encode("a</s>").ids, tokenizer_sha256(tokenizer)
    encode_document(tokenizer, "a</s>")
    assert (backend.encode("a</s>").ids, tokenizer_sha256(tokenizer)) == before


def test_truncation_of_an_earlier_call_does_not_cut_documents(plain: str):
    tokenizer = load_tokenizer(plain)
    whole = encode_document(tokenizer, "whale " * 50)
    digest = tokenizer_sha256(tokenizer)
    tokenizer("whale " * 50, truncation=True, max_length=4)
    assert tokenizer_sha256(tokenizer) == digest
    assert np.array_equal(encode_document(tokenizer, "whale " * 50), whole)


def test_hash_tells_tokenizers_apart(tokenizers_by_kind: dict[str, str]):
    digests = {tokenizer_sha256(load_tokenizer(tokenizers_by_kind[k])) for k in ("plain", "adds_bos", "other")}
    assert len(digests) == 3


def test_ids_need_no_more_than_their_dtype():
    assert [id_dtype(n).name for n in (256, 65536, 65537)] == ["uint16", "uint16", "int32"]


def test_processes_keep_the_order_and_name_what_they_skip(plain: str, tmp_path: Path):
    texts = ["long " * 20_000, "short", b"\xff", *[f"number {i}" for i in range(30)]]
    listed = write(tmp_path, *texts)
    skipped: dict[int, list[str]] = {1: [], 3: []}
    alone, together = (list(tokenize_documents(listed, plain, n, skipped[n])) for n in (1, 3))
    assert [n for n, _ in together] == [n for n, _ in alone] == [d.name for d in listed if d.name != "2.txt"]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(alone, together, strict=True))
    assert skipped == {1: ["2.txt"], 3: ["2.txt"]}


def test_processes_read_only_a_little_ahead(plain: str, tmp_path: Path):
    listed = write(tmp_path, *["x"] * 100)
    taken: list[Document] = []
    stream = tokenize_documents((taken.append(d) or d for d in listed), plain, workers=2)  # type: ignore[func-returns-value]
    next(stream)
    assert len(taken) <= 2 * 4 + 1
    stream.close()  # type: ignore[attr-defined]


def test_an_error_in_a_process_reaches_the_caller(plain: str, tmp_path: Path):
    listed = [*write(tmp_path, "x"), Document("gone", tmp_path / "gone")]
    with pytest.raises(DataError, match="gone"):
        list(tokenize_documents(listed, plain, workers=2))


def test_a_book_on_one_line_takes_seconds(plain: str, books: Callable[..., str]):
    root = books(train=["whale fish captain beast " * 40_000 + "w" * 1_000_000])  # 2 MB without a line end
    started = time.process_time()
    ((_, ids),) = tokenize_documents(documents("pg19", root, "train", 0.1), plain, workers=1)
    assert len(ids) > 100_000
    assert time.process_time() - started < 20
