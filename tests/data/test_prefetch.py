"""Items made ahead on a thread: same items, bounded number, errors where they belong, nothing left running."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from support import child_env

from yarn_train.data.prefetch import Ahead
from yarn_train.errors import DataError

DEPTHS = [0, 1, 2, 7]


class Counting(Iterator[int]):
    """0, 1, 2 ... remembers how many were made and by whom; raises `error` instead of number `bad`."""

    def __init__(self, count: int, bad: int = -1, error: BaseException | None = None):
        self.count, self.bad, self.error = count, bad, error
        self.made = 0
        self.threads: set[int] = set()

    def __next__(self) -> int:
        self.threads.add(threading.get_ident())
        if self.made == self.bad and self.error is not None:
            raise self.error
        if self.made == self.count:
            raise StopIteration
        self.made += 1
        return self.made - 1


def _made(source: Counting, count: int) -> bool:
    return source.made == count


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("depth", DEPTHS)
def test_items_and_order_do_not_depend_on_depth(depth: int) -> None:
    source = Counting(20)
    with Ahead(source, depth) as ahead:
        assert list(ahead) == list(range(20))
        assert list(ahead) == []  # and the end stays the end
    assert len(source.threads) == 1
    assert (threading.get_ident() in source.threads) == (depth == 0)


@pytest.mark.parametrize("depth", DEPTHS)
def test_no_more_than_depth_items_wait(depth: int) -> None:
    source = Counting(100)
    with Ahead(source, depth) as ahead:
        for taken in range(4):
            until(partial(_made, source, taken + depth))
            time.sleep(0.02)
            assert source.made == taken + depth
            assert next(ahead) == taken


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_error_surfaces_in_the_step_that_needs_the_item_and_stays(depth: int) -> None:
    error = DataError("data.cache: got a torn page")
    with Ahead(Counting(9, bad=3, error=error), depth) as ahead:
        assert [next(ahead) for _ in range(3)] == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(DataError, match="a torn page") as raised:
                next(ahead)
            assert raised.value is error


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_thread_ends_with_the_stage_however_it_ends(depth: int) -> None:
    before = threading.active_count()
    ahead = Ahead(Counting(10**9), depth)

    def fail() -> None:
        with ahead:
            next(ahead)
            raise RuntimeError("the step failed")

    with pytest.raises(RuntimeError, match="the step failed"):
        fail()
    assert threading.active_count() == before
    ahead.close()
    with pytest.raises(StopIteration):
        next(ahead)


def test_an_interpreter_with_a_forgotten_thread_still_exits() -> None:
    script = "import itertools; from yarn_train.data.prefetch import Ahead; ahead = Ahead(itertools.count(), 2)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=child_env())
    assert (done.returncode, done.stderr) == (0, "")
