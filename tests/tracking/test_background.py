"""A tracker that fails, hangs or is slow: what training notices of it, and what is said."""

from __future__ import annotations

import errno
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from yarn_train.metrics import background
from yarn_train.metrics.tracked import Point, Rows, placed, point, scores
from yarn_train.metrics.tracker import COMPLETE, FAILED, STOPPED, Record
from yarn_train.metrics.tracking import Trackers

ENOUGH = 20.0  # seconds that a busy machine may need for what takes milliseconds


def row(step: int, **more: Any) -> dict[str, Any]:
    plain = {"step": step, "tokens": 8 * step, "loss": 1 / step, "lr": 0.1, "grad_norm": 1.0, "epoch": 0.5 * step}
    return {**plain, "skipped": None, "skipped_total": 0, "peak_memory_bytes": 2**30, **more}


class Probe:
    """A tracker that keeps what it gets, and calls `on` before each call, by its name."""

    name = "probe"
    patience = 30.0

    def __init__(self, first: int = 1, **on: Callable[[], object]):
        self.begins_at, self.on = first, on
        self.calls: list[str] = []
        self.points: list[Point] = []
        self.batches: list[int] = []
        self.ending = self.resumed = self.thread = None

    def _do(self, call: str) -> None:
        self.calls.append(call)
        self.on.get(call, lambda: None)()

    def open(self) -> str:
        self.thread = threading.current_thread()
        self._do("open")
        return "probe: opened"

    def first(self, resumed: int) -> int:
        self.resumed = resumed
        return self.begins_at

    def log(self, points: Sequence[Point]) -> None:
        self._do("log")
        self.points += points
        self.batches.append(len(points))

    def evaluation(self, step: int, rows: Sequence[Any]) -> None:
        self._do(f"evaluation after {step}: {len(rows)}")

    def model(self, folder: Path) -> None:
        self._do(f"model {folder.name}")

    def finish(self, ending: str) -> str | None:
        self.ending = ending
        self._do("finish")
        return "probe: finished"

    def let_go(self) -> None:
        self._do("let_go")

    @property
    def steps(self) -> list[int]:
        return [point.step for point in self.points]


class Run:
    """Stages whose rows are written as training does."""

    def __init__(self, folder: Path, probe: Probe, steps: Sequence[int] = (5,), finished: int = 0):
        stages = [(folder / f"s{number}", count, number < finished) for number, count in enumerate(steps)]
        self.lines: list[str] = []
        for path, count, done in stages:
            path.mkdir(parents=True, exist_ok=True)
            if done and not (path / "metrics.jsonl").exists():
                self.write(path, range(1, count + 1))
        self.folders, self.probe = [path for path, _, _ in stages], probe
        self.trackers = Trackers(placed(stages), [probe], self.lines.append)

    @staticmethod
    def write(path: Path, steps: Sequence[int]) -> None:
        with (path / "metrics.jsonl").open("a") as file:
            for step in steps:
                file.write(json.dumps(row(step)) + "\n")

    def train(self, stage: int, steps: Sequence[int]) -> float:
        """Write the rows, tell the trackers, and return the longest that this took for a row, in seconds."""
        told, longest = self.trackers.stage(self.folders[stage].name, steps[0] - 1), 0.0
        for step in steps:
            self.write(self.folders[stage], [step])
            began = time.perf_counter()
            told.write(row(step))
            longest = max(longest, time.perf_counter() - began)
        told.close()
        return longest


@pytest.fixture
def hang() -> Iterator[Callable[[], object]]:
    """Hangs until the test is over."""
    over = threading.Event()
    yield over.wait
    over.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probe, "patience", 0.3)


def test_rows_of_all_stages_come_once_and_in_order_then_the_results(tmp_path: Path) -> None:
    probe = Probe()
    run = Run(tmp_path, probe, steps=(3, 2))
    run.train(0, range(1, 4))
    run.train(1, range(1, 3))
    (tmp_path / "perplexity.json").write_text(json.dumps([{"label": "YaRN", "window": 64, "perplexity": 2.0}]))
    run.trackers.evaluation(tmp_path / "perplexity.json")
    run.trackers.model(tmp_path / "model")
    run.trackers.close(COMPLETE)
    assert probe.steps == [1, 2, 3, 4, 5]
    assert probe.points[-1].values["train/tokens"] == 8 * 3 + 8 * 2
    assert probe.calls[-3:] == ["evaluation after 5: 1", "model model", "finish"]
    assert (probe.ending, run.lines) == (COMPLETE, ["probe: opened", "probe: finished"])
    assert probe.thread is not threading.main_thread()
    assert not probe.thread.is_alive()


