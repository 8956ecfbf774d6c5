from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from yarn_train.config import DataConfig
from yarn_train.data import inspect
from yarn_train.data.segments import Segments, open_segments
from yarn_train.data.store import prepare
from yarn_train.report.documents import length_histogram


@pytest.fixture
def segments(books: Callable[..., str], plain: str, tmp_path: Path) -> Segments:
    corpus = books(train=[f"Book {i}.\tIt\r\nends\x00 here {i}.\n" for i in range(30)])
    folder = prepare(DataConfig(source="pg19", path=corpus, seq_len=16), plain, workers=1, root=tmp_path)
    assert folder is not None
    return open_segments(folder)


def test_windows_lie_around_document_starts(segments: Segments, plain: str):
    found = list(inspect.windows(segments, 3))
    assert len(found) == 3
    tokenizer = AutoTokenizer.from_pretrained(plain)
    for window in found:
        assert (window.before[-1], window.after[0]) == (1, 0)
        assert window.position == window.segment * 16 + window.offset
        assert segments.ids(window.segment)[window.offset] == 0
        where, before, after = inspect.render(window, tokenizer).split("\n")
        assert f"segment {window.segment}, position {window.offset}" in where
        assert before.endswith("⏎</s>")
        assert after.strip().startswith("<s>")
    text = inspect.render(found[0], tokenizer)
    assert all(visible in text for visible in ("␍", "⏎", "⇥", "\\x00"))


def test_more_windows_than_documents_are_all(segments: Segments):
    positions = [window.position for window in inspect.windows(segments, 1000)]
    inside = [s for s in segments.starts.tolist() if 0 < s < len(segments) * 16]
    assert positions == inside


def test_one_document_still_has_its_start():
    alone = Segments(Path("one"), {}, [np.arange(8, dtype=np.uint16).reshape(2, 4)], np.array([0]))
    (window,) = inspect.windows(alone, 3, context=6)
    assert (window.position, window.before.tolist(), window.after.tolist()) == (0, [], [0, 1, 2, 3, 4, 5])
    assert inspect.tokens(alone, 2, 7).tolist() == [2, 3, 4, 5, 6]


def test_statistics(segments: Segments, tmp_path: Path):
    lengths = inspect.tokens_per_document(segments)
    described = segments.described
    assert (len(lengths), lengths.sum()) == (30, described["tokens_in"])
    assert inspect.share_lost(segments) == described["remainder"] / described["tokens_in"]
    inside = sum(len(row) - 1 for row in segments.documents(range(len(segments))))
    assert inspect.boundaries_per_segment(segments) * len(segments) == pytest.approx(inside, abs=1)
    drawn = length_histogram(lengths, 16, "pg19", tmp_path / "lengths.png")
    assert drawn.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert length_histogram(np.array([7]), 16, "one", tmp_path / "one.png").stat().st_size > 1000
