from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from yarn_train.config import DataConfig
from yarn_train.data import spool, store
from yarn_train.data.build import after_ends
from yarn_train.data.job import ORDER_SEED, shuffled
from yarn_train.data.manifest import digest, manifest
from yarn_train.data.segments import Segments, check, open_segments
from yarn_train.data.sources import open_documents
from yarn_train.data.store import find_parts, prepare, prepare_parts
from yarn_train.data.tokenize import tokenize_documents
from yarn_train.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[2]
TEXTS = [f"Chapter {i}. The whale is not a fish; it is a beast of the sea.\n" * (1 + i % 7) for i in range(40)]


@pytest.fixture
def corpus(books: Callable[..., str]) -> str:
    return books(train=[*TEXTS, "", b"bad \xff bytes"])


def make(corpus: str | None, tokenizer: str, root: Path, **changed: Any) -> Path:
    options: dict[str, Any] = {"workers": 1, "root": root}
    options |= {key: changed.pop(key) for key in list(changed) if key not in DataConfig.__dataclass_fields__}
    options |= {key: changed.pop(key) for key in ("cache", "workers") if key in changed}
    folder = prepare(DataConfig(**{"source": "pg19", "path": corpus, "seq_len": 32} | changed), tokenizer, **options)
    assert folder is not None
    return folder


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of a few documents, so that there are several."""
    monkeypatch.setattr(spool, "UNIT_BYTES", 1000)


def arrow_bytes(folder: Path) -> bytes:
    return b"".join(f.read_bytes() for f in sorted(folder.glob("*.arrow")))


def test_segments_are_the_documents_end_to_end(corpus: str, plain: str, tmp_path: Path):
    folder = make(corpus, plain, tmp_path)
    described = manifest(folder)
    listed = open_documents(DataConfig(source="pg19", path=corpus), "train")
    order = shuffled([d.name for d in listed], ORDER_SEED)
    documents = [ids for _, ids in tokenize_documents([listed[int(i)] for i in order], plain, 1)]
    stream = np.concatenate(documents)
    segments = open_segments(folder)
    assert len(segments) == described["segments"] == len(stream) // 32
    flat = segments[range(len(segments))].flatten()
    assert flat.tolist() == stream[: len(flat)].tolist()
    assert described["tokens_in"] == len(stream) == described["segments"] * 32 + described["remainder"]
    assert (described["documents"], described["skipped"]) == (41, 1)
    assert described["skipped_names"] == ["pg19/train/41.txt"]
    assert described["bytes_in"] == sum(len(t.encode()) for t in TEXTS)
    assert (described["source"], described["dtype"], described["vocab_size"]) == ("pg19", "uint16", 300)
    assert segments.starts.tolist() == np.cumsum([0, *(len(ids) for ids in documents)])[:-1].tolist()
    assert described["tokens_per_document"]["max"] == max(map(len, documents))
    marks = [np.flatnonzero(row == 0).tolist() for row in flat.reshape(-1, 32).numpy()]
    assert segments.documents(range(len(segments))) == tuple((0, *(p for p in row if p)) for row in marks)


def test_bytes_do_not_depend_on_the_number_of_workers(corpus: str, plain: str, tmp_path: Path):
    one, four = (make(corpus, plain, tmp_path, workers=n, cache=str(tmp_path / f"w{n}")) for n in (1, 4))
    assert arrow_bytes(one) == arrow_bytes(four) != b""
    assert manifest(one) == manifest(four)


def test_bytes_do_not_depend_on_how_much_is_buffered(
    corpus: str, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    at_once = make(corpus, plain, tmp_path, cache=str(tmp_path / "a"))
    monkeypatch.setattr("yarn_train.data.writer.BYTES_PER_WRITE", 200)
    often = make(corpus, plain, tmp_path, cache=str(tmp_path / "b"))
    assert manifest(at_once) == manifest(often)
    assert open_segments(at_once)[range(40)].tolist() == open_segments(often)[range(40)].tolist()
    assert check(often).content_sha256 == manifest(at_once)["content_sha256"]


def test_large_data_is_cut_into_files(corpus: str, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = make(corpus, plain, tmp_path, cache=str(tmp_path / "one"))
    monkeypatch.setattr("yarn_train.data.writer.BYTES_PER_WRITE", 200)
    monkeypatch.setattr("yarn_train.data.writer.BYTES_PER_FILE", 1000)
    many = make(corpus, plain, tmp_path, cache=str(tmp_path / "many"))
    assert len(list(many.glob("*.arrow"))) > 3
    assert manifest(one) == manifest(many)
    assert check(many).content_sha256 == manifest(one)["content_sha256"]
    assert datasets.load_from_disk(str(many))[:]["input_ids"] == datasets.load_from_disk(str(one))[:]["input_ids"]


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_bytes_do_not_depend_on_the_number_of_machines(corpus: str, plain: str, tmp_path: Path, shards: int):
    whole = make(corpus, plain, tmp_path, cache=str(tmp_path / "whole"))
    data, said = DataConfig(source="pg19", path=corpus, seq_len=32), []
    results = [
        prepare(data, plain, cache=str(tmp_path / "shared"), workers=1, shard=(i, shards), say=said.append)
        for i in reversed(range(shards))
    ]
    assert results == [None] * (shards - 1) + [tmp_path / "shared"]
    assert arrow_bytes(whole) == arrow_bytes(tmp_path / "shared") != b""
    assert manifest(whole) == manifest(tmp_path / "shared")
    assert sum("units are there" in line for line in said) == shards - 1
    assert sorted(f.name for f in tmp_path.iterdir() if f.is_dir() and f.name != "books") == ["shared", "whole"]


@pytest.mark.usefixtures("small_units")
def test_units_of_another_source_are_refused(corpus: str, plain: str, books: Callable[..., str], tmp_path: Path):
    data = DataConfig(source="pg19", path=corpus, seq_len=32)
    assert prepare(data, plain, cache=str(tmp_path / "named"), workers=1, shard=(0, 2)) is None
    books(train=["another text under an old name"])
    with pytest.raises(DataError, match="unfinished work of this job"):
        prepare(data, plain, cache=str(tmp_path / "named"), workers=1)


@pytest.mark.usefixtures("small_units")
def test_a_damaged_unit_is_made_again(corpus: str, plain: str, tmp_path: Path):
    data, said = DataConfig(source="pg19", path=corpus, seq_len=32), []
    assert prepare(data, plain, cache=str(tmp_path / "named"), workers=1, shard=(0, 2)) is None
    unit = tmp_path / "named.parts" / "unit_000000.ids"
    unit.write_bytes(unit.read_bytes()[:-2] + b"xx")
    folder = prepare(data, plain, cache=str(tmp_path / "named"), workers=1, say=said.append)
    assert folder is not None
    assert any(line.startswith("1 of ") and "damaged" in line for line in said)
    assert manifest(folder) == manifest(make(corpus, plain, tmp_path, cache=str(tmp_path / "other")))


@pytest.mark.usefixtures("small_units")
def test_more_units_than_files_may_be_open(corpus: str, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = make(corpus, plain, tmp_path)
    monkeypatch.setattr(spool, "UNIT_BYTES", 1)
    used = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(spool, "OPEN_UNITS", 8)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, limits[1]))
    try:
        many = make(corpus, plain, tmp_path, cache=str(tmp_path / "many"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert manifest(many) == manifest(whole)


def test_a_text_that_changes_while_it_is_prepared_is_an_error(
    corpus: str, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    listing = store.plan_units

    def change(*given: Any) -> Any:
        (Path(corpus) / "train" / "3.txt").write_text("rewritten")
        return listing(*given)

    monkeypatch.setattr(store, "plan_units", change)
    with pytest.raises(DataError, match=r"3\.txt: got '9 bytes'.*when documents were listed"):
        make(corpus, plain, tmp_path)


def test_a_column_of_files_without_columns_is_refused(corpus: str, plain: str, tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.column: got 'story'; allowed: text for files of text"):
        make(corpus, plain, tmp_path, column="story")


def test_units_of_a_finished_folder_are_cleared_away(corpus: str, plain: str, tmp_path: Path):
    folder = make(corpus, plain, tmp_path)
    left = folder.with_name(f"{folder.name}.parts")
    left.mkdir()
    make(corpus, plain, tmp_path)
    assert not left.exists()


def test_a_named_folder_of_another_source_is_refused(
    corpus: str, plain: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    cache = str(tmp_path / "named")
    make(corpus, plain, tmp_path, cache=cache)
    other = tmp_path_factory.mktemp("other")
    (other / "train").mkdir()
    (other / "train" / "0.txt").write_text("another book\n" * 100)
    with pytest.raises(DataError, match="documents_listed="):
        make(str(other), plain, tmp_path, cache=cache)
    with pytest.raises(DataError, match="documents_listed="):
        find_parts(DataConfig(source="pg19", path=str(other), seq_len=32, cache=cache), plain)
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": f"{name} whale\n" * 100}) + "\n")
    tables = {"source": "text", "held_out": 0.0, "cache": str(tmp_path / "tables")}
    make(str(tmp_path / "a.jsonl"), plain, tmp_path, **tables)
    make(str(tmp_path / "a.jsonl"), plain, tmp_path, **tables)
    with pytest.raises(DataError, match="files_sha256="):
        make(str(tmp_path / "b.jsonl"), plain, tmp_path, **tables)
    with pytest.raises(DataError, match=r"held_out=0\.0.*held_out=0\.5"):
        make(str(tmp_path / "a.jsonl"), plain, tmp_path, **{**tables, "held_out": 0.5})


def test_pretokenized_rows_are_used_as_they_are(plain: str, tmp_path: Path):
    rows = [[0, 5, 6, 1, 0, 7, 8, 9], [10, 1, 0, 11, 1, 0, 1, 0]]
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))}), file)
    folder = make(str(file), plain, tmp_path, source="pretokenized", seq_len=8)
    segments = check(folder)
    assert segments[[0, 1]].tolist() == rows
    assert segments.starts.tolist() == [0, 4, 10, 13, 15]
    described = manifest(folder)
    assert (described["documents"], described["segments"], described["remainder"]) == (5, 2, 0)
    assert make(str(file), plain, tmp_path, source="pretokenized", seq_len=8) == folder
    with pytest.raises(DataError, match=r"shard: got '0/2'"):
        make(str(file), plain, tmp_path, source="pretokenized", seq_len=8, shard=(0, 2))


@pytest.mark.parametrize(
    ("ends", "starts"),
    [
        ([], []),
        ([4], [5]),
        ([4, 9], [5, 10]),
        ([4, 5, 9, 10], [5, 10]),  # an end and the mark that opens the next document
        ([0, 1, 2, 7], [2, 8]),
    ],
)
def test_documents_of_rows_with_ends_only(ends: list[int], starts: list[int]):
    assert after_ends(np.array(ends, dtype=np.int64)).tolist() == starts


def test_every_damage_is_found(corpus: str, plain: str, tmp_path: Path):
    folder = make(corpus, plain, tmp_path)
    assert check(folder).content_sha256 == manifest(folder)["content_sha256"]
    for name, told in (("data-00000-of-00001.arrow", "content_sha256"), ("documents.npy", "documents_sha256")):
        file = folder / name
        before = file.read_bytes()
        at = len(before) // 2 + 1
        file.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        with pytest.raises(DataError, match=told):
            check(folder)
        file.write_bytes(before)
    described = manifest(folder)
    changes: list[tuple[str, Any, str]] = [
        ("remainder", described["remainder"] + 1, "tokens_in is"),
        ("skipped", 7, "manifest_sha256 is"),
        ("vocab_size", "x", "no usable vocab_size"),
        ("remainder", None, "no usable remainder"),
    ]
    for key, value, told in changes:
        (folder / "manifest.json").write_text(json.dumps(described | {key: value}))
        with pytest.raises(DataError, match=told):
            check(folder)
    small = described | {"vocab_size": 5}
    (folder / "manifest.json").write_text(json.dumps(small | {"manifest_sha256": digest(small)}))
    with pytest.raises(DataError, match="the vocabulary has 5"):
        check(folder)


def test_parts_of_a_mixture(corpus: str, plain: str, tmp_path: Path):
    mixture = {
        "books": {"source": "pg19", "path": corpus, "weight": 0.75},
        "code": {"source": "stdlib", "held_out": 0.99, "weight": 0.25},
    }
    data = DataConfig(source="mixture", mixture=mixture, seq_len=32, cache=str(tmp_path / "both"))
    with pytest.raises(DataError, match="a prepared folder"):
        find_parts(data, plain)
    parts = prepare_parts(data, plain, workers=1)
    assert [(part.name, float(part.weight), part.folder) for part in parts] == [
        ("books", 0.75, tmp_path / "both" / "books"),
        ("code", 0.25, tmp_path / "both" / "code"),
    ]
    assert [manifest(part.folder)["source"] for part in parts] == ["pg19", "stdlib"]
    assert find_parts(data, plain) == parts
    alone = make(corpus, plain, tmp_path)
    assert manifest(alone) == manifest(parts[0].folder)


def test_segments_of_several_parts_are_one_sequence():
    rows = np.arange(20, dtype=np.uint16).reshape(10, 2)
    segments = Segments(Path("parts"), {}, [rows[:3], rows[3:4], rows[4:]], np.array([0, 3, 4, 5, 11]))
    assert len(segments) == 10
    assert segments.documents([0, 1, 2, 3, 5]) == ((0,), (0, 1), (0, 1), (0,), (0, 1))
    order = [9, 0, 3, 2, 4, 3]
    assert segments[order].tolist() == rows[order].tolist()


def test_a_folder_of_several_files_is_read_whole(corpus: str, plain: str, tmp_path: Path):
    folder = make(corpus, plain, tmp_path)
    whole = datasets.load_from_disk(str(folder))
    whole.save_to_disk(str(tmp_path / "sharded"), num_shards=3)
    for name in ("manifest.json", "documents.npy"):
        (tmp_path / "sharded" / name).write_bytes((folder / name).read_bytes())
    one, three = open_segments(folder), open_segments(tmp_path / "sharded")
    assert len(three._parts) > 1
    assert torch.equal(one[range(len(one))], three[range(len(one))])


def test_a_second_run_does_nothing_and_says_so(corpus: str, plain: str, tmp_path: Path):
    said: list[str] = []
    first = make(corpus, plain, tmp_path, say=said.append)
    assert len(said) == 1  # how documents are cut
    assert first.parent == tmp_path / "data" / "cache"
    before = {f: f.stat().st_mtime_ns for f in first.iterdir()}
    second = make(corpus, plain, tmp_path, say=said.append, progress=lambda *_: pytest.fail("worked again"))
    assert second == first
    assert said[1:] == [f"already prepared, nothing to do: {first}"]
    assert {f: f.stat().st_mtime_ns for f in first.iterdir()} == before


def test_what_determines_the_content_chooses_the_folder(
    corpus: str, tokenizers_by_kind: dict[str, str], books: Callable[..., str], tmp_path: Path
):
    folders = [make(corpus, tokenizers_by_kind[kind], tmp_path) for kind in ("plain", "other")]
    folders.append(make(corpus, tokenizers_by_kind["plain"], tmp_path, seq_len=16))
    books(train=["one more sentence in a book of the same name"])
    folders.append(make(corpus, tokenizers_by_kind["plain"], tmp_path))
    assert len(set(folders)) == 4


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seq_len": 16}, ["seq_len=32", "seq_len=16"]),
        ({"tokenizer_path": "other"}, ["tokenizer_sha256="]),
        ({"source": "stdlib", "path": None}, ["source='pg19'", "source='stdlib'"]),
        ({"split": "test"}, ["split='train'", "split='test'"]),
    ],
)
def test_a_named_folder_that_holds_something_else_is_refused(
    corpus: str, tokenizers_by_kind: dict[str, str], tmp_path: Path, changed: dict[str, Any], told: list[str]
):
    cache = str(tmp_path / "named")
    make(corpus, tokenizers_by_kind["plain"], tmp_path, cache=cache)
    if "tokenizer_path" in changed:
        changed = {"tokenizer_path": tokenizers_by_kind[changed["tokenizer_path"]]}
    options = {"tokenizer_path": tokenizers_by_kind["plain"]} | changed
    with pytest.raises(DataError) as error:
        make(corpus, options.pop("tokenizer_path"), tmp_path, cache=cache, **options)
    assert all(word in str(error.value) for word in [*told, cache, "got", "allowed", "fix"])


def test_a_named_folder_is_used_where_the_source_is_not(corpus: str, plain: str, tmp_path: Path):
    cache = str(tmp_path / "named")
    make(corpus, plain, tmp_path, cache=cache)
    assert make("/not/on/this/machine", plain, tmp_path, cache=cache) == Path(cache)


def test_a_half_written_named_folder_is_refused_and_left_alone(corpus: str, plain: str, tmp_path: Path):
    folder = tmp_path / "named"
    folder.mkdir()
    (folder / "data-00000-of-00001.arrow").write_bytes(b"half")
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        make(corpus, plain, tmp_path, cache=str(folder))
    assert [f.name for f in folder.iterdir()] == ["data-00000-of-00001.arrow"]


def test_an_empty_named_folder_is_filled(corpus: str, plain: str, tmp_path: Path):
    (tmp_path / "named").mkdir()
    assert len(open_segments(make(corpus, plain, tmp_path, cache=str(tmp_path / "named")))) > 0


def test_a_half_written_default_folder_is_made_anew(corpus: str, plain: str, tmp_path: Path):
    folder = make(corpus, plain, tmp_path)
    (folder / "manifest.json").unlink()
    assert make(corpus, plain, tmp_path) == folder
    assert len(open_segments(folder)) == manifest(folder)["segments"]


@pytest.mark.usefixtures("small_units")
def test_a_failure_leaves_whole_units_and_the_next_attempt_goes_on(corpus: str, plain: str, tmp_path: Path):
    def fail(now: Any) -> None:
        if now.documents > 20:
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        make(corpus, plain, tmp_path, progress=fail)
    cache = tmp_path / "data" / "cache"
    (parts,) = (f for f in cache.iterdir() if f.is_dir())
    assert parts.suffix == ".parts"
    ready = sorted(f.stem for f in parts.glob("unit_*.json"))
    assert len(ready) > 0
    seen = []
    folder = make(corpus, plain, tmp_path, progress=seen.append)
    assert seen[0].documents > 10  # those were there already
    assert seen[-1].documents == seen[-1].documents_total == len(TEXTS) + 2
    assert seen[-1].bytes == seen[-1].bytes_total
    assert [f.name for f in cache.iterdir() if f.is_dir()] == [folder.name]
    assert manifest(folder) == manifest(make(corpus, plain, tmp_path, cache=str(tmp_path / "at_once")))


def test_too_little_text_for_one_segment(corpus: str, plain: str, tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.seq_len: got 1000000; allowed: at most the \d+ tokens"):
        make(corpus, plain, tmp_path, seq_len=1_000_000)


def test_damaged_files_are_refused(corpus: str, plain: str, tmp_path: Path):
    folder = make(corpus, plain, tmp_path)
    described = manifest(folder)
    (folder / "manifest.json").write_text(json.dumps(described | {"segments": described["segments"] + 1}))
    with pytest.raises(DataError, match="the files hold"):
        open_segments(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"data\.cache"):
        open_segments(folder)
    (folder / "manifest.json").write_text(json.dumps(described))
    (folder / "state.json").unlink()
    with pytest.raises(DataError, match="cannot be opened"):
        open_segments(folder)


def test_reading_segments(corpus: str, plain: str, tmp_path: Path):
    folder = make(corpus, plain, tmp_path)
    segments = open_segments(folder)
    rows = segments[[3, 0, 3]]
    assert rows.shape == (3, 32)
    assert rows.dtype == torch.int64
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(segments[3], rows[:1])
    assert torch.equal(segments[torch.tensor([0])], rows[1:2])
    assert segments[[]].shape == (0, 32)
    for outside in (-1, len(segments)):
        with pytest.raises(IndexError, match="not all in"):
            segments[[outside]]
    assert torch.equal(pickle.loads(pickle.dumps(segments))[[3, 0, 3]], rows)
    assert len(pickle.dumps(segments)) < 1000
    column = datasets.load_from_disk(str(folder))
    assert column.features["input_ids"] == datasets.List(datasets.Value("uint16"), length=32)
    assert column[3]["input_ids"] == rows[0].tolist()


def test_sources_are_mixed(plain: str, books: Callable[..., str]):
    listed = open_documents(DataConfig(source="stdlib+pg19", path=books(train=["x"] * 300)), "train")
    names = [d.name for d in listed]
    order = [names[i].startswith("pg19/") for i in shuffled(names, 0)]
    third = len(order) // 3
    expected = 300 / len(order)
    assert all(abs(np.mean(order[i * third : (i + 1) * third]) - expected) < 0.05 for i in range(3))
    backwards = names[::-1]
    assert [backwards[i] for i in shuffled(backwards, 0)] == [names[i] for i in shuffled(names, 0)]


PREPARE = """
import sys, time
from pathlib import Path
from yarn_train.config import DataConfig
from yarn_train.data import spool, store
from yarn_train.data.build import after_ends
from yarn_train.data.store import prepare
if __name__ == "__main__":
    corpus, tokenizer, root, pause = sys.argv[1:]
    spool.UNIT_BYTES = 1000
    first = []
    def progress(now):
        if now.tokens and not first:
            first.append(print("working", flush=True))
        time.sleep(float(pause))
    data = DataConfig(source="pg19", path=corpus, seq_len=32)
    print(prepare(data, tokenizer, workers=1, progress=progress, root=Path(root)), flush=True)