def test_results_come_after_rows_that_were_written_while_others_were_sent(tmp_path: Path) -> None:
    (tmp_path / "perplexity.json").write_text(json.dumps([{"label": "YaRN", "window": 64, "perplexity": 2.0}]))
    handed = threading.Event()

    def more() -> None:
        if not handed.is_set():
            run.write(run.folders[0], range(2, 5))
            run.trackers.evaluation(tmp_path / "perplexity.json")
            handed.set()

    probe = Probe(log=more)
    run = Run(tmp_path, probe, steps=(4,))
    run.train(0, [1])
    assert handed.wait(ENOUGH)
    run.trackers.close(COMPLETE)
    assert probe.steps == [1, 2, 3, 4]
    assert probe.calls[-3:] == ["log", "evaluation after 4: 1", "finish"]


def test_a_tracker_goes_on_after_what_it_has_and_gets_what_it_lacks(tmp_path: Path) -> None:
    probe = Probe(first=3)
    run = Run(tmp_path, probe, steps=(4, 6), finished=1)
    run.write(run.folders[1], range(1, 3))
    run.train(1, range(3, 7))
    run.trackers.close(STOPPED)
    assert probe.steps == list(range(3, 11))
    assert probe.resumed == 6
    assert probe.ending == STOPPED


def test_rows_of_a_stage_are_not_read_before_its_work_to_be_done_again_is_cut_off(tmp_path: Path) -> None:
    probe = Probe()
    (tmp_path / "s0").mkdir()
    Run.write(tmp_path / "s0", range(1, 4))
    run = Run(tmp_path, probe)
    time.sleep(0.2)
    assert probe.steps == []
    (tmp_path / "s0" / "metrics.jsonl").write_text(json.dumps(row(1)) + "\n")
    run.train(0, range(2, 6))
    run.trackers.close(COMPLETE)
    assert probe.steps == [1, 2, 3, 4, 5]


def test_training_does_not_wait_for_a_slow_tracker_and_the_next_start_sends_the_rest(
    tmp_path: Path, impatient: None
) -> None:
    slow = Probe(log=lambda: time.sleep(10))
    run = Run(tmp_path, slow)
    assert run.train(0, range(1, 6)) < 1.0
    began = time.monotonic()
    run.trackers.close(COMPLETE)
    assert time.monotonic() - began < 5.0
    assert run.lines[1:] == [
        "probe: not waited for any longer, after 0 s; it lacks the last 5 steps, which the next start sends"
    ]
    assert slow.calls[-1] == "let_go"
    again = Probe(first=len(slow.steps) + 1)
    run = Run(tmp_path, again, finished=1)
    run.trackers.model(tmp_path)
    run.trackers.close(COMPLETE)
    assert again.steps == [1, 2, 3, 4, 5]


def test_a_tracker_that_is_behind_gets_many_steps_at_once(tmp_path: Path) -> None:
    held = threading.Event()
    probe = Probe(open=held.wait)
    run = Run(tmp_path, probe, steps=(250,))
    run.train(0, range(1, 251))
    held.set()
    run.trackers.close(COMPLETE)
    assert probe.steps == list(range(1, 251))
    assert max(probe.batches) == background.BATCH


@pytest.mark.parametrize("call", ["open", "log", "finish"])
@pytest.mark.parametrize("ending", [COMPLETE, FAILED])
def test_one_that_hangs_is_let_go(
    tmp_path: Path, impatient: None, hang: Callable[[], object], call: str, ending: str
) -> None:
    probe = Probe(**{call: hang})
    run = Run(tmp_path, probe)
    run.train(0, range(1, 6))
    began = time.monotonic()
    run.trackers.close(ending)
    assert 0.3 <= time.monotonic() - began < 5.0
    assert "not waited for any longer" in run.lines[-1]
    assert probe.calls[-1] == "let_go"
    assert ("it has all" in run.lines[-1]) == (call == "finish")


def test_one_that_makes_progress_is_waited_for(tmp_path: Path, impatient: None) -> None:
    probe = Probe(log=lambda: time.sleep(0.2), finish=lambda: time.sleep(0.2), open=lambda: time.sleep(0.2))
    run = Run(tmp_path, probe)
    run.train(0, range(1, 6))
    run.trackers.close(COMPLETE)
    assert (probe.steps, run.lines[-1]) == ([1, 2, 3, 4, 5], "probe: finished")


