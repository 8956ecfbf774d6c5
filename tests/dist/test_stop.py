"""Requests to stop: noted while steps are taken, at once elsewhere; what the process then exits with."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from yarn_train.dist import environment, stop
from yarn_train.dist.stop import Requests, StopRequested, leave_error_code, stop_code, worker_exit_code


@pytest.fixture
def requests() -> Iterator[Requests]:
    before = {number: signal.getsignal(number) for number in stop.SIGNALS}
    watched = Requests()
    watched.watch()
    yield watched
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the interpreter handles it before the next line of Python


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, stop.STOPPED), (signal.SIGUSR1, stop.STOPPED)]
)
def test_outside_of_steps_a_request_interrupts_at_once(requests, number, code):
    with pytest.raises(StopRequested) as stopped:
        send(number)
    assert stopped.value.exit_code == code
    assert str(stopped.value) == f"stopped by {signal.Signals(number).name}"


def test_signals_that_come_together_are_one_request_outside_of_steps_too(requests, monkeypatch):
    with pytest.raises(StopRequested, match="SIGUSR1"):
        send(signal.SIGUSR1)
    send(signal.SIGTERM)  # a scheduler's second word must not cut short what the first one began
    monkeypatch.setattr(stop, "TOGETHER", 0.0)
    with pytest.raises(StopRequested, match="SIGTERM"):
        send(signal.SIGTERM)
    stop.ignore_from_now_on()
    send(signal.SIGTERM)


def steps(requests: Requests, *events: Callable[[], object]) -> None:
    """What happens while steps are taken."""
    with requests.deferred():
        for event in events:
            event()


def test_while_steps_are_taken_a_request_is_noted_and_a_later_one_interrupts(requests, monkeypatch, capfd):
    noted = []
    together = [lambda: send(signal.SIGUSR1), lambda: send(signal.SIGTERM), lambda: noted.append(requests.noted)]
    later = [lambda: monkeypatch.setattr(stop, "TOGETHER", 0.0), lambda: send(signal.SIGTERM)]
    with pytest.raises(StopRequested, match="SIGTERM"):
        steps(requests, *together, *later, lambda: noted.append("went on"))
    assert noted == [signal.SIGUSR1]
    assert capfd.readouterr().err == "SIGUSR1: saving after this step; a second signal stops at once\n"
    with pytest.raises(StopRequested):
        send(signal.SIGUSR1)  # no longer deferred


def test_a_request_that_nobody_asked_for_in_time_is_not_lost(requests):
    finished: list[bool] = []
    with pytest.raises(StopRequested, match="SIGTERM"):
        steps(requests, lambda: send(signal.SIGTERM), lambda: finished.append(True))
    assert finished == [True]


def test_an_error_while_steps_are_taken_stays_that_error(requests):
    with pytest.raises(ZeroDivisionError):
        steps(requests, lambda: send(signal.SIGTERM), lambda: 1 / 0)


def test_a_background_job_ignores_ctrl_c_and_still_hears_the_scheduler(requests):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # torchrun.sh starts torchrun like this
    requests.watch()
    send(signal.SIGINT)
    with pytest.raises(StopRequested):
        send(signal.SIGUSR1)


def test_without_a_launcher_of_ours_the_worker_says_the_code_itself(monkeypatch):
    monkeypatch.delenv("YARN_TRAIN_EXIT_FILE", raising=False)
    assert worker_exit_code(75) == 75


def test_a_launcher_of_ours_reads_the_code_from_the_file(monkeypatch, tmp_path, requests):
    file = tmp_path / "exit"
    monkeypatch.setenv("YARN_TRAIN_EXIT_FILE", str(file))
    assert stop_code(file) == 0
    assert worker_exit_code(75) == 0
    assert stop_code(file) == 75
    requests.watch()  # the workers of a restart
    assert stop_code(file) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_request_from_before_the_process_could_hear_is_heard(requests, monkeypatch, tmp_path):
    monkeypatch.setenv("YARN_TRAIN_STOP_FILE", str(tmp_path / "stop"))
    requests.watch()
    (tmp_path / "stop").touch()
    with pytest.raises(StopRequested):
        requests.watch()


@pytest.fixture
def alarms(requests) -> Iterator[list[int]]:
    """Alarms that reached whoever had them before, such as the test's own time limit."""
    before, got = signal.getsignal(signal.SIGALRM), []
    signal.signal(signal.SIGALRM, lambda number, frame: got.append(number))
    yield got
    signal.signal(signal.SIGALRM, before)


