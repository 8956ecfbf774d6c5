from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from yarn_train.data import store
from yarn_train.data.sources import documents
from yarn_train.data.store import Segments, manifest, open_segments, prepare, shuffled
from yarn_train.data.tokenize import tokenize_documents
from yarn_train.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[2]
TEXTS = [f"Chapter {i}. The whale is not a fish; it is a beast of the sea.\n" * (1 + i % 7) for i in range(40)]


@pytest.fixture
def corpus(books: Callable[..., str]) -> str:
    return books(train=[*TEXTS, "", b"bad \xff bytes"])


def make(corpus: str, tokenizer: str, root: Path, **changed: Any) -> Path:
    options: dict[str, Any] = {"source": "pg19", "path": corpus, "split": "train", "held_out": 0.1, "seq_len": 32}
    options |= {"tokenizer_path": tokenizer, "workers": 1, "root": root} | changed
    return prepare(**options)


def arrow_bytes(folder: Path) -> bytes:
    return b"".join(f.read_bytes() for f in sorted(folder.glob("*.arrow")))


def test_segments_are_the_documents_end_to_end(corpus: str, plain: str, tmp_path: Path):
    folder = make(corpus, plain, tmp_path)
    described = manifest(folder)
    listed = shuffled(documents("pg19", corpus, "train"), store.ORDER_SEED)
    stream = np.concatenate([ids for _, ids in tokenize_documents(listed, plain, 1)])
    segments = open_segments(folder)
    assert len(segments) == described["segments"] == len(stream) // 32
    flat = segments[range(len(segments))].flatten()
    assert flat.tolist() == stream[: len(flat)].tolist()
    assert described["tokens_in"] == len(stream) == described["segments"] * 32 + described["remainder"]
    assert (described["documents"], described["skipped"]) == (41, 1)
    assert described["skipped_names"] == ["pg19/train/41.txt"]
    assert described["bytes_in"] == sum(len(t.encode()) for t in TEXTS)
    assert (described["source"], described["dtype"], described["vocab_size"]) == ("pg19", "uint16", 300)


def test_bytes_do_not_depend_on_the_number_of_workers(corpus: str, plain: str, tmp_path: Path):
    one, four = (make(corpus, plain, tmp_path, workers=n, cache=str(tmp_path / f"w{n}")) for n in (1, 4))
    assert arrow_bytes(one) == arrow_bytes(four) != b""
    assert manifest(one) == manifest(four)


def test_bytes_do_not_depend_on_how_much_is_buffered(
    corpus: str, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    at_once = make(corpus, plain, tmp_path, cache=str(tmp_path / "a"))
    monkeypatch.setattr("yarn_train.data.segments.TOKENS_PER_WRITE", 100)
    often = make(corpus, plain, tmp_path, cache=str(tmp_path / "b"))
    assert manifest(at_once) == manifest(often)
    assert arrow_bytes(at_once) == arrow_bytes(often)


def test_segments_of_several_parts_are_one_sequence():
    rows = np.arange(20, dtype=np.uint16).reshape(10, 2)
    segments = Segments(Path("parts"), [rows[:3], rows[3:4], rows[4:]])
    assert len(segments) == 10
    order = [9, 0, 3, 2, 4, 3]
    assert segments[order].tolist() == rows[order].tolist()


def test_a_folder_of_several_files_is_read_whole(corpus: str, plain: str, tmp_path: Path):
    folder = make(corpus, plain, tmp_path)
    whole = datasets.load_from_disk(str(folder))
    whole.save_to_disk(str(tmp_path / "sharded"), num_shards=3)
    (tmp_path / "sharded" / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    one, three = open_segments(folder), open_segments(tmp_path / "sharded")
    assert len(three._parts) > 1
    assert torch.equal(one[range(len(one))], three[range(len(one))])


def test_a_second_run_does_nothing_and_says_so(corpus: str, plain: str, tmp_path: Path):
    said: list[str] = []
    first = make(corpus, plain, tmp_path, say=said.append)
    assert said == []
    assert first.parent == tmp_path / "data" / "cache"
    before = {f: f.stat().st_mtime_ns for f in first.iterdir()}
    second = make(corpus, plain, tmp_path, say=said.append, progress=lambda *_: pytest.fail("worked again"))
    assert second == first
    assert said == [f"already prepared, nothing to do: {first}"]
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


def test_a_failure_leaves_nothing_behind(corpus: str, plain: str, tmp_path: Path):
    def fail(*_: int) -> None:
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        make(corpus, plain, tmp_path, progress=fail)
    assert [f.name for f in (tmp_path / "data" / "cache").iterdir() if f.suffix != ".lock"] == []


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
    listed = documents("stdlib+pg19", books(train=["x"] * 300), "train", 0.1)
    order = [d.name.startswith("pg19/") for d in shuffled(listed, 0)]
    third = len(order) // 3
    expected = 300 / len(order)
    assert all(abs(np.mean(order[i * third : (i + 1) * third]) - expected) < 0.05 for i in range(3))
    assert [d.name for d in shuffled(listed[::-1], 0)] == [d.name for d in shuffled(listed, 0)]


PREPARE = """
import sys, time
from pathlib import Path
from yarn_train.data.store import prepare
corpus, tokenizer, root, pause = sys.argv[1:]
def progress(done, total, tokens):
    if done == 1:
        print("working", flush=True)
    time.sleep(float(pause))
def say(line):
    print(line.split()[0], flush=True)
print(prepare("pg19", corpus, "train", 0.1, 32, tokenizer, 1, None, progress, root=Path(root), say=say), flush=True)
"""


def start(corpus: str, tokenizer: str, root: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE, corpus, tokenizer, str(root), str(pause)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def test_of_two_processes_one_prepares_and_the_other_waits(corpus: str, plain: str, tmp_path: Path):
    both = [start(corpus, plain, tmp_path, pause=0.03) for _ in range(2)]
    said = sorted(p.communicate(timeout=240)[0].split("\n") for p in both)
    assert [p.returncode for p in both] == [0, 0]
    (folder,) = {line for lines in said for line in lines if line.startswith("/")}
    assert sum("working" in lines for lines in said) == 1
    assert sum("already" in lines for lines in said) == 1
    assert [f.name for f in Path(folder).parent.iterdir() if f.is_dir()] == [Path(folder).name]
    assert len(open_segments(folder)) == manifest(folder)["segments"]


def test_a_killed_process_neither_blocks_nor_spoils_the_next(corpus: str, plain: str, tmp_path: Path):
    killed = start(corpus, plain, tmp_path, pause=60)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "working\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert len(list((tmp_path / "data" / "cache").glob("*.incomplete-*"))) == 1
    folder = make(corpus, plain, tmp_path)
    assert len(open_segments(folder)) == manifest(folder)["segments"]
    assert list(folder.parent.glob("*.incomplete-*")) == []