def test_but_not_for_ever(tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "LONGEST", 0.5)
    monkeypatch.setattr(background, "BATCH", 1)
    probe = Probe(log=lambda: time.sleep(0.2))
    run = Run(tmp_path, probe, steps=(100,))
    run.train(0, range(1, 101))
    began = time.monotonic()
    run.trackers.close(COMPLETE)
    assert time.monotonic() - began < 5.0
    assert "it lacks the last" in run.lines[-1]


@pytest.mark.parametrize("error", [RuntimeError("broken\npipe"), SystemExit(3), OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("call", ["open", "log", "finish"])
def test_one_that_raises_is_off_with_one_line(tmp_path: Path, error: BaseException, call: str) -> None:
    def fail() -> None:
        raise error

    probe = Probe(**{call: fail})
    run = Run(tmp_path, probe)
    run.train(0, range(1, 6))
    run.trackers.close(COMPLETE)
    told = " ".join(f"{type(error).__name__}: {error}".split())
    assert run.lines[call != "open" :] == [f"probe: off from here on ({told}); metrics.jsonl has everything"]
    assert probe.calls.count("let_go") == 1


def test_an_interrupt_while_waiting_leaves_at_once(tmp_path: Path, hang: Callable[[], object]) -> None:
    class Interrupted(KeyboardInterrupt): ...

    probe = Probe(finish=hang)
    run = Run(tmp_path, probe)
    (one,) = run.trackers._all
    join = one._thread.join
    one._thread.join = lambda timeout=None: (_ for _ in ()).throw(Interrupted())  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        run.trackers.close(COMPLETE)
    one._thread.join = join  # type: ignore[method-assign]
    assert "not waited for any longer" in run.lines[-1]


def test_values_are_finite_numbers_and_sources_have_a_name_each() -> None:
    stage = placed([(Path("a"), 4, True), (Path("b"), 4, False)])[1]
    skipped = point(row(2, loss=None, grad_norm=None, mfu=None, epoch={"books v1.0": 0.5, "web": 1.5}), stage, 100)
    assert skipped.step == 6
    assert {"train/loss", "train/grad_norm", "performance/mfu"} & skipped.values.keys() == set()
    assert skipped.values["train/epoch/books v1_0"] == 0.5
    assert (skipped.values["train/step"], skipped.values["train/stage_step"]) == (6, 2)
    assert (skipped.values["train/tokens"], skipped.values["performance/peak_memory_gib"]) == (116, 1.0)
    fast = row(3, mfu=0.4, seconds=2.0, tokens_per_second=9.0)
    timed, untimed = (point({**fast, "untimed": why}, stage).values for why in (None, "save"))
    assert timed.keys() - untimed.keys() == {"performance/tokens_per_second", "performance/mfu"}
    assert untimed["performance/step_seconds"] == 2.0
    rows = [{"label": "PI, s=2", "window": 64, "perplexity": 2.5}, {"label": "x", "window": 8, "perplexity": None}]
    rows.append({**rows[0], "mode": "window_mean", "perplexity": 3.0})
    assert scores(rows) == {"eval/perplexity/PI_ s=2@64": 2.5}


def test_half_a_line_is_read_when_the_rest_is_there(tmp_path: Path) -> None:
    rows, path = Rows(placed([(tmp_path, 4, True)])), tmp_path / "metrics.jsonl"
    line = json.dumps(row(2)) + "\n"
    path.write_text(json.dumps(row(1)) + "\n" + line[:20])
    assert [point.step for point in rows.new()] == [1]
    with path.open("a") as file:
        file.write(line[20:])
    assert [point.step for point in rows.new()] == [2]
    assert list(rows.new()) == []
    rows.close()


def test_the_record_keeps_what_others_wrote_and_a_damaged_one_is_empty(tmp_path: Path) -> None:
    record = Record(tmp_path / "tracking.json")
    record.write("a", id="x", sent=1)
    record.write("b", sent=2)
    record.write("a", sent=3)
    assert (record.read("a"), record.read("b"), record.read("c")) == ({"id": "x", "sent": 3}, {"sent": 2}, {})
    for text in ("{", "[1]", '{"a": 1}', "\0"):
        record.path.write_text(text)
        assert record.read("a") == {}
