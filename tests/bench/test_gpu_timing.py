"""What is timed and what is not: rounds in turns, and the steps of a trainer."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from bench.gpu import timing
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
    assert order == ["a", "a", "b", "b", "b", "a", "a", "b"]
    assert seconds == {"a": [6.0, 7.0], "b": [5.0, 8.0]}
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


class Clock:
    """time.time() where only works take time: so many seconds, the first time of each others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 0.0
        monkeypatch.setattr(timing.time, "time", lambda: self.now)

    def work(self, first: float, later: float) -> Callable[[Stopwatch], float]:
        queue = iter([first])

        def run(watch: Stopwatch) -> float:
            taken = next(queue, later)
            self.now += taken
            return taken

        return run


def test_no_work_begins_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """b has the figure of its second time: another 20 s are not left."""
    clock = Clock(monkeypatch)
    seconds, errors = in_turns({"a": clock.work(0.5, 0.5), "b": clock.work(20.0, 20.0)}, CPU, 2, 50.0)
    assert seconds == {"a": [0.5, 0.5], "b": [20.0]}
    assert errors == {}
    seconds, errors = in_turns({"a": clock.work(0.5, 0.5)}, CPU, 2, clock.now - 1)
    assert seconds == {}
    assert str(errors["a"]) == "no time was left for it"


def test_a_compilers_time_is_no_figure_and_keeps_no_round_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    seconds, errors = in_turns({"a": clock.work(30.0, 1.0), "b": clock.work(30.0, 1.0)}, CPU, 2, 50.0)
    assert seconds == {"a": [1.0]}, "the second time; b's compiler took the time of all rounds"
    assert {key: (type(error), str(error)) for key, error in errors.items()} == {
        "b": (TimeoutError, "only its warm-up ran")
    }
    clock.now = 0.0
    seconds, errors = in_turns({"a": clock.work(30.0, 1.0)}, CPU, 3, 50.0)
    assert (seconds, errors) == ({"a": [1.0] * 3}, {})


def test_what_is_timed_is_queued_before_a_gpu_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches of a kernel of half a millisecond would be a tenth of it."""
    order: list[str] = []
    event = SimpleNamespace(record=lambda: order.append("record"), elapsed_time=lambda other: 500.0)
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("idle"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append("sleep"))
    watch = Stopwatch(torch.device("cuda"))
    watch.start(ahead=True)
    assert watch.stop() == 0.5
    assert order == ["idle", "sleep", "record", "record", "idle"]
    order.clear()
    watch.start()
    assert order == ["idle", "record"], "a step is timed with its launches"


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
    found = steps.result()
    assert (found["seconds"], found["cold"]) == ([20.0], True)


def test_of_two_full_steps_the_second_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first may make the pinned buffers of its length; how long it took is no reason not to begin the next."""
    monkeypatch.setattr(timing.time, "time", lambda: 5.0 if steps.taken < 3 else 8.0)
    steps = Steps(rows(16, task(32, 4)), CPU, 14.5)
    assert take(steps, [1.0, 9.0, 2.0, 4.0, 11.0], monkeypatch) == 5
    assert steps.result()["seconds"] == [2.0, 4.0, 11.0]
    steps = Steps(rows(16, task(32, 2)), CPU, NEVER)
    take(steps, [1.0, 20.0, 2.0], monkeypatch)
    found = steps.result()
    assert (found["seconds"], found["cold"]) == ([2.0], False)


def test_a_lone_step_after_a_warm_up_of_its_length_is_not_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(rows(16, {**task(32, 1), "warm": 32}), CPU, NEVER)
    take(steps, [20.0, 2.0], monkeypatch)
    found = steps.result()
    assert (found["seconds"], found["cold"]) == ([2.0], False)


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
