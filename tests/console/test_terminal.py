"""One place decides what a stream can show; a line shows what fits."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Iterator

import pytest

from yarn_train.console import terminal
from yarn_train.console.lines import Line, duration, fitted, say
from yarn_train.console.terminal import Style

VARIABLES = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "CI", "TERM")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def screen() -> Iterator[io.TextIOWrapper]:
    """A real terminal to write to."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        yield stream
    os.close(master)


@pytest.mark.parametrize(
    ("given", "colours", "rewrites"),
    [
        ({}, True, True),
        ({"NO_COLOR": "1"}, False, True),
        ({"NO_COLOR": ""}, True, True),  # no-color.org: an empty value asks for nothing
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, True),
        ({"TERM": "dumb"}, False, False),
        ({"CI": "1"}, False, False),
        ({"CI": "true", "FORCE_COLOR": "1"}, True, False),
        ({"CI": "false"}, True, True),
    ],
)
def test_on_a_terminal(
    given: dict[str, str],
    colours: bool,
    rewrites: bool,
    screen: io.TextIOWrapper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert (terminal.coloured(screen), terminal.rewrites(screen)) == (colours, rewrites)


@pytest.mark.parametrize(
    ("given", "colours"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"CLICOLOR_FORCE": "1"}, True), ({"CLICOLOR_FORCE": "0"}, False)],
)
def test_in_a_file(given: dict[str, str], colours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    style = Style(io.StringIO())
    assert (style.colours, style.drawn) == (colours, False)
    assert style("x", "bold") == ("\x1b[1mx\x1b[0m" if colours else "x")


PARTS = [(1, "01_s16"), (0, "step 3/40"), (0, "loss 1.9000"), (5, "lr 2.0e-05"), (2, "45 s left"), (7, "0.8 GiB")]


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (200, "01_s16  step 3/40  loss 1.9000  lr 2.0e-05  45 s left  0.8 GiB"),
        (53, "01_s16  step 3/40  loss 1.9000  lr 2.0e-05  45 s left"),
        (52, "01_s16  step 3/40  loss 1.9000  45 s left"),
        (40, "01_s16  step 3/40  loss 1.9000"),
        (25, "step 3/40  loss 1.9000"),
        (6, "loss 1"),
        (0, ""),
    ],
)
def test_what_matters_least_is_left_out_first(columns: int, shown: str) -> None:
    assert fitted(PARTS, columns) == shown


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (3599.9, "1 h 00 min"),
        (86399, "1 d 00 h"),
        (273600, "3 d 04 h"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    line = Line(every=60.0)
    for second, always in ((0, False), (30, False), (59, True), (61, False), (120, False)):
        now = 1000.0 + second
        line.show([(0, f"at {second}")], always)
    say("an event")
    line.close()
    told = capsys.readouterr()
    assert told.out.splitlines() == ["at 0", "at 59", "at 120", "an event"]
    assert told.err == ""


def test_a_rank_that_does_not_print_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    line = Line(every=0.0, shown=False)
    line.show([(0, "text")], always=True)
    line.close()
    assert capsys.readouterr() == ("", "")
