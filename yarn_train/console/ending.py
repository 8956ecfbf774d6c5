"""How a run ended, read from its folder: figures, where things are, and the next commands to type.

Never imports torch. What is missing or cannot be read is left out: this only tells.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .banner import Row
from .lines import duration

GIB = 2**30


@dataclass(frozen=True)
class Ended:
    """A run at its end.

    Attributes:
        folder: the run folder.
        stages: its stages' folders, in order.
        command: what goes on with it; None where that is no single command.
        longer: words of a run that goes on from this one's model; empty where no words say it.
        reason: why it ended before its end; None where it is complete.
    """

    folder: Path
    stages: Sequence[Path]
    command: Sequence[str] | None
    longer: Sequence[str] = ()
    reason: str | None = None

    @property
    def model(self) -> Path:
        """Of the last stage, once that is done."""
        return self.stages[-1] / "model"


def title(ended: Ended) -> str:
    """The banner's first line."""
    if ended.reason is None:
        return f"run complete; the model is {ended.model}"
    reason = ended.reason.removeprefix("failed: ").partition("\n")[0]
    return f"run not complete: {reason}".rstrip(": ")


def rows(ended: Ended) -> list[Row]:
    """The banner's other lines."""
    found = [row for stage in ended.stages for row in _stage_rows(stage)]
    if ended.reason is not None:
        again = shlex.join(ended.command) if ended.command else ""
        return [*found, Row("saved", _saved(ended)), Row("go on", again, whole=True)]
    report = ended.folder / "report" / "index.html"
    return [
        *found,
        Row("perplexity", _perplexity(_read(ended.folder / "eval" / "perplexity.json"))),
        Row("report", str(report) if report.is_file() else ""),
        Row("evaluate", _typed("-m", "yarn_train.eval", "eval=perplexity", f"model.path={ended.model}"), whole=True),
        Row("serve", shlex.join(["vllm", "serve", str(ended.model)]), whole=True),
        Row("next", _typed("train.py", *ended.longer) if ended.longer else "", whole=True),
    ]


def newest_checkpoint(stages: Sequence[Path]) -> Path | None:
    """The newest complete checkpoint of the first stage that is not finished; None where it has none."""
    for stage in stages:
        if not (stage / "model" / "config.json").is_file():
            found = sorted((stage / "checkpoints").glob("step_*/COMPLETE"))
            return found[-1].parent if found else None
    return None


def _saved(ended: Ended) -> str:
    newest = newest_checkpoint(ended.stages)
    done = [stage.name for stage in ended.stages if (stage / "model" / "config.json").is_file()]
    what = [f"finished {', '.join(done)}"] if done else []
    return "; ".join([*what, f"checkpoint {newest}" if newest else "no checkpoint yet"])


def _stage_rows(stage: Path) -> list[Row]:
    steps = _steps(stage / "metrics.jsonl")
    if not steps:
        return []
    last = steps[-1]
    counted = [row for row in steps if not row.get("skipped")]  # a skipped step trained nothing
    losses = [(row["loss"], row["step"]) for row in counted if isinstance(row.get("loss"), int | float)]
    told = [f"{last['step']} steps in {duration(sum(row['seconds'] for row in steps))}"]
    if losses:
        best, at = min(losses)
        told.append(f"loss {losses[-1][0]:.4f}, best {best:.4f} at step {at}")
    timed = [row for row in steps if not row.get("untimed")] or steps
    told.append(f"{sum(row['step_tokens'] for row in timed) / sum(row['seconds'] for row in timed):,.0f} tok/s")
    told.append(f"peak memory {max(row['peak_memory_bytes'] for row in steps) / GIB:.1f} GiB")
    skipped = last.get("skipped_total")
    told += [f"{skipped} steps skipped"] if skipped else []
    return [Row(stage.name, "; ".join(told))]


def _steps(metrics: Path) -> list[dict[str, Any]]:
    """Rows that have what is told of them; a step that was repeated counts once, as it was last."""
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = {}
    for line in lines:
        try:
            row = json.loads(line)
            needed = [float(row[key]) for key in ("seconds", "step_tokens", "peak_memory_bytes")]
            if needed[0] > 0:
                found[int(row["step"])] = row
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return [found[step] for step in sorted(found)]


def _perplexity(table: Any) -> str:
    """The base against the last stage, where the window is largest."""
    try:
        window = max(row["window"] for row in table)
        at = [row for row in table if row["window"] == window]
        base = next((row for row in at if row["stage"] is None and row["method"] == "none"), None)
        trained = [row for row in at if row["stage"] is not None][-1]
        before = f"{base['perplexity']:.4g} base, " if base else ""
        return f"{before}{trained['perplexity']:.4g} after {trained['stage']}, at {window:,} tokens"
    except (ValueError, KeyError, TypeError, IndexError):
        return ""


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _typed(*words: str) -> str:
    return shlex.join(["python", *words])
