"""How a job of a sweep ended, from its exit code, its folder and what it printed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from yarn_train.sweep.outcome import outcome, useful_seconds, why

PERPLEXITIES = [
    {"label": "base", "window": 512, "perplexity": 90.0, "stage": None},
    {"label": "a", "window": 256, "perplexity": 7.0, "stage": "01_s4"},
    {"label": "a", "window": 512, "perplexity": 8.0, "stage": "01_s4"},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of 20 steps with losses 20 ... 1 and an evaluation."""
    stage = tmp_path / "01_s4"
    stage.mkdir()
    rows = [{"step": step, "loss": 21.0 - step} for step in range(1, 21)]
    (stage / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "run.json").write_text(json.dumps({"exit_reason": "complete"}))
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "perplexity.json").write_text(json.dumps(PERPLEXITIES))
    return tmp_path


def test_a_complete_job_is_compared_by_the_last_stage_at_the_largest_window(run: Path) -> None:
    for wanted in ("auto", "perplexity"):
        found = outcome(run, 0, "", wanted)
        assert (found.status, found.metric, found.objective) == ("complete", "perplexity at 512", 8.0)


def test_the_loss_is_the_mean_of_the_last_tenth(run: Path) -> None:
    found = outcome(run, 0, "", "loss")
    assert (found.status, found.metric, found.objective) == ("complete", "training loss, last tenth", 1.5)
    (run / "eval" / "perplexity.json").unlink()
    assert outcome(run, 0, "", "auto").objective == 1.5


def test_what_was_asked_for_by_name_and_is_not_there_is_a_failure(run: Path) -> None:
    (run / "eval" / "perplexity.json").unlink()
    found = outcome(run, 0, "", "perplexity")
    assert (found.status, found.objective) == ("failed", None)
    assert "eval=perplexity" in (found.reason or "")


def test_a_result_that_is_not_finite_is_none(run: Path) -> None:
    rows = [{**row, "perplexity": None} for row in PERPLEXITIES]
    (run / "eval" / "perplexity.json").write_text(json.dumps(rows))
    assert outcome(run, 0, "", "auto").objective is None
    assert outcome(run, 0, "", "auto").status == "complete"
    assert outcome(run, 0, "", "perplexity").status == "failed"


@pytest.mark.parametrize(
    ("code", "killed", "status"),
    [(75, None, "stopped"), (130, None, "stopped"), (-15, "stopped", "stopped"), (75, "pruned", "pruned")],
)
def test_who_was_asked_to_stop_did_not_fail(run: Path, code: int, killed: str | None, status: str) -> None:
    assert outcome(run, code, "", "auto", killed).status == status


@pytest.mark.parametrize(
    ("code", "printed", "reason"),
    [
        (-9, "a\n", "killed by SIGKILL, perhaps because memory ran out"),
        (-11, "", "killed by SIGSEGV"),
        (2, "line\nerror: rope.beta: got 1\nbanner\n", "rope.beta: got 1"),
        (2, "error: 2 problems:\n  - a: got 1\n  - b: got 2\nend\n", "2 problems: - a: got 1 - b: got 2"),
        (4, "[rank 1] waiting\n[rank 0] error: diverged\n", "diverged"),
        (1, "unexpected error: KeyError: 'x' (at a.py:1)\n", "unexpected error: KeyError: 'x' (at a.py:1)"),
        (1, "x\n\nlast words\n\n", "last words"),
        (1, "", "it printed nothing"),
    ],
)
def test_why(code: int, printed: str, reason: str) -> None:
    assert why(code, printed) == reason


def test_a_run_that_was_told_to_stop_early_is_not_complete(run: Path) -> None:
    (run / "run.json").write_text(json.dumps({"exit_reason": "stopped by train.stop_after"}))
    found = outcome(run, 0, "", "auto")
    assert (found.status, found.reason) == ("stopped", "stopped by train.stop_after")


def test_seconds_count_for_the_last_start_only(run: Path) -> None:
    starts = [{"time": "2026-01-01T00:00:00+00:00", "seconds": {"prepare": 1.0, "train": 2.5, "evaluate": 0.25}}]
    (run / "run.json").write_text(json.dumps({"starts": starts}))
    began = 1767225600.0
    assert math.isclose(useful_seconds(run, began), 3.75)
    assert useful_seconds(run, began + 60) == 0.0
    (run / "run.json").write_text("[]")
    assert useful_seconds(run, began) == 0.0
