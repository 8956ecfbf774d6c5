from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yarn_train.errors import ConfigError
from yarn_train.eval.perplexity.windows import Window, default_windows, shared_targets, sliding_windows

bools = st.booleans()


@st.composite
def sizes(draw):
    """A window, a stride it allows in the reference protocol, a length and whether a BOS leads each window."""
    bos = draw(bools)
    window = draw(st.integers(2, 64))
    stride = draw(st.integers(1, window - bos))
    return draw(st.integers(0, 300)), window, stride, bos


def scored(windows: list[Window]) -> list[int]:
    return [i for w in windows for i in range(w.score_begin, w.end)]


def positions(w: Window, bos: bool) -> int:
    return w.end - 1 - w.begin + bos


@given(sizes())
def test_reference_scores_every_token_with_context_exactly_once(case):
    n, window, stride, bos = case
    windows = sliding_windows(n, window, stride, bos=bos)
    text = window - bos
    without_context = set()
    if not bos:
        # The first token has no context; where windows do not overlap, neither has the first of any window.
        without_context = set(range(0, n, stride)) if stride == text else {0}
    assert scored(windows) == [i for i in range(n) if i not in without_context]


@given(sizes())
def test_reference_windows_step_by_stride_and_end_at_the_end(case):
    n, window, stride, bos = case
    windows = sliding_windows(n, window, stride, bos=bos)
    assert [w.begin for w in windows] == [i * stride for i in range(len(windows))]
    for w in windows:
        assert w.end == min(w.begin + window - bos, n)
        assert positions(w, bos) <= window
        assert w.score_begin - w.begin + bos >= 1  # at least one token of context
    assert sum(w.end == n for w in windows) <= 1


@given(st.integers(2, 64), st.data())
def test_same_targets_at_every_window_size(stride, data):
    bos = data.draw(bools)
    n = data.draw(st.integers(2, 300))
    k = data.draw(st.integers(0 if bos else 1, n - 1))
    every = [sliding_windows(n, window, stride, k, bos) for window in (stride, stride + 1, 2 * stride, 7 * stride)]
    assert all(scored(windows) == list(range(k, n)) for windows in every)
    assert all([w[1:] for w in windows] == [w[1:] for w in every[0]] for windows in every)  # same blocks as well


@given(st.integers(2, 64), st.data())
def test_same_target_context_is_as_long_as_the_window_allows(stride, data):
    bos = data.draw(bools)
    window = data.draw(st.integers(stride, 8 * stride))
    n = data.draw(st.integers(2, 300))
    k = data.draw(st.integers(0 if bos else 1, n - 1))
    for w in sliding_windows(n, window, stride, k, bos):
        assert w.begin >= 0
        assert w.score_begin - w.begin + bos >= 1
        assert w.scored == min(stride, n - w.score_begin)
        assert positions(w, bos) <= window
        if w.begin > 0:
            assert positions(w, bos) >= window - 1  # not a token of context is wasted once the document allows it


def test_examples_by_hand():
    assert sliding_windows(10, 6, 3) == [Window(0, 6, 1), Window(3, 9, 6), Window(6, 10, 9)]
    assert sliding_windows(10, 6, 3, bos=True) == [Window(0, 5, 0), Window(3, 8, 5), Window(6, 10, 8)]
    assert sliding_windows(12, 8, 4, score_from=4) == [Window(0, 8, 4), Window(4, 12, 8)]
    assert sliding_windows(12, 4, 4, score_from=4) == [Window(3, 8, 4), Window(7, 12, 8)]
    assert sliding_windows(0, 8, 4) == sliding_windows(1, 8, 4) == []


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((100, 8, 9), ["eval.stride", "9"]),
        ((100, 8, 8, None, True), ["eval.stride", "<= 7"]),
        ((100, 8, 9, 20), ["eval.stride", "<= 8"]),
        ((100, 1, 1), ["eval.windows", "1"]),
        ((100, 8, 0), ["eval.stride", "0"]),
        ((100, 8, 4, 100), ["score_from", "100"]),
        ((100, 8, 4, 0), ["score_from", "0"]),
        ((100, 1, 0, 100), ["eval.windows", "eval.stride", "score_from"]),  # all at once
    ],
)
def test_sizes_that_make_no_sense(arguments, names):
    with pytest.raises(ConfigError) as caught:
        sliding_windows(*arguments)
    assert all(name in str(caught.value) for name in names)


def test_default_windows_double_and_end_exactly_at_the_largest():
    assert default_windows(256, 16) == [256, 512, 1024, 2048, 4096]
    assert default_windows(4096, 24) == [4096, 8192, 16384, 32768, 65536, 98304]
    assert default_windows(256, 1) == [256]
    with pytest.raises(ConfigError, match=r"eval\.windows"):
        default_windows(256, 0.5)


@given(st.integers(1, 32), st.integers(1, 8), st.integers(1, 5))
def test_shared_targets_give_the_largest_window_a_full_context(stride, times, blocks):
    largest = stride * times + 1
    k, n = shared_targets(largest, stride, blocks)
    windows = sliding_windows(n, largest, stride, k)
    assert len(windows) == blocks
    assert sum(w.scored for w in windows) == blocks * stride
    assert all(w.end - w.begin == largest for w in windows)
