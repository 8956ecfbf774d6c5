"""Evaluations of several runs as one: each run's last model under the run's name, and one base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .collect import Run
from .eval_figures import Scene
from .evaluations import Evaluations
from .figures import context
from .figures.base import SHOWN_BY_NAME
from .figures.looks import is_base
from .groups import Group
from .objective import last_stage
from .scored import scored_alike, texts

OF_TEXTS = ("perplexity", "documents", "positions")
COMPARED = ("perplexity", "documents", "positions", "passkey", "harness")  # studies belong to one base


def side_by_side(group: Group) -> Scene | None:
    """What a page of several runs shows of evaluations; None of a sweep's many jobs and where nothing was evaluated."""
    runs = [(member.name, member.run) for member in group.members if member.run and member.run.evaluations]
    if not runs or len(runs) > SHOWN_BY_NAME:
        return None
    found: dict[str, Any] = {kind: tuple(_rows(runs, kind)) for kind in COMPARED}
    length = next((length for _, run in runs if (length := run.original_length()) is not None), None)
    marks = list(dict.fromkeys(mark for _, run in runs for mark in context.lengths(run)))
    return Scene(Evaluations(**found), marks, length) if any(found.values()) else None


def _rows(runs: Sequence[tuple[str, Run]], kind: str) -> list[Any]:
    """The base of the first run that has one, if it scored what all others did, then every run's last model."""
    shared = scored_alike([run for _, run in runs])
    base: list[Any] = []
    others: list[Any] = []
    for name, run in runs:
        rows = getattr(run.evaluations, kind)
        untouched = [row for row in rows if is_base(row)]
        if untouched and not base and (shared or kind not in OF_TEXTS):
            base = untouched if run.trained_here else [replace(row, label=name) for row in untouched]
        mine = _renamed(name, run, rows)
        others += mine if shared or kind != "perplexity" else [replace(row, texts=texts(run)) for row in mine]
    return [*base, *others]


def _renamed(name: str, run: Run, rows: Sequence[Any]) -> list[Any]:
    """The rows of a run's last model, or of all that an evaluation alone has; the name stands for label and stage."""
    if run.trained_here:
        return [replace(row, label=name, stage=name) for row in rows if row.stage and row.stage == last_stage(rows)]
    kept = [row for row in rows if not is_base(row)]
    several = len({row.label for row in kept}) > 1
    labels = {row.label: f"{name}: {row.label}" if several else name for row in kept}
    return [replace(row, label=labels[row.label], stage=labels[row.label]) for row in kept]
