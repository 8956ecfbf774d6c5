"""Worker processes: order, equality, bounds, and ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from backends import byte_level, sentencepiece
from memory import InMemory
from tokenizers import AddedToken, Tokenizer

from yarn_train.data import pool
from yarn_train.data.encode import Recipe, recipe_of
from yarn_train.data.pool import Pool
from yarn_train.data.tokenize import tokenize_documents
from yarn_train.errors import DataError

UINT16 = np.dtype(np.uint16)
ROOT = Path(__file__).resolve().parents[2]
LONG = "The whale, said the captain.\nIt's a beast  of the sea été\n\n"


def recipe(kind: str = "bytes") -> Recipe:
    backend, bos, eos = (byte_level(), 0, 1) if kind == "bytes" else (sentencepiece(), 1, 2)
    return recipe_of(backend.to_str(), bos, eos, UINT16)


def test_order_and_ids_are_those_of_one_process(plain: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "CHUNK", 1000)
    texts = [LONG * 300, "short", b"\xff", "", *[f"number {i}" for i in range(30)], LONG * 40, b"ok\xc3"]
    listed = InMemory({str(i): t if isinstance(t, bytes) else t.encode() for i, t in enumerate(texts)})
    found, skipped = {}, {}
    for workers in (1, 2, 4):
        skipped[workers] = list[str]()
        found[workers] = list(tokenize_documents(listed, plain, workers, skipped[workers]))
    assert [name for name, _ in found[1]] == [str(i) for i in range(len(texts)) if i not in (2, len(texts) - 1)]
    for workers in (2, 4):
        for (name, ids), (other, expected) in zip(found[workers], found[1], strict=True):
            assert name == other
            assert ids.dtype == expected.dtype
            assert np.array_equal(ids, expected), name
        assert skipped[workers] == skipped[1] == ["2", str(len(texts) - 1)]


def test_only_the_first_part_of_a_document_has_the_prefix(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "CHUNK", 50)
    texts = [LONG * 20, " " + LONG, "", LONG]
    listed = InMemory({str(i): text.encode() for i, text in enumerate(texts)})
    encoder = recipe("sentencepiece").encoder()
    for (_, ids), text in zip(Pool(recipe("sentencepiece"), 2).tokenize(listed), texts, strict=True):
        assert isinstance(ids, np.ndarray)
        assert np.array_equal(ids, encoder.encode(text))


def test_a_marker_in_one_part_counts_for_the_whole_document(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "CHUNK", 50)
    backend = Tokenizer.from_str(byte_level().to_str())
    backend.add_tokens([AddedToken("<eos>", special=False)])
    own = recipe_of(backend.to_str(), 0, backend.token_to_id("<eos>"), UINT16)
    text = LONG * 5 + "<eos>" + LONG
    ((_, ids),) = Pool(own, 2).tokenize(
        InMemory(
            {
                "a": text.encode(),
            }
        )
    )
    assert isinstance(ids, np.ndarray)
    assert np.array_equal(ids, own.encoder().encode(text))
    assert not own.encoder().has_marker(ids)


def parts_of(listed: InMemory) -> list[tuple[list[bool], int]]:
    """Of every task: which parts end their document, and characters."""
    tasks = pool._tasks(listed, recipe())
    return [([part.last for part in parts], sum(len(text) for text, _, _ in payload)) for parts, payload in tasks]


def test_a_long_document_is_many_tasks_and_many_short_ones_are_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "CHUNK", 10_000)
    long = parts_of(InMemory({"a": (LONG * 1000).encode()}))
    assert len(long) == len(LONG) * 1000 // 10_000 + 1
    assert [last for lasts, _ in long for last in lasts] == [False] * (len(long) - 1) + [True]
    assert max(size for _, size in long) < 10_000 + len(LONG)
    short = parts_of(InMemory({str(i): b"few words" for i in range(100)}))
    assert [len(lasts) for lasts, _ in short] == [20] * 5
    assert sum(size for _, size in short) == 900


def test_an_uncuttable_document_is_one_part(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "CHUNK", 100)
    assert parts_of(InMemory({"a": b"w" * 5000, "b": b"x"})) == [([True], 5000), ([True], 1)]


def test_processes_read_only_a_little_ahead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "CHUNK", 1000)
    listed = InMemory({str(i): b"x" * 900 for i in range(100)})
    stream = Pool(recipe(), 2).tokenize(listed)
    for taken in range(1, 20):
        next(stream)
        assert len(listed.reads) <= taken + 2 * pool.IN_FLIGHT_PER_WORKER + 2
    stream.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_one_error():
    listed = InMemory({str(i): (LONG * 2000).encode() for i in range(200)})
    stream = Pool(recipe(), 2).tokenize(listed)
    next(stream)
    victim = multiprocessing.active_children()[0].pid
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(DataError, match=r"data\.workers: got 2.*a worker process died"):
        list(stream)
    assert not multiprocessing.active_children()


ENDLESS = """
import multiprocessing, sys
from itertools import repeat
from memory import InMemory
from yarn_train.data.tokenize import tokenize_documents
if __name__ == "__main__":
    (document,) = InMemory({"a": b"The whale. " * 20_000})
    for i, _ in enumerate(tokenize_documents(repeat(document), sys.argv[1], workers=2)):
        if i == 2:
            print(*[child.pid for child in multiprocessing.active_children()], flush=True)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
def test_workers_end_with_a_killed_parent(plain: str, tmp_path: Path):
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    paths = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, str(script), plain]
    with subprocess.Popen(command, env=paths, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(workers) == 2
    until = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, workers))
