from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yarn_train.data.pack import Packer, pack


def arrays(lengths: list[int]) -> list[np.ndarray]:
    ids = np.arange(sum(lengths), dtype=np.uint16)
    return np.split(ids, np.cumsum(lengths)[:-1]) if lengths else []


@given(lengths=st.lists(st.integers(0, 40), max_size=30), seq_len=st.integers(1, 17))
def test_no_token_is_lost_moved_or_made_up(lengths: list[int], seq_len: int):
    packer = Packer(seq_len)
    segments = list(pack(arrays(lengths), seq_len, packer))
    assert packer.tokens_in == sum(lengths)
    assert packer.segments == len(segments)
    assert packer.tokens_in == packer.segments * seq_len + packer.remainder
    assert 0 <= packer.remainder < seq_len
    flat = np.concatenate(segments) if segments else np.empty(0)
    assert flat.tolist() == list(range(sum(lengths) - packer.remainder))
    assert all(s.shape == (seq_len,) and s.dtype == np.uint16 for s in segments)


@given(lengths=st.lists(st.integers(0, 40), max_size=30), cut=st.lists(st.integers(0, 40), max_size=30))
def test_segments_do_not_depend_on_how_the_stream_was_cut(lengths: list[int], cut: list[int]):
    total = sum(lengths)
    other = np.split(np.arange(total, dtype=np.uint16), sorted(min(c, total) for c in cut))
    one, two = (np.array(list(pack(stream, 7))) for stream in (arrays(lengths), other))
    assert np.array_equal(one, two)


def test_a_document_longer_than_many_segments_and_many_short_ones():
    packer = Packer(4)
    assert packer.feed(np.arange(3)).shape == (0, 4)
    assert packer.feed(np.arange(3, 14)).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert packer.remainder == 2
    assert packer.feed(np.arange(14, 16)).tolist() == [[12, 13, 14, 15]]
    assert packer.remainder == 0


def test_a_kept_tail_does_not_keep_its_document_in_memory():
    packer = Packer(10)
    packer.feed(np.zeros(1_000_003, dtype=np.uint16))
    assert sum(w.nbytes if w.base is None else w.base.nbytes for w in packer._waiting) < 100


def test_packing_many_short_documents_is_linear():
    packer = Packer(65_536)
    joined = 0
    for _ in range(2_000):
        packer.feed(np.zeros(64, dtype=np.uint16))
        joined = max(joined, len(packer._waiting))
    assert joined > 900  # collected, not joined again at every document


def test_a_segment_has_at_least_one_token():
    with pytest.raises(ValueError, match="at least 1"):
        Packer(0)
