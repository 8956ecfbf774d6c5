"""How a job of a sweep ended: its result, or the reason why it has none, read from its folder."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..report import objective
from ..report.collect import collect

STOPPED = (75, 130)  # exit codes of runs that were asked to stop, see dist.stop
MARKS = ("error: ", "unexpected error: ")
SHOWN = 300  # characters of a reason


@dataclass(frozen=True)
class Outcome:
    """How a job ended; the attributes are those of :class:`record.Job`."""

    status: str
    reason: str | None = None
    metric: str | None = None
    objective: float | None = None


def outcome(run: Path, code: int, printed: str, wanted: str, killed: str | None = None) -> Outcome:
    """What to record of a job.

    Args:
        run: its run folder.
        code: exit code of its process; negative is the signal that ended it.
        printed: what it printed.
        wanted: sweep.objective.
        killed: "pruned" or "stopped" where the sweep asked it to end, "ended" where it did not wait for that.
    """
    reason = _last_reason(run)
    if code == 0 and reason == "complete":
        return _result(run, wanted)
    if code == 0:  # train.stop_after, or nothing was run
        return Outcome("stopped", reason or "it ended without a run", *_measured(run, wanted))
    if killed == "ended":
        return Outcome("stopped", "it was ended at once, without a checkpoint")
    if killed == "pruned":
        return Outcome("pruned", "the study found its loss hopeless", *_measured(run, wanted))
    if code in STOPPED or (killed == "stopped" and code < 0):
        return Outcome("stopped", reason or "stopped on request")
    return Outcome("failed", why(code, printed))


def why(code: int, printed: str) -> str:
    """Why a process failed, in one line."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", perhaps because memory ran out" if name == "SIGKILL" else "")
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    told = next(
        (line.partition("] ")[2] or line for line in lines if line.startswith("[rank") and _is_told(line)), None
    )
    told = told or next((line for line in lines if line.startswith(MARKS)), None)
    text = told or (lines[-1] if lines else "it printed nothing")
    text = text.removeprefix("error: ")
    if told and text.endswith(":"):  # a list of problems follows
        text = " ".join([text, *(line for line in lines[lines.index(told) + 1 :] if line.startswith("- "))])
    return text[:SHOWN]


def _is_told(line: str) -> bool:
    return line.partition("] ")[2].startswith(MARKS)


def _result(run: Path, wanted: str) -> Outcome:
    metric, value = _measured(run, wanted)
    if value is None:
        fix = {"perplexity": "jobs must evaluate (eval=perplexity)"}.get(wanted, "see its metrics.jsonl")
        return Outcome("complete" if wanted == "auto" else "failed", f"no finite {wanted} to compare it by: {fix}")
    return Outcome("complete", None, metric, value)


def _measured(run: Path, wanted: str) -> tuple[str | None, float | None]:
    """(metric, value) of what there is; None where nothing finite was measured."""
    try:
        found = collect(run)
    except DataError:
        return None, None
    scores = {} if wanted == "loss" else objective.final_perplexity(found)
    if scores:
        window = objective.judging_window(scores, [found])
        metric, value = f"perplexity at {window}", scores[window]
    elif wanted == "perplexity":
        return None, None
    else:
        metric, value = objective.LOSS, objective.final_loss(found)
    return (metric, value) if math.isfinite(value) else (metric, None)


def _last_reason(run: Path) -> str | None:
    return _run_json(run).get("exit_reason")


def useful_seconds(run: Path, since: float) -> float:
    """Seconds that the run's last start spent on preparing data, on steps, checkpoints and the evaluation.

    Args:
        since: seconds since the epoch when the job began; an earlier start's are not counted.
    """
    starts = _run_json(run).get("starts") or [{}]
    try:
        if datetime.fromisoformat(starts[-1]["time"]).timestamp() < since - 1.0:  # written in whole seconds
            return 0.0
        return math.fsum(float(value) for value in starts[-1]["seconds"].values())
    except (KeyError, TypeError, ValueError, AttributeError):
        return 0.0


def _run_json(run: Path) -> dict[str, Any]:
    try:
        value = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
