from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import InMemory
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from yarn_train.data.encode import Encoder
from yarn_train.data.tokenize import (
    cutting,
    encode_document,
    id_dtype,
    load_tokenizer,
    resolve_workers,
    tokenize_documents,
    tokenizer_sha256,
)
from yarn_train.errors import DataError


def write(*texts: str | bytes) -> InMemory:
    return InMemory({f"{i}.txt": text if isinstance(text, bytes) else text.encode() for i, text in enumerate(texts)})


@pytest.mark.parametrize("kind", ["plain", "adds_bos", "mergeable"])
def test_one_bos_and_one_eos_per_document(tokenizers_by_kind: dict[str, str], tmp_path: Path, kind: str):
    listed = write("a", "", "a</s>a<s>", "</s></s>", "a" * 50)
    for name, ids in tokenize_documents(listed, tokenizers_by_kind[kind], workers=1):
        assert (ids[0], ids[-1]) == (0, 1), name
        assert not np.isin(ids[1:-1], [0, 1]).any(), name
        assert ids.dtype == np.uint16


def test_an_empty_document_is_its_two_marks(plain: str):
    ((_, ids),) = tokenize_documents(write(""), plain, workers=1)
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


def test_gpt_style_uses_eos_for_both_ends(tokenizers_by_kind: dict[str, str]):
    ((_, ids),) = tokenize_documents(write("whale"), tokenizers_by_kind["eos_only"], workers=1)
    assert (ids[0], ids[-1]) == (1, 1)
    assert 1 not in ids[1:-1]


def test_no_eos_is_refused(tokenizers_by_kind: dict[str, str]):
    with pytest.raises(DataError, match="eos_token=None"):
        list(tokenize_documents(write("a"), tokenizers_by_kind["no_eos"], workers=1))


def test_no_tokenizer_is_one_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"model\.path: got '.*nothing'"):
        load_tokenizer(tmp_path / "nothing")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_round_trips(byte_backend: Tokenizer, text: str):
    ids = Encoder(byte_backend, 0, 1, np.dtype(np.uint16)).encode(text)
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


def test_an_error_of_a_document_comes_after_the_documents_before_it(plain: str):
    listed = InMemory({"first": b"x", "gone": None, "last": b"y"})
    for workers in (1, 2):
        stream = tokenize_documents(listed, plain, workers)
        assert next(stream)[0] == "first"
        with pytest.raises(DataError, match="gone"):
            list(stream)


def test_a_sentencepiece_tokenizer_gives_one_bos_one_eos_and_one_prefix(tmp_path: Path):
    backend = Tokenizer.from_str(sentencepiece("first").to_str())
    marks = [("<s>", 1), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    wrapped.save_pretrained(tmp_path)
    texts = ["The whale\nis  a fish </s> ", "", " ", "▁x", "été 鲸鱼"]
    for (_, ids), text in zip(tokenize_documents(write(*texts), tmp_path, workers=1), texts, strict=True):
        assert ids[0] == 1
        assert ids[-1] == 2
        assert not np.isin(ids[1:-1], [1, 2]).any()
        assert np.array_equal(ids[1:-1], encode_document(wrapped, text))


def test_whether_documents_are_cut_is_said_in_one_line(tokenizers_by_kind: dict[str, str]):
    lines = {kind: cutting(load_tokenizer(tokenizers_by_kind[kind])) for kind in ("plain", "mergeable")}
    assert lines["plain"] == "documents are cut at spaces and line ends (byte-level BPE)"
    assert lines["mergeable"].startswith("documents are tokenised whole: ")


def test_workers_are_the_cores_of_this_process_unless_said():
    assert resolve_workers(3) == 3
    assert resolve_workers(0) == len(os.sched_getaffinity(0))


def test_a_book_on_one_line_takes_seconds(plain: str):
    listed = write("whale fish captain beast " * 40_000 + "w" * 1_000_000)  # 2 MB without a line end
    started = time.process_time()
    ((_, ids),) = tokenize_documents(listed, plain, workers=1)
    assert len(ids) > 100_000
    assert time.process_time() - started < 20


ODD: dict[str, Any] = {
    "one character": "x",
    "white space": " \n\t  ",
    "NUL": "a\x00b\x00",
    "right to left": "שלום עולם",
    "emoji": "👍🏽 👨\u200d👩",
    "byte order mark": "\ufeffx",
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_documents_come_back_as_they_were(plain: str, kind: str):
    ((_, ids),) = tokenize_documents(write(ODD[kind]), plain, workers=1)
    assert load_tokenizer(plain).decode(ids[1:-1].tolist()) == ODD[kind]
