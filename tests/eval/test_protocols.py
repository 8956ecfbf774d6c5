"""The paper's evaluations by name: the authors' numbers, and that tables in the layout of their data sets are read."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from yarn_train.config import build
from yarn_train.eval.__main__ import evaluate_model


def test_proofpile_is_what_the_authors_scripts_ran(compose) -> None:
    chosen = build(compose("eval=proofpile")).eval
    assert (chosen.path, chosen.source, chosen.column) == ("emozilla/proofpile-test-tokenized", "text", "text")
    assert (chosen.split, chosen.order, chosen.documents, chosen.min_tokens) == ("test", "first", 10, 131072)
    assert chosen.windows == list(range(2048, 131073, 2048))
    assert (chosen.truncate, chosen.windows_per_document, chosen.max_tokens, chosen.bos) == (True, None, None, True)


def test_govreport_is_what_the_authors_scripts_ran(compose) -> None:
    chosen = build(compose("eval=govreport")).eval
    assert (chosen.path, chosen.source, chosen.column) == ("emozilla/govreport-test-tokenized", "text", "input")
    assert (chosen.split, chosen.order, chosen.documents, chosen.min_tokens) == ("test", "first", 50, 16384)
    assert (chosen.windows, chosen.stride) == ([32768], 256)
    assert (chosen.truncate, chosen.windows_per_document, chosen.max_tokens, chosen.bos) == (False, None, None, True)


def test_the_papers_own_evaluations_run_one_after_the_other(compose) -> None:
    assert build(compose("eval=paper")).eval.tasks == ["perplexity", "passkey"]


def like_the_authors(folder: Path, column: str, tokenizer: Any) -> Path:
    """One short document, then four long ones, tokenised beside their text without special tokens."""
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefghij", k=4)) for _ in range(80)]
    texts = [" ".join(rng.choices(words, k=count)) for count in (10, 150, 160, 170, 180)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert len(ids[0]) < 100 < min(map(len, ids[1:]))
    table = {
        column: texts,
        "input_ids": ids,
        "attention_mask": [[1] * len(row) for row in ids],
        "tokenized_len": [len(row) for row in ids],
    }
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.table(table), folder / "data" / "test-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize(
    ("name", "column", "modes"),
    [("proofpile", "text", {"truncate"}), ("govreport", "input", {"token_mean", "window_mean"})],
)
def test_a_table_in_their_layout_is_read_first_documents_first(
    name, column, modes, compose, tiny_model, tiny_tokenizer, tmp_path, monkeypatch
):
    data = like_the_authors(tmp_path / "data_set", column, tiny_tokenizer)
    monkeypatch.chdir(tmp_path)
    small = ("eval.min_tokens=100", "eval.documents=2", "eval.windows=[32,64]", "eval.stride=16", "eval.bootstrap=0")
    raw = compose(f"eval={name}", f"eval.path={data}", *small, f"model.path={tiny_model}", "model.dtype=float32")
    evaluate_model(raw, (), tmp_path)
    (folder,) = (tmp_path / "outputs" / "eval").iterdir()
    settings = json.loads((folder / "eval" / "perplexity_settings.json").read_text())
    rows = json.loads((folder / "eval" / "perplexity.json").read_text())
    assert settings["documents"] == ["test/1", "test/2"]
    assert modes <= {row["mode"] for row in rows}
    assert {row["window"] for row in rows} == {32, 64}
    assert {row["documents"] for row in rows} == {2}
    if name == "proofpile":  # one pass over the first L - 1 tokens of each
        assert {(r["window"], r["tokens"]) for r in rows if r["mode"] == "truncate"} == {(32, 62), (64, 126)}
