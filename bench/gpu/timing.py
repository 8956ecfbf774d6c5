"""Clocks: CUDA events on a GPU, the wall on a CPU; rounds of several works in turns; steps of a trainer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from yarn_train.metrics.meter import peak_memory_bytes

AHEAD = 10_000_000  # cycles, about 5 ms, that a GPU waits while the host queues what is to be timed


class Stopwatch:
    """Seconds between :meth:`start` and :meth:`stop`, the device idle at both."""

    def __init__(self, device: torch.device):
        self._device = device
        self._cuda = device.type == "cuda"
        self._began = 0.0
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self._cuda else []

    def start(self, ahead: bool = False) -> None:
        """Begin when the device has nothing left to do.

        Args:
            ahead: let the host queue some milliseconds of work before a GPU begins with it, so that a short kernel is
                timed without the time that its launch takes.
        """
        if self._cuda:
            torch.cuda.synchronize(self._device)
            if ahead:
                torch.cuda._sleep(AHEAD)
            self._events[0].record()
        else:
            self._began = time.perf_counter()

    def stop(self) -> float:
        """Seconds until the device has done everything that was queued."""
        if not self._cuda:
            return time.perf_counter() - self._began
        self._events[1].record()
        torch.cuda.synchronize(self._device)
        return self._events[0].elapsed_time(self._events[1]) / 1000.0


class Steps:
    """How many steps a trainer takes, and what they took.

    Args:
        rows: [tokens] each, in order; the first is the warm-up.
        deadline: as time.time(); no step begins that would end after it.
    """

    def __init__(self, rows: Sequence[torch.Tensor], device: torch.device, deadline: float):
        self.rows, self.device, self.deadline = rows, device, deadline
        self.seconds: list[float] = []  # of full steps
        self.losses: list[float] = []  # of all
        self._watch = Stopwatch(device)

    @property
    def taken(self) -> int:
        """Steps so far."""
        return len(self.losses)

    def more(self) -> bool:
        """Whether there is a row left and time for it. One full step is always begun: its time-out is a result."""
        if self.taken >= len(self.rows):
            return False
        return not self.seconds or time.time() + self.seconds[-1] < self.deadline

    def start(self) -> None:
        """The step's row is read."""
        if self.taken == 1 and self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._watch.start()

    def stop(self, loss: float | Callable[[], float]) -> None:
        """The update is done; a loss that has to be read from the device is read after the clock stopped."""
        seconds = self._watch.stop()
        if self.taken:
            self.seconds.append(seconds)
        self.losses.append(loss() if callable(loss) else loss)

    def result(self) -> dict[str, Any]:
        """Numbers of the full steps, without the first of them where there are more: caches of its length are cold.

        `cold` says that there was no other, and none of its length before it.
        """
        timed = self.seconds[1:] or self.seconds
        found: dict[str, Any] = {"losses": self.losses, "peak_bytes": peak_memory_bytes(self.device)}
        if timed:
            tokens = len(self.rows[-1])
            seconds = statistics.median(timed)
            found |= {"tokens": tokens, "seconds": timed, "tokens_per_second": tokens / seconds}
            found["cold"] = len(self.seconds) == 1 and len(self.rows[0]) < tokens
        return found


def rows(vocab: int, task: dict[str, Any]) -> list[torch.Tensor]:
    """Seeded random tokens of the warm-up and of the task's full steps, on the CPU; the same for every trainer."""
    generator = torch.Generator().manual_seed(1)
    lengths = [task["warm"], *[task["tokens"]] * task["steps"]]
    return [torch.randint(0, vocab, (length,), generator=generator) for length in lengths]


def in_turns(
    works: dict[Any, Callable[[Stopwatch], float]],
    device: torch.device,
    repeats: int,
    deadline: float,
    seen: Callable[[dict[Any, list[float]], dict[Any, Exception]], None] = lambda seconds, errors: None,
) -> tuple[dict[Any, list[float]], dict[Any, Exception]]:
    """Seconds of each work in `repeats` rounds through all of them, forwards and backwards, after one that warms up.

    In that one each work runs twice: what the first time takes, which may be a compiler's, says nothing about any
    other. A work that raises is left out from then on. None begins that would end after the deadline; one that had time
    for no round keeps the figure of its second time, and one that had none for that either has no figure.

    Args:
        seen: is told what is known after each work.
    """
    watch = Stopwatch(device)
    seconds: dict[Any, list[float]] = {}
    warm: dict[Any, float] = {}
    errors: dict[Any, Exception] = {}
    begun: set[Any] = set()
    for number in range(repeats + 1):
        for key in works if number % 2 == 0 else reversed(works):
            if key in errors or time.time() + warm.get(key, 0.0) > deadline:
                continue
            try:
                if number == 0:
                    begun.add(key)
                    works[key](watch)
                    if time.time() > deadline:
                        continue
                taken = works[key](watch)
            except Exception as error:
                errors[key] = error.with_traceback(None)  # whose frames hold tensors
            else:
                if number == 0:
                    warm[key], seconds[key] = taken, [taken]
                else:
                    seconds[key] = [*([] if number == 1 else seconds[key]), taken]
            seen(seconds, errors)
    late = [key for key in works if key not in seconds and key not in errors]
    errors |= {key: TimeoutError("only its warm-up ran" if key in begun else "no time was left for it") for key in late}
    return seconds, errors
