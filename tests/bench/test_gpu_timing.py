"""What is timed and what is not: rounds in turns, and the steps of a trainer."""

from __future__ import annotations

import time

import pytest
import torch

from bench.gpu.kernel import flops_of
from bench.gpu.timing import Steps, Stopwatch, in_turns, rows

CPU = torch.device("cpu")
NEVER = 10.0**12


def test_rounds_go_back_and_forth_and_the_first_does_not_count() -> None:
    order: list[str] = []

    def work(name: str) -> float:
        order.append(name)
        return float(len(order))

    seconds, errors = in_turns({n: lambda watch, n=n: work(n) for n in "ab"}, CPU, 2, NEVER)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert seconds == {"a": [4.0, 5.0], "b": [3.0, 6.0]}
    assert errors == {}


def test_a_work_that_fails_leaves_the_others_alone() -> None:
    calls = []

    def fails(watch: Stopwatch) -> float:
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    told = []
    seconds, errors = in_turns(
        {"a": fails, "b": lambda watch: 1.0}, CPU, 3, NEVER, lambda s, e: told.append((len(s), len(e)))
    )
    assert len(calls) == 1
    assert seconds == {"b": [1.0] * 3}
    assert list(errors) == ["a"]
    assert told[:2] == [(0, 1), (1, 1)]


def test_no_work_begins_that_would_end_too_late() -> None:
    """The second has one figure, its warm-up: another 100 s are not left."""
    seconds, errors = in_turns({"a": lambda watch: 0.5, "b": lambda watch: 100.0}, CPU, 2, time.time() + 50)
    assert seconds == {"a": [0.5, 0.5], "b": [100.0]}
    assert errors == {}
    seconds, errors = in_turns({"a": lambda watch: 0.5}, CPU, 2, time.time() - 1)
    assert seconds == {}
    assert isinstance(errors["a"], TimeoutError)


def task(tokens: int, steps: int) -> dict[str, int]:
    return {"tokens": tokens, "steps": steps, "warm": 8}


def take(steps: Steps, seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> int:
    """Steps that take so long, while there is time; how many."""
    queue = iter(seconds)
    monkeypatch.setattr(Stopwatch, "stop", lambda self: next(queue))
    while steps.more():
        steps.start()
        steps.stop(float(steps.taken))
    return steps.taken


def test_neither_the_warm_up_nor_the_first_full_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(rows(16, task(32, 4)), CPU, NEVER)
    assert take(steps, [50.0, 9.0, 1.0, 3.0, 2.0], monkeypatch) == 5
    found = steps.result()
    assert found["seconds"] == [1.0, 3.0, 2.0]
    assert found["tokens_per_second"] == 16.0
    assert found["losses"] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_the_first_full_step_begins_whatever_time_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other one, if it would end too late."""
    steps = Steps(rows(16, task(32, 3)), CPU, time.time() + 10.0)
    assert take(steps, [1.0, 20.0], monkeypatch) == 2
    assert steps.result()["seconds"] == [20.0]


def test_rows_are_the_same_for_every_trainer() -> None:
    first, again = rows(100, task(13, 2)), rows(100, task(13, 2))
    assert [len(row) for row in first] == [8, 13, 13]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], first[2])


def test_flops_of_a_kernel_by_hand() -> None:
    """Causal: 4 tokens see 4 * 4 / 2 = 8 pairs, of 2 products with 2 FLOPs per dimension: 8 * 4 * (2 * 8) = 512.
    Backward has five products for forward's two."""
    task = {"heads": 2, "head_dim": 8}
    assert flops_of(task, 4, "forward") == 512
    assert flops_of(task, 4, "both") == 512 * 3.5
