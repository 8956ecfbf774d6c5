"""The real thing: a run on a terminal, in a log, and under CI."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT, child_env

from yarn_train.metrics.console import ConsoleSink
from yarn_train.metrics.pace import Pace, of_file, saves_between

COLUMNS = 90
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def on_a_terminal(words: list[str], **variables: str) -> str:
    """What train.py writes to a terminal of COLUMNS columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, COLUMNS, 0, 0))
    env = {**child_env(), "TERM": "xterm", **variables}
    for name in {"CI", "NO_COLOR", "FORCE_COLOR"} - set(variables):
        env.pop(name, None)
    command = [sys.executable, str(ROOT / "train.py"), *words]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    found = bytearray()
    while True:
        try:
            found += os.read(master, 65536)
        except OSError:  # the other side is closed
            break
    os.close(master)
    text = found.decode()
    assert process.wait(60) == 0, text
    return text


def test_on_a_terminal_one_line_is_rewritten_and_events_stand_above_it(tiny_args: list[str], tmp_path: Path) -> None:
    text = on_a_terminal([*tiny_args, f"run.dir={tmp_path / 'run'}", "run.name=live"])
    assert COLOUR.search(text)
    lines = [COLOUR.sub("", line).rstrip("\r") for line in text.split("\n")]
    head = next(number for number, line in enumerate(lines) if line.startswith("── yarn-train live, stage 01_s4 ─"))
    end = next(number for number, line in enumerate(lines) if line.startswith("── run complete; the model is"))
    assert lines.index(next(line for line in lines if line.startswith("starting: stage 01_s4"))) < head < end
    drawn = [part.rstrip() for line in lines[head:end] for part in line.split("\r") if part.startswith("01_s4  step ")]
    assert drawn[-1].startswith("01_s4  step 8/8  loss ")
    assert len(set(drawn)) >= 2  # tiny steps are shorter than the time between two drawings
    assert all(len(part) < COLUMNS for part in drawn)
    assert not any("then" in part for part in drawn)
    # an event never shares its line with what was drawn before
    events = [line.split("\r")[-1] for line in lines if "checkpoint step_" in line]
    assert len(events) == 4
    assert all(event.startswith("checkpoint step_0000000") for event in events)


def test_under_ci_a_terminal_is_a_log(tiny_args: list[str], tmp_path: Path) -> None:
    text = on_a_terminal([*tiny_args, f"run.dir={tmp_path / 'run'}", "run.name=live"], CI="true")
    assert "\x1b" not in text
    assert "─" not in text
    assert "\r" not in text.replace("\r\n", "")
    lines = text.replace("\r\n", "\n").splitlines()
    assert "yarn-train live, stage 01_s4" in lines
    assert [line.split()[2] for line in lines if line.startswith("01_s4  step ")] == [f"{n}/8" for n in range(1, 9)]


def test_in_a_log_nothing_is_said_twice(
    train: Callable[..., Path], tiny_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [arg for arg in tiny_args if not arg.startswith(("rope.factor", "train.steps"))]
    stages = ["s4={rope: {factor: 4}, train: {steps: 3}}", "s8={rope: {factor: 8}, train: {steps: 2}}"]
    train(tmp_path / "run", *args, "schedule.warmup_steps=1", *(f"++curriculum.stages.{stage}" for stage in stages))
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith("starting")] == ["starting"] * 2
    for label, times in {"run folder": 1, "model": 1, "attention": 1, "optimizer": 1, "rope": 2, "start": 2}.items():
        assert sum(line.startswith(f"{label}: ") for line in lines) == times, label
    order = [
        "starting: stage 01_s4",
        "yarn-train",
        "run folder: ",
        "01_s4  step 1/3",
        "exported",
        "starting: stage 02_s8",
    ]
    order += ["01_s4: 3 steps in", "02_s8: 2 steps in"]
    places = [next(n for n, line in enumerate(lines) if line.startswith(begin)) for begin in order]
    assert places == sorted(places)
    assert re.search(r"^time: about \d+ s for 2 steps of \d+\.\d\d s, as in 01_s4$", out, re.MULTILINE)
    assert f"run complete; the model is {tmp_path}/run/02_s8/model" in lines
    assert any(line.startswith("01_s4  step 2/3") and line.endswith("left  then 02_s8") for line in lines)


def row(step: int, seconds: float, save_seconds: float = 0.0) -> dict[str, object]:
    numbers = {"loss": 1.0, "lr": 1.0, "grad_norm": None, "tokens_per_second": 1.0, "mfu": 0.415}
    more = {"epoch": 0.0, "skipped": None, "peak_memory_bytes": 3 * 2**30, "untimed": "save" if save_seconds else None}
    return {"step": step, "seconds": seconds, "save_seconds": save_seconds, **numbers, **more}


def test_the_time_left_forgets_untimed_steps_and_a_slow_one_and_counts_saves() -> None:
    pace = Pace()
    assert pace.left(5, 0) is None
    pace.add({**row(1, 100.0), "untimed": "first step"})
    pace.add({**row(2, 50.0), "untimed": "compilation"})
    assert pace.left(5, 0) == 5 * 75.0  # all that is known
    for seconds in (2.0, 2.0, 60.0, 2.0):
        pace.add(row(3, seconds))
    assert pace.left(5, 3) == 10.0
    for _ in range(9):
        pace.add(row(4, 30.0, save_seconds=4.0))
    assert pace.left(5, 3) == 22.0


def test_where_every_step_is_beside_a_save_all_count() -> None:
    pace = Pace()
    for seconds in (4.0, 2.0, 3.0):
        pace.add(row(1, seconds, save_seconds=1.0))
    assert pace.left(5, 2) == 17.0


@pytest.mark.parametrize(
    ("step", "last", "every", "saves"), [(0, 10, 5, 1), (5, 10, 5, 0), (0, 11, 5, 2), (4, 20, 5, 3), (0, 3, 50, 0)]
)
def test_saves_that_are_still_to_come(step: int, last: int, every: int, saves: int) -> None:
    assert saves_between(step, last, every) == len([s for s in range(step + 1, last) if s % every == 0]) == saves


def test_a_line_has_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    console = ConsoleSink("01_s4", 0, 3, 50, then="the evaluation")
    console.write({**row(1, 30.0), "untimed": "first step"})
    console.write({**row(2, 40.0), "mfu": None})
    console.write(row(3, 40.0))
    console.close()
    told = "lr 1.00e+00  grad none"
    assert capsys.readouterr().out.splitlines() == [
        f"01_s4  step 1/3  loss 1.0000  {told}  3.0 GiB  1 min 00 s left  then the evaluation",
        f"01_s4  step 2/3  loss 1.0000  {told}  1 tok/s  3.0 GiB  40 s left  then the evaluation",
        f"01_s4  step 3/3  loss 1.0000  {told}  1 tok/s  MFU 41.5%  3.0 GiB  0 s left  then the evaluation",
    ]


def test_the_pace_of_a_file_survives_what_a_dying_run_leaves(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert of_file(file) is None
    first = '{"seconds": 9.0, "untimed": "first step"}\n'
    file.write_text(first + '{"seconds": 2.0}\n{"seconds": 2.5}\n[3]\n{"seconds": 4.0}\n{"sec')
    assert of_file(file) == 2.5
