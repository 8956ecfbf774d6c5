"""What must hold when a stage is wired together, before its first step."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numbered import stream

from yarn_train.data.segments import Segments
from yarn_train.data.stream import Part, Source, Stream
from yarn_train.errors import DataError
from yarn_train.rope.hf import RopeTableError
from yarn_train.train import setup


def test_a_table_corrupted_while_the_model_is_wrapped_aborts_the_run(train, tiny_args, tmp_path, monkeypatch):
    original = setup.parallelize

    def corrupting(module, cfg, mesh):
        lines = original(module, cfg, mesh)
        module.model.model.rotary_emb.inv_freq[1] *= 1.001
        return lines

    monkeypatch.setattr(setup, "parallelize", corrupting)
    with pytest.raises(RopeTableError, match="rotary_emb"):
        train(tmp_path / "run", *tiny_args)
    assert not (tmp_path / "run/01_s4/metrics.jsonl").exists()


@pytest.mark.parametrize("changed", [{"content_sha256": "f" * 64}, {"documents_sha256": "f" * 64}])
def test_ranks_that_hold_different_data_are_named(monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]):
    mine = stream((1, 5))
    parts = [Part("s0", Fraction(1), Path("here"))]
    (held,) = mine.state(0)
    others = [((held,), ["here"]), ((replace(held, **changed),), ["there"]), ((held,), ["elsewhere"])]
    monkeypatch.setattr(setup, "from_all", lambda value: others)
    with pytest.raises(DataError, match=r"rank 0: .* in here; rank 1: .*f{12}.* in there'; allowed") as error:
        setup.refuse_unequal_data(mine, parts)
    assert "1 of 3 ranks differ" in str(error.value)
    others[1] = ((held,), ["there"])
    setup.refuse_unequal_data(mine, parts)


def test_rows_that_mark_no_documents_cannot_keep_them_apart():
    rows = np.zeros((4, 8), dtype=np.uint16)

    def one(source: str, starts: list[int]) -> Stream:
        segments = Segments(Path("rows"), {"source": source}, [rows], np.array(starts))
        return Stream([Source(source, Fraction(1), segments)], seed=0)

    with pytest.raises(DataError, match=r"data\.document_mask: got 'block, and no BOS or EOS in rows'"):
        setup.refuse_unmarked(one("pretokenized", [0]))
    setup.refuse_unmarked(one("pretokenized", [0, 9]))
    setup.refuse_unmarked(one("text", [0]))  # one document that fills them all


def test_a_run_compares_its_ranks_data_before_it_trains(train, tiny_args, tmp_path, monkeypatch):
    def another_rank_has_other_starts(value: Any) -> list[Any]:
        (held,), folders = value
        return [value, ((replace(held, documents_sha256="f" * 64),), folders)]

    monkeypatch.setattr(setup, "from_all", another_rank_has_other_starts)
    with pytest.raises(DataError, match="1 of 2 ranks differ"):
        train(tmp_path / "run", *tiny_args)
    assert not (tmp_path / "run/01_s4/metrics.jsonl").exists()


def test_a_run_refuses_block_on_rows_without_marks(train, tiny_args, tmp_path):
    rows = pa.array([[5, 6, 7, 8] * 8] * 4, pa.list_(pa.int32()))
    pq.write_table(pa.table({"input_ids": rows}), tmp_path / "rows.parquet")
    args = [*(a for a in tiny_args if not a.startswith("data.")), "data.source=pretokenized", "data.seq_len=32"]
    args += [f"data.path={tmp_path / 'rows.parquet'}", f"data.cache={tmp_path / 'rows'}", "train.steps=2"]
    with pytest.raises(DataError, match="no BOS or EOS in"):
        train(tmp_path / "block", *args, "data.document_mask=block")
    train(tmp_path / "none", *args)