"""


def start(corpus: str, tokenizer: str, root: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE, corpus, tokenizer, str(root), str(pause)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


@pytest.mark.usefixtures("small_units")
def test_two_processes_share_the_work(corpus: str, plain: str, tmp_path: Path):
    both = [start(corpus, plain, tmp_path, pause=0.05) for _ in range(2)]
    said = [p.communicate(timeout=240)[0].split() for p in both]
    assert [p.returncode for p in both] == [0, 0]
    (folder,) = {Path(lines[-1]) for lines in said}
    assert all("working" in lines for lines in said)  # nobody waited while there was work
    assert [f.name for f in folder.parent.iterdir() if f.is_dir()] == [folder.name]
    assert manifest(folder) == manifest(make(corpus, plain, tmp_path, cache=str(tmp_path / "alone")))
    check(folder)


@pytest.mark.usefixtures("small_units")
def test_a_killed_process_neither_blocks_nor_spoils_the_next(corpus: str, plain: str, tmp_path: Path):
    whole = make(corpus, plain, tmp_path, cache=str(tmp_path / "uninterrupted"))
    pauses = np.random.default_rng(0).uniform(0, 0.4, 5)
    for pause in pauses:  # at five moments of the work
        killed = start(corpus, plain, tmp_path, pause=0.02)
        assert killed.stdout is not None
        assert killed.stdout.readline() == "working\n"
        time.sleep(pause)
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
    folder = make(corpus, plain, tmp_path)
    assert manifest(folder) == manifest(whole)
    assert arrow_bytes(folder) == arrow_bytes(whole)
    assert [f.name for f in folder.parent.iterdir() if f.is_dir()] == [folder.name]


def test_killed_while_packing(corpus: str, plain: str, tmp_path: Path):
    whole = make(corpus, plain, tmp_path)
    leftover = whole.with_name(f"{whole.name}.incomplete-1")
    whole.rename(leftover)
    (leftover / "manifest.json").unlink()
    again = make(corpus, plain, tmp_path)
    assert again == whole
    assert not leftover.exists()
    check(again)
