"""The starter of each machine, and a rank's way to the others, with a real meeting point on this machine."""

from __future__ import annotations

import argparse
import socket
import sys
import threading
from typing import Any

import pytest

from yarn_train.doctor.nodes import entry, rank
from yarn_train.doctor.nodes.meeting import Meeting
from yarn_train.errors import ConfigError, RanksLost


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


def options(port: int, **changes: object) -> argparse.Namespace:
    given = {"nodes": 2, "hosts": None, "rendezvous": f"127.0.0.1:{port}", "wait": 30.0, "rounds": 8, "json": None}
    return argparse.Namespace(**{**given, **changes})


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Starters in threads, the one named "first" where the meeting point is; what ranks each would have started."""
    seen: list[tuple[int, list[int]]] = []

    def ranks(machines: list[dict[str, Any]], number: int, *_: object) -> int:
        seen.append((number, [machine["ranks"] for machine in machines]))
        return 0

    monkeypatch.setattr(entry, "is_here", lambda _: threading.current_thread().name == "first")
    monkeypatch.setattr(entry, "_ranks", ranks)
    return seen


def in_thread(name: str, given: argparse.Namespace, ends: dict[str, object]) -> threading.Thread:
    def body() -> None:
        try:
            ends[name] = entry.start(given)
        except RanksLost as error:
            ends[name] = str(error)

    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    return thread


def test_one_machine_too_many_is_told_so(started):
    port, ends = free_port(), dict[str, object]()
    running = [in_thread(name, options(port), ends) for name in ("first", "second", "third")]
    for thread in running:
        thread.join(100)
    assert ends["first"] == 0
    others = sorted(str(ends[name]) for name in ("second", "third"))
    assert others[0] == "0"
    assert "2 machines were expected and are here; this is one more" in others[1]
    assert sorted(started) == [(0, [1, 1]), (1, [1, 1])]


def test_a_machine_that_was_counted_and_died_leaves_nobody_with_its_place(started):
    port, ends = free_port(), dict[str, object]()
    given = options(port, nodes=3, wait=3.0)
    first = in_thread("first", given, ends)
    Meeting("127.0.0.1", port, False, 30.0).count("doctor/arrived")  # and never says who it is
    last = in_thread("last", given, ends)
    for thread in (first, last):
        thread.join(100)
    assert ends == {"first": 0, "last": 0}
    assert sorted(started) == [(0, [1, 1]), (1, [1, 1])]


def test_a_report_that_cannot_be_written_is_refused_where_it_would_be(monkeypatch):
    monkeypatch.setattr(entry, "is_here", lambda _: True)
    with pytest.raises(ConfigError, match="--json"):
        entry.start(options(free_port(), json="/nowhere/report.json"))


def test_a_rank_that_was_killed_is_a_broken_one(tmp_path, monkeypatch):
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    assert entry._ranks([{"host": "a", "ranks": 1}], 0, ("a", 1), False, 60.0) == 1


def test_a_leader_that_has_no_time_for_the_clock_costs_no_rank(monkeypatch):
    class Silent:
        def put(self, key: str, value: object) -> None:
            """Heard by nobody."""

        def get(self, key: str, wait: float) -> object:
            raise RanksLost(key)

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    lone = rank.Diagnosis(options(1), ("a", 1), Silent())  # type: ignore[arg-type]
    lone.places = {0: 0, 1: 1}
    assert lone.clock() is None


def test_the_last_resort_grows_with_what_is_asked():
    assert rank.longest(2, 8, 30) == rank.longest(2, 1, 30) + rank.TOGETHER["cuda"] + 2 * rank.LATER
    assert rank.longest(64, 20, 30) > 20 * rank.TOGETHER["cuda"]
    assert rank.longest(2, 8, 600) > 600
