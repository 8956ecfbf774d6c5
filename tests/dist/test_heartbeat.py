"""Heartbeat files and the lines about ranks that stand still."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import wait_for

from yarn_train.dist import heartbeat as module
from yarn_train.dist import others
from yarn_train.dist.heartbeat import Heartbeat
from yarn_train.dist.streams import Tolerant

HERE = platform.node()


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.02)


def state(folder: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"heartbeat/rank{rank}.json").read_text())
    return found


def test_the_file_says_who_where_and_doing_what_and_stays_with_the_reason_of_the_end(quick, tmp_path):
    beat = Heartbeat()
    first: dict[str, Any] = {}

    def save() -> None:
        beat.at("save", 17)
        wait_for(lambda: (tmp_path / "heartbeat/rank0.json").exists(), 10)
        wait_for(lambda: state(tmp_path)["phase"] == "save", 10)
        first.update(state(tmp_path))
        wait_for(lambda: state(tmp_path)["time"] > first["time"], 10)
        raise ValueError("odd\nand more")

    with pytest.raises(ValueError, match="odd"), beat.watched(tmp_path, 60):
        save()
    last = state(tmp_path)
    assert (first["ended"], last["ended"]) == (None, "ValueError: odd")
    told = {"step": 17, "phase": "save", "host": HERE, "pid": os.getpid(), "rank": 0, "world_size": 1}
    assert told.items() <= last.items()
    assert last["seconds_in_phase"] < 10
    assert abs(last["time"] - time.time()) < 10
    assert [file.name for file in (tmp_path / "heartbeat").iterdir()] == ["rank0.json"]
    with beat.watched(tmp_path, 60):
        pass
    assert state(tmp_path)["ended"] == "done"


def test_files_of_ranks_that_are_no_more_go(quick, tmp_path):
    (tmp_path / "heartbeat").mkdir()
    for name in ("rank0.json", "rank1.json", "rank17.json", "rank_of_mine.json"):
        (tmp_path / "heartbeat" / name).touch()
    with Heartbeat().watched(tmp_path, 60):
        pass
    assert {f.name for f in (tmp_path / "heartbeat").iterdir()} == {"rank0.json", "rank_of_mine.json"}


def stand_still_here(until: Callable[[], object]) -> None:
    wait_for(until, 20)


def test_a_stall_is_told_at_doubling_intervals_with_the_line_it_stands_at_and_its_end_once(quick, tmp_path, capsys):
    beat, said = Heartbeat(), []

    def lines() -> list[str]:
        said.extend(capsys.readouterr().err.splitlines())
        return said

    with beat.watched(tmp_path, 0.2):
        beat.at("forward and backward", 17)
        stand_still_here(lambda: len(lines()) >= 3)
        beat.at("optimizer", 17)
        stand_still_here(lambda: len(lines()) >= 4)
    who = f"[rank 0 on {HERE}] "
    assert all(line.startswith(who) for line in said)
    stalls = [line.removeprefix(who) for line in said[:3]]
    assert all(line.startswith("stalled for ") for line in stalls)
    assert all(" s at step 17 in phase forward and backward; at " in line for line in stalls)
    assert "in wait_for" in stalls[0]  # the innermost line; none of the package is on the way to it
    assert said[3].removeprefix(who).startswith("goes on after ")
    assert said[3].endswith("at step 17 in phase optimizer")


def test_stalls_come_at_doubling_intervals(tmp_path, monkeypatch):
    now, told = [0.0], []
    beat = Heartbeat()
    beat.since = 0.0

    class Clock:
        def wait(self, seconds: float) -> bool:
            now[0] += seconds
            return now[0] > 3000

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "say", lambda text: told.append(int(now[0])))
    monkeypatch.setenv("TORCH_FR_DUMP_TEMP_FILE", "/logs/of_rank_")
    beat._watch_until(Clock(), 300.0, nccl=True)  # type: ignore[arg-type]
    assert told == [300, 300, 600, 1200, 2400]  # once with how to read the flight recorder


def test_neither_a_full_disk_nor_a_closed_stderr_ends_a_run(quick, tmp_path, monkeypatch, capfd):
    (tmp_path / "heartbeat").write_text("no folder")
    monkeypatch.setattr(sys, "stderr", open(os.devnull))  # noqa: SIM115  reading only: every print fails
    beat = Heartbeat()
    with beat.watched(tmp_path, 0.05):
        time.sleep(0.3)
    monkeypatch.undo()
    assert (tmp_path / "heartbeat").read_text() == "no folder"
    assert capfd.readouterr().err == ""  # of threads that died


def test_what_is_printed_may_fail(tmp_path):
    with open("/dev/full", "w") as full:
        out = Tolerant(full)
        print("lost", file=out, flush=True)  # type: ignore[call-overload]
        assert out.name == "/dev/full"
        with pytest.raises(OSError, match="No space"):
            print("raises", file=full, flush=True)
        os.close(os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno()) and os.dup(1))


def rank(folder: Path, number: int, **changed: Any) -> dict[str, Any]:
    """A heartbeat file as rank `number` of 4 leaves it."""
    state = {"time": 1000.0, "step": 17, "phase": "forward", "seconds_in_phase": 300.0, "host": "far", "pid": 7}
    state |= {"rank": number, "world_size": 4, "ended": None, **changed}
    folder.mkdir(exist_ok=True)
    others.file_of(folder, number).write_text(json.dumps(state))
    return state


def look(folder: Path, mine: int = 0) -> list[str]:
    state = others.read(folder, mine)
    assert state is not None
    return others.behind(folder, state)


def test_ranks_that_all_wait_at_one_place_are_told_so(tmp_path):
    for number in range(4):
        rank(tmp_path, number)
    assert look(tmp_path) == ["all 4 ranks are at step 17 in phase forward"]


def test_who_is_behind_is_named(tmp_path):
    for number in range(4):
        rank(tmp_path, number)
    rank(tmp_path, 2, step=16, phase="data", seconds_in_phase=310.4)
    assert look(tmp_path) == ["rank 2 on far (pid 7) is elsewhere than the others: step 16 in phase data for 310 s"]
    assert look(tmp_path, 2) == ["this rank is elsewhere than the others: step 16 in phase data for 310 s"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"ended": "ValueError: odd"},
            "rank 3 on far (pid 7) has ended (ValueError: odd), at step 17 in phase forward",
        ),
        ({"host": HERE, "pid": 2**22 + 1}, "is gone: it was killed, or crashed"),
        ({"host": HERE, "pid": os.getpid()}, None),
        ({}, None),
    ],
)
def test_ranks_that_ended_are_told_from_those_that_live(tmp_path, changed, said):
    for number in range(4):
        rank(tmp_path, number)
    rank(tmp_path, 0, host=HERE, pid=os.getpid())
    rank(tmp_path, 3, **changed)
    (line,) = look(tmp_path)
    assert (said or "all 4 ranks are at") in line
    assert said is None or "rank 3 on" in line


def test_a_rank_that_writes_no_more_and_one_that_never_did_are_named(tmp_path):
    for number in (0, 1, 2):
        rank(tmp_path, number)
    own = others.file_of(tmp_path, 0).stat()
    os.utime(others.file_of(tmp_path, 2), (own.st_atime, own.st_mtime - 290))
    assert look(tmp_path) == [
        f"rank 3 has left no heartbeat in {tmp_path}",
        "rank 2 on far (pid 7) has been silent for 290 s: its process is stopped, or its machine gone, "
        "at step 17 in phase forward",
    ]


def test_many_of_them_are_cut_short(tmp_path):
    state = rank(tmp_path, 0, world_size=100)
    lines = others.behind(tmp_path, state)
    assert len(lines) == others.SHOWN + 1
    assert lines[-1] == f"and {99 - others.SHOWN} more"


def test_a_file_that_is_no_heartbeat_is_none(tmp_path):
    for text in ("", "[]", "{}", '{"time": 1', "null"):
        others.file_of(tmp_path, 1).write_text(text)
        assert others.read(tmp_path, 1) is None


def first_failure(folder: Path) -> str:
    state = others.read(folder, 0)
    assert state is not None
    return others.first_failure(folder, state, began=990.0)


def test_the_rank_that_failed_by_itself_is_the_first_and_not_those_that_lost_it(tmp_path):
    rank(tmp_path, 0, host=HERE, pid=os.getpid())
    rank(tmp_path, 1, ended="RanksLost: gone", time=999.0)
    rank(tmp_path, 2, ended="ValueError: odd", time=1001.0)
    rank(tmp_path, 3, ended="OSError: later", time=1002.0)
    assert first_failure(tmp_path) == "rank 2 on far (pid 7) failed first: ValueError: odd"
    rank(tmp_path, 2, ended="ValueError: odd", time=900.0)  # of an earlier start
    rank(tmp_path, 3, ended="done")
    assert first_failure(tmp_path) == ""


def test_a_killed_rank_of_this_machine_is_seen_also_before_anybody_collected_it(tmp_path):
    rank(tmp_path, 0, host=HERE, pid=os.getpid())
    with subprocess.Popen(["sleep", "60"]) as process:
        rank(tmp_path, 1, host=HERE, pid=process.pid)
        assert first_failure(tmp_path) == ""
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: first_failure(tmp_path).endswith("is stopped: by SIGSTOP, or a debugger"), 10)
        process.kill()
        wait_for(lambda: "stopped" not in first_failure(tmp_path), 10)
    assert first_failure(tmp_path) == f"rank 1 on {HERE} (pid {process.pid}) is gone: it was killed, or crashed"