def hours(seconds: float) -> float:
    return seconds / 3600


def test_outside_of_steps_the_time_limit_interrupts(requests, alarms):
    def wait() -> None:
        send(signal.SIGALRM)  # somebody else's
        assert alarms == [signal.SIGALRM]
        time.sleep(5)

    told = f"^stopped by run.max_hours={hours(0.2)}$"
    with pytest.raises(StopRequested, match=told) as stopped, requests.limited(hours(0.2)):
        wait()
    assert (stopped.value.exit_code, stopped.value.signal) == (stop.STOPPED, None)
    send(signal.SIGALRM)
    assert len(alarms) == 2


def test_the_limit_counts_from_the_jobs_beginning_and_ends_with_it(requests, alarms):
    requests.job_begins()
    time.sleep(0.2)
    with pytest.raises(StopRequested), requests.limited(hours(0.1)):
        time.sleep(0.05)
    requests.job_begins()  # the next one of a multirun
    with requests.limited(hours(0.15)):
        time.sleep(0.01)
    time.sleep(0.2)
    assert alarms == []


def test_while_steps_are_taken_time_is_up_when_no_further_step_and_save_fit(requests, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(stop.time, "monotonic", lambda: now)
    monkeypatch.setattr(stop, "_alarm", lambda when, call: contextlib.nullcontext())
    with requests.limited(hours(100)), requests.deferred():
        for seconds, save, asked in [
            (10, 0, 0),
            (30, 0, 0),
            (10, 0, 0),
            (10, 10, 0),
            (0, 10.1, 1),
            (0, 0, 0),
            (11, 0, 1),
        ]:
            now += seconds  # 60 are over at the last but two: 30 for a step and 10 for a save fit, and no more
            assert requests.after_step(save) == (stop.TIME_UP if asked else 0), (seconds, save)
        requests.noted = signal.SIGTERM
        assert requests.after_step() == signal.SIGTERM > stop.TIME_UP
        requests.noted = 0


def test_a_limit_that_passes_while_steps_are_taken_is_heard_after_them(requests):
    finished: list[bool] = []
    with pytest.raises(StopRequested, match="max_hours"), requests.limited(hours(0.1)):
        steps(requests, lambda: time.sleep(0.2), lambda: finished.append(True))
    assert finished == [True]


def test_time_that_is_up_while_a_stop_is_on_its_way_says_nothing_more(requests):
    def leave() -> None:
        try:
            with requests.deferred():
                raise requests.answer(requests.after_step(3600.0), 17)
        finally:
            time.sleep(0.3)  # the alarm comes here

    with pytest.raises(StopRequested, match="after step 17, which is saved"), requests.limited(hours(0.1)):
        leave()


@pytest.mark.parametrize(("limit", "error"), [(20, StopRequested), (2000, RuntimeError)])
def test_ranks_that_left_for_the_limit_are_not_lost(requests, limit, error):
    with pytest.raises(error), requests.limited(hours(limit)):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(ZeroDivisionError), requests.limited(hours(limit)):
        raise ZeroDivisionError


def test_a_launcher_that_reads_at_any_time_sees_the_whole_word_or_nothing(tmp_path: Path, monkeypatch) -> None:
    """Words as long as this take several writes; the code is short, but a file is empty once it is opened to be written.
    """
    file, words = tmp_path / "exit", [letter * 100_000 for letter in "ab"]
    monkeypatch.setattr(environment, "exit_file", lambda: file)
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            for name in ("exit", "exit.error", "exit.told"):
                with contextlib.suppress(FileNotFoundError):
                    seen.add((name, (tmp_path / name).read_text()))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        leave_error_code(2, words[number % 2])
        worker_exit_code(stop.STOPPED)
    done.set()
    reader.join()
    told = {("exit.told", f"error: {word}\n") for word in words}
    assert seen <= {("exit", f"{stop.STOPPED}\n"), ("exit.error", "2\n"), *told}
    assert {name for name, _ in seen} == {"exit", "exit.error", "exit.told"}, "all were read"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["exit", "exit.error", "exit.told"], "nothing else is left"
