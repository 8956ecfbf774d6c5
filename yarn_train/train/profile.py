"""``profile.*``: a trace of a few optimizer steps, and a table of where their time goes.

Below the stage's folder, in ``profile/step_00000003/``: ``rank_0.json.gz``, to be opened at https://ui.perfetto.dev,
``costs.md`` and ``costs.json``.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from ..config import Config
from ..dist.heartbeat import heartbeat
from ..dist.runtime import Runtime
from ..metrics.costs import Costs, Event, costs_of, markdown, text

Say = Callable[[str], None]
MICRO = 1e-6


class Profile(AbstractContextManager["Profile"]):
    """Profiles ``profile.steps`` steps from step ``profile.start`` on, on the ranks of ``profile.ranks``.

    Steps are counted from 1, as in metrics.jsonl. They are profiled once: not if this start begins behind them, and not
    again after a resume; for others, ask for another ``profile.start``.
    """

    def __init__(self, cfg: Config, stage: Path, runtime: Runtime, taken: int, say: Say):
        """
        Args:
            stage: the stage's folder.
            taken: its steps that are done already.
            say: prints a line; used on the first of the profiled ranks.
        """
        self._runtime, self._say = runtime, say
        self._steps, self._ranks, self._shapes = cfg.profile.steps, cfg.profile.ranks, cfg.profile.shapes
        self._first, self._last = cfg.profile.start, cfg.profile.start + self._steps - 1
        self.folder = stage / "profile" / f"step_{self._first:08d}"
        self._stage = stage.name
        self.wanted = self._steps > 0 and taken < self._first and not (self.folder / "costs.json").exists()
        self._mine = self.wanted and runtime.rank in self._ranks
        self._profiler: profile | None = None
        self._step: record_function | None = None
        self._began = 0.0

    @property
    def about(self) -> str:
        """What will be profiled, or why what was asked for will not, in words; empty where nothing was."""
        steps = f"steps {self._first} to {self._last}"
        ranks = f"rank {', '.join(map(str, self._ranks))}"
        if self.wanted:
            return f"{steps} on {ranks}, into {self.folder}"
        if not self._steps:
            return ""
        return f"not again: {steps} are over; another profile.start profiles others"

    def touches(self, step: int) -> bool:
        """Whether profiling may have cost this step time: those it looks at, and the next, while ranks still write."""
        return self.wanted and self._first <= step <= self._last + 1

    def before(self, step: int) -> None:
        """Step number `step` is about to begin."""
        if not self._mine or not self._first <= step <= self._last:
            return
        if step == self._first:
            activities = [ProfilerActivity.CPU]
            if self._runtime.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profiler = profile(activities=activities, record_shapes=self._shapes)
            self._profiler.start()
            self._wait()  # for what earlier steps left to do
            self._began = time.perf_counter()
        if self._profiler is not None:
            self._step = record_function(f"step {step}")
            self._step.__enter__()

    def after(self, step: int) -> None:
        """Step number `step` is done; after the last one everything is written."""
        if self._profiler is None or self._step is None:
            return
        self._step.__exit__(None, None, None)
        self._step = None
        if step == self._last:
            self._wait()
            seconds = time.perf_counter() - self._began
            done, self._profiler = self._profiler, None
            heartbeat.at("profile", step)  # its files may take a minute
            done.stop()
            try:
                self._write(done, seconds)
            except OSError as error:  # training is worth more than its profile
                self._say(f"the profile could not be written: {error}")

    def __exit__(self, *_: object) -> None:
        """Training ended before the last step that was to be profiled."""
        if self._step is not None:
            self._step.__exit__(None, None, None)
        if self._profiler is not None:
            self._profiler.stop()
        self._step = self._profiler = None

    def _wait(self) -> None:
        if self._runtime.device.type == "cuda":
            torch.cuda.synchronize(self._runtime.device)

    def _write(self, done: profile, seconds: float) -> None:
        rank = self._runtime.rank
        self.folder.mkdir(parents=True, exist_ok=True)
        trace = self.folder / f"rank_{rank}.json.gz"
        done.export_chrome_trace(str(trace))
        if rank != min(self._ranks):
            return
        costs = summary(done.events() or (), self._steps, seconds, self._runtime.device.type == "cuda")
        title = f"{self._stage}, steps {self._first} to {self._last}, rank {rank} ({self._runtime.device.type})"
        (self.folder / "costs.md").write_text(markdown(title, costs), encoding="utf-8")
        facts = {"stage": self._stage, "first": self._first, "steps": self._steps, "rank": rank}
        whole = json.dumps({**facts, **costs.as_dict()}, indent=1)
        (self.folder / "costs.json").write_text(whole + "\n", encoding="utf-8")
        self._say("\n".join([f"profile of {title}:", *text(costs), f"the trace is {trace} (https://ui.perfetto.dev)"]))


def summary(events: Iterable[Any], steps: int, seconds: float, on_gpu: bool) -> Costs:
    """What torch.profiler's FunctionEvents of `steps` steps that took `seconds` together add up to.

    On a GPU kernels count, and the rest is when none of them runs. On the CPU operators count, and the rest is Python.
    """
    listed = [event for event in events if not event.is_user_annotation]
    notes = {event.name for event in events if event.is_user_annotation}
    if on_gpu:
        kernels = [event for event in listed if event.device_type != DeviceType.CPU and event.name not in notes]
        busy = covered((event.time_range.start, event.time_range.end) for event in kernels) * MICRO
        return costs_of(launched(listed, kernels, notes), steps, seconds, ("GPU idle", max(0.0, seconds - busy)))
    operators = [operator(event) for event in listed if event.device_type == DeviceType.CPU and not event.is_async]
    rest = max(0.0, seconds - sum(event.seconds for event in operators))
    return costs_of(operators, steps, seconds, ("outside of operators: Python, data", rest))


def operator(event: Any) -> Event:
    """What an operator did itself; one that calls itself again, as those on sharded tensors do, is one call."""
    within = around(event)
    calls = 0 if event.name in within else 1
    return Event(event.name, event.self_cpu_time_total * MICRO, within, calls=calls, shapes=shapes_of(event))


def launched(events: Iterable[Any], kernels: Iterable[Any], notes: set[str]) -> Iterator[Event]:
    """The kernels with the operators that launched them; those of unknown origin (graphs, libraries) at the end."""
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for kernel in kernels:
        seconds[kernel.name] += kernel.time_range.end - kernel.time_range.start
        calls[kernel.name] += 1
    for event in events:
        for kernel in event.kernels if event.device_type == DeviceType.CPU else ():
            if kernel.name not in notes:
                seconds[kernel.name] -= kernel.duration
                calls[kernel.name] -= 1
                within = around(event)
                yield Event(kernel.name, kernel.duration * MICRO, within, event.name, shapes=shapes_of(event))
    for name, count in calls.items():
        if count > 0:
            yield Event(name, max(0.0, seconds[name]) * MICRO, calls=count)


def around(event: Any) -> tuple[str, ...]:
    """Names of the operators that an operator runs in, the innermost first."""
    names = []
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    return tuple(names)


def shapes_of(event: Any) -> str:
    """``[4, 8] x [8, 2]`` of an operator's tensors; empty where they were not recorded."""
    return " x ".join(str(list(shape)) for shape in event.input_shapes or () if shape)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
