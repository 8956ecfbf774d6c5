"""The runner with checks that hang, compute for ever, crash and raise: what is said is true on a busy machine too."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from yarn_train.doctor import run
from yarn_train.doctor.activity import Activity, activity
from yarn_train.doctor.child import Child
from yarn_train.doctor.finding import FAIL, OK, WARN, Finding
from yarn_train.doctor.run import Check, run_checks

LONG = 200.0  # seconds: nothing here depends on how fast this machine is


@pytest.fixture
def sick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children find the misbehaving checks: they get this process's path. Their server has imported torch."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    warm = Child(run.PRELOADED)
    warm.call("sick:fine", LONG)
    warm.kill()


@pytest.mark.usefixtures("sick")
def test_a_check_that_hangs_computes_crashes_or_raises_never_stops_the_others(tmp_path):
    note = tmp_path / "pids"
    checks = [
        Check("first", "sick:fine", LONG, 0, {"name": "first"}),
        Check("hangs", "sick:hangs", 2, 0, {"note": str(note)}),
        Check("computes", "sick:computes", 2, 0),
        Check("crashes", "sick:crashes", LONG, 0),
        Check("raises", "sick:raises", LONG, 0),
        Check("later", "sick:fine", LONG, 1, {"name": "later"}),
    ]
    shown: list[Finding] = []
    found = run_checks(checks, LONG + 50, shown.append)
    assert found == shown
    assert [(f.status, f.what) for f in found] == [
        (OK, "first"), (FAIL, "hangs"), (WARN, "computes"), (FAIL, "crashes"), (FAIL, "raises"), (OK, "later"),
    ]  # fmt: skip
    said = "the check hangs: no answer within 2 s; it waits for something that does not come (state S)"
    assert found[1].figure == said
    assert found[2].figure.startswith("still computing after 2 s; load ")
    assert "SIGSEGV" in found[3].figure
    assert found[4].figure == "the check crashed: RuntimeError: no such device"
    for pid in note.read_text().split():  # what the check had started is gone too
        for _ in range(50):
            if not _alive(int(pid)):
                break
            time.sleep(0.1)
        assert not _alive(int(pid))


def _alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.usefixtures("sick")
def test_the_budget_holds_and_what_it_cuts_short_is_no_failure(tmp_path):
    checks = [Check(f"hangs{n}", "sick:hangs", 100, n, {"note": str(tmp_path / "pids")}) for n in range(2)]
    began = time.monotonic()
    found = run_checks(checks, 2.0, words=["--experiment", "smoke"])
    assert time.monotonic() - began < 12
    assert [f.status for f in found] == [WARN, WARN]
    assert found[0].figure == "not finished: 2 s were left of 2"
    assert found[1].figure == "not run: no time left"
    assert found[1].fix.startswith("python -m yarn_train.doctor --only hangs1 --experiment smoke ")


def test_a_child_that_does_not_start_is_told_from_one_that_still_imports(monkeypatch):
    class Stuck:
        def __init__(self, _: object) -> None:
            time.sleep(30)

        def kill(self) -> None:
            """Nothing was started."""

        def call(self, *_: object) -> list[object]:
            return []  # a thread that wakes after its test

    monkeypatch.setattr(run, "Child", Stuck)
    check = Check("cores", "sick:fine", 5, 0)
    (stuck,) = run_checks([check], 0.5)
    assert (stuck.status, stuck.figure.split(";")[0]) == (FAIL, "no process started within 0 s")
    spinning = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        (slow,) = run_checks([check], 0.5)
    finally:
        spinning.kill()
        spinning.wait()
    assert (slow.status, slow.figure.split(";")[0]) == (WARN, "no process started within 0 s")


def test_processes_are_judged_with_everything_below_them():
    """A shell that sleeps, and what it started computes."""
    words = ["sh", "-c", f"{sys.executable} -S -c 'while True: pass' & echo $!; wait"]
    shell = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True, text=True)
    assert shell.stdout is not None
    below = int(shell.stdout.readline())
    try:
        assert activity(shell.pid).busy
    finally:
        subprocess.run(["kill", "-9", str(below)], check=True)
        shell.wait()
    assert activity(shell.pid) == Activity(False, "")
    assert Activity(False, "DS").text == "it waits for a device or a file system (state D)"
