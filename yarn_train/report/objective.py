"""What runs are compared by where no sweep wrote it down; lower is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from .collect import Run
from .rows import Row
from .scored import scored_alike
from .style import mean
from .tables import main_mode

LOSS = "training loss, last tenth"


def common_metric(runs: Sequence[Run | None]) -> tuple[str, list[float | None]]:
    """The name of a metric that all runs with any result share, and its value for each run, None where it has none.

    It is the perplexity of the last stage at one of the windows that all evaluated runs have (:func:`judging_window`);
    where no run was evaluated, they share no window, or they scored different tokens, the mean training loss of the
    last tenth of the steps.
    """
    scored = [final_perplexity(run) if run else {} for run in runs]
    shared = set.intersection(*(set(found) for found in scored if found)) if any(scored) else set()
    if shared and scored_alike([run for run in runs if run]):
        window = judging_window(shared, [run for run, found in zip(runs, scored, strict=True) if run and found])
        return f"perplexity at {window}", [_finite(found.get(window)) for found in scored]
    return LOSS, [_finite(final_loss(run)) if run else None for run in runs]


def judging_window(windows: Iterable[int], runs: Iterable[Run]) -> int:
    """The largest window that every run was made for, s L; the smallest of all where none was made for any."""
    limits = [limit for run in runs if (limit := _reach(run)) is not None]
    inside = [window for window in windows if all(window <= limit for limit in limits)]
    return max(inside) if inside else min(windows)


def _reach(run: Run) -> float | None:
    """s L of a run's last evaluated model, in tokens; None where either is not known."""
    length, factors = run.original_length(), [row.factor for row in final_rows(run)]
    return None if length is None or not factors else length * factors[-1]


def last_stage(rows: Iterable[Any]) -> str | None:
    """The last of the stages that trained what the rows are of; None where none did."""
    return max((row.stage for row in rows if row.stage is not None), default=None)


def final_rows(run: Run) -> list[Row]:
    """Perplexities of the last trained stage that was evaluated; of an evaluation alone, of its last model."""
    rows = main_mode(run.perplexity)
    stage = last_stage(rows)
    if stage is not None or run.trained_here or not rows:
        return [row for row in rows if row.stage is not None and row.stage == stage]
    return [row for row in rows if row.label == rows[-1].label]


def final_perplexity(run: Run) -> dict[int, float]:
    """Window -> perplexity of :func:`final_rows`."""
    return {row.window: row.perplexity for row in final_rows(run)}


def final_loss(run: Run) -> float:
    """Mean training loss over the last tenth of the last stage's steps, NaN where none is finite."""
    losses = next((stage.series("loss") for stage in reversed(run.stages) if stage.metrics), [])
    return mean(losses[-max(1, len(losses) // 10) :])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
