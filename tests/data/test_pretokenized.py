from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables_support import COMMIT, Hub, use_cache, write

from yarn_train.config import DataConfig
from yarn_train.data import hub
from yarn_train.data.pretokenized import Rows, open_rows
from yarn_train.errors import DataError

LISTS = {
    "int64": pa.list_(pa.int64()),
    "int32": pa.list_(pa.int32()),
    "uint16": pa.large_list(pa.uint16()),
    "fixed": pa.list_(pa.int32(), 4),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(monkeypatch, tmp_path / "cache")
    hub.find.cache_clear()


def opened(path: object, split: str = "train", seq_len: int = 4, vocab_size: int = 100, **options: Any) -> Rows:
    data = DataConfig(source="pretokenized", path=str(path), seq_len=seq_len, **options)
    return open_rows(data, split, vocab_size)


def all_of(rows: Rows, tokens: int = 8) -> np.ndarray:
    return np.concatenate(list(rows.blocks(tokens)))


def parquet(file: Path, rows: Any, kind: pa.DataType = LISTS["int64"]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    mask = pa.array([[1] * 4] * len(rows))  # a column that nobody asks for
    pq.write_table(pa.table({"input_ids": pa.array(rows, type=kind), "mask": mask}), file, row_group_size=3)
    return file


@pytest.mark.parametrize("kind", LISTS)
def test_rows_are_used_as_they_are(tmp_path: Path, kind: str):
    ids = np.arange(28).reshape(7, 4)
    rows = opened(parquet(tmp_path / "a.parquet", ids.tolist(), LISTS[kind]))
    assert len(rows) == 7
    assert np.array_equal(all_of(rows), ids)
    assert {block.dtype for block in rows.blocks()} == {np.dtype(LISTS[kind].value_type.to_pandas_dtype())}
    assert all(len(block) <= 2 for block in rows.blocks(tokens=8))
    assert all(len(block) == 1 for block in rows.blocks(tokens=1))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 5), st.sampled_from(["int32", "int64"]), st.booleans(), st.integers(1, 12))
def test_any_chunks_and_slices(draw: st.DataObject, seq_len: int, value: str, fixed: bool, tokens: int):
    row = st.lists(st.integers(0, 9), min_size=seq_len, max_size=seq_len)
    chunks = draw.draw(st.lists(st.lists(row, max_size=4), min_size=1, max_size=4))
    kind = pa.list_(pa.type_for_alias(value), seq_len if fixed else -1)
    column = pa.chunked_array([pa.array(chunk, type=kind) for chunk in chunks], type=kind)
    start = draw.draw(st.integers(0, len(column)))
    expected = [row for chunk in chunks for row in chunk][start:]
    rows = Rows(column.slice(start), seq_len, 10, {})
    blocks = list(rows.blocks(tokens))
    assert [row for block in blocks for row in block.tolist()] == expected
    assert all(block.size <= max(tokens, seq_len) for block in blocks)


@pytest.mark.parametrize("saved", ["parquet", "json", "dict", "table"])
def test_layouts(tmp_path: Path, saved: str):
    ids = [[1, 2, 3, 4], [5, 6, 7, 8]]
    root = tmp_path / "rows"
    if saved == "parquet":
        parquet(root / "data" / "train-00000-of-00002.parquet", ids[:1])
        parquet(root / "data" / "train-00001-of-00002.parquet", ids[1:])
    elif saved == "json":
        write(root / "a.jsonl.gz", ids, column="input_ids")
    else:
        table = datasets.Dataset.from_dict({"input_ids": ids})
        (datasets.DatasetDict({"train": table}) if saved == "dict" else table).save_to_disk(str(root))
    rows = opened(root, held_out=0.5)  # nothing is held out: it is used as it is
    assert all_of(rows).tolist() == ids
    assert set(rows.identity()) == {"files_sha256"}
    with pytest.raises(DataError, match=r"split 'test'; it has train"):
        opened(root, "test")


def test_rows_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parquet(tmp_path / COMMIT[1] / "data" / "train-00000-of-00001.parquet", [[1, 2, 3, 4]])
    Hub(monkeypatch, {COMMIT[1]: tmp_path / COMMIT[1]})
    rows = opened("owner/rows")
    assert all_of(rows).tolist() == [[1, 2, 3, 4]]
    assert rows.identity() == {"repository": "owner/rows", "revision": COMMIT[1]}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([[1, 2, 3, 4]] * 5 + [[1, 2]], "row 5 with 2 ids"),
        ([[1, 2, 3, 4], []], "row 1 with 0 ids"),
        ([[1, 2, 3, 4], None], "row 1 without ids"),
        ([[1, 2]] * 3, "set data.seq_len=2"),
    ],
)
def test_rows_of_another_length(tmp_path: Path, rows: Any, told: str):
    with pytest.raises(DataError) as error:
        opened(parquet(tmp_path / "a.parquet", rows))
    assert told in str(error.value)
    assert "data.seq_len=4" in str(error.value)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([0, 1, 2, 100], "id 100 in row 4 at position 3"),
        ([0, -1, 2, 99], "id -1 in row 4 at position 1"),
        ([0, 1, None, 3], "no id in row 4 at position 2"),
    ],
)
@pytest.mark.parametrize("tokens", [4, 12, 2**20])
def test_ids_that_the_vocabulary_does_not_have(tmp_path: Path, row: Any, told: str, tokens: int):
    rows = opened(parquet(tmp_path / "a.parquet", [[0, 1, 2, 99]] * 4 + [row] + [[0, 1, 2, 3]]))
    with pytest.raises(DataError, match=told):
        all_of(rows, tokens)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.list_(pa.float32()), [[1.0] * 4]),
        (pa.list_(pa.string()), [["a"] * 4]),
        (pa.list_(pa.list_(pa.int32())), [[[1]] * 4]),
        (pa.int64(), [3]),
        (pa.string(), ["a b"]),
    ],
)
def test_a_column_of_something_else(tmp_path: Path, kind: pa.DataType, values: Any):
    pq.write_table(pa.table({"input_ids": pa.array(values, type=kind)}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"input_ids of type .*lists of integers"):
        opened(tmp_path / "a.parquet")


def test_other_mistakes(tmp_path: Path):
    with pytest.raises(DataError, match=r"input_ids.*id, text.*data\.source=text"):
        opened(write(tmp_path / "texts" / "a.parquet", ["x"]))
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"not \*\.txt"):
        opened(tmp_path / "books")
    with pytest.raises(DataError, match="split: got 'dev'"):
        opened(tmp_path / "books", "dev")
    pq.write_table(pa.table({"input_ids": pa.array([], type=LISTS["int64"])}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"data\.path"):
        opened(tmp_path / "none.parquet")
    (tmp_path / "a.jsonl").write_text(json.dumps({"input_ids": [1, 2.5, 3, 4]}))
    with pytest.raises(DataError, match=r"input_ids of type list in line 1.*lists of integers"):
        opened(tmp_path / "a.jsonl")
