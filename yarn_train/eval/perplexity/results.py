"""The three files of a perplexity evaluation, which are written after every window of every model.

``perplexity.json`` (a row per label, window and mode), ``perplexity_documents.json`` (per label, window and document)
and ``positions.json`` (per label and bin of positions). A window of a model is done when all of its rows are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...dist.collectives import from_main
from .. import made_by
from ..rows import Rows, Say, earlier_files, write_rows
from ..variants import Variant
from .plan import Plan
from .positions import position_rows
from .scores import Scores, document_rows, rows

FILES = ("positions", "perplexity_documents", "perplexity")  # in the order of writing: the last says what is done
Found = dict[str, Rows]


@dataclass
class Results:
    """Rows by file, the same on every rank; files are written by the main one."""

    folder: Path
    scoring: Plan
    order: list[str]
    found: Found
    main: bool

    @classmethod
    def open(
        cls, folder: Path, scoring: Plan, chosen: Sequence[Variant], options: dict[str, Any], main: bool, say: Say
    ) -> Results:
        """What an interrupted evaluation of the same models with the same settings has left; collective.

        Args:
            options: of :func:`made_by.options_of`.
        """
        names = FILES[::-1]
        outs = [folder / f"{name}.json" for name in names]
        there = earlier_files(outs, {**scoring.settings(), **options}, say, made_by.marks(chosen)) if main else []
        found = from_main(dict(zip(names, there, strict=True)) if main else {})
        return cls(folder, scoring, [variant.label for variant in chosen], found, main)

    def missing(self, label: str) -> list[int]:
        """Windows of a model that are not done, ascending."""
        return [window for window in self.scoring.windows if not self._done(label, window)]

    def add(self, variant: Variant, found: Found) -> None:
        """Take in rows of one or more windows of a model, without its names, and write the files."""
        names = {key: getattr(variant, key) for key in ("label", "method", "ramp", "factor", "stage")}
        windows = {row["window"] for row in found["perplexity"]}
        for name in FILES:
            kept = [r for r in self.found[name] if r["label"] != variant.label or r["window"] not in windows]
            self.found[name] = sorted([*kept, *({**names, **row} for row in found[name])], key=self._place)
        if self.main:
            for name in FILES:
                if self.found[name]:
                    write_rows(self.folder / f"{name}.json", self.found[name])

    def of(self, label: str) -> Found:
        """A model's rows at the plan's windows."""
        wanted = self.scoring.windows
        return {
            name: [row for row in self.found[name] if row["label"] == label and row["window"] in wanted]
            for name in FILES
        }

    def _done(self, label: str, window: int) -> bool:
        at = {
            name: [row for row in self.found[name] if row["label"] == label and row["window"] == window]
            for name in FILES
        }
        modes = [row["mode"] for row in at["perplexity"]]
        names = [row["document"] for row in at["perplexity_documents"]]
        curve = bool(at["positions"]) or not self.scoring.wants_curve(window)
        return modes == list(self.scoring.modes) and names == self.scoring.names and curve

    def _place(self, row: dict[str, object]) -> tuple[int, int]:
        """Models in the order of the evaluation, after those that it does not ask for; windows ascending."""
        label, window = row["label"], row["window"]
        assert isinstance(window, int)
        return (self.order.index(label) if label in self.order else -1), window


def rows_of(scores: Scores, scoring: Plan) -> Found:
    """All rows of a model at one window, without its names."""
    common = rows("", "", None, 0.0, None, scores, scoring.modes, scoring.bootstrap)
    names = ("label", "method", "ramp", "factor", "stage")
    return {
        "perplexity": [{key: value for key, value in row.items() if key not in names} for row in common],
        "perplexity_documents": document_rows(scoring.names, scores),
        "positions": position_rows(scores, scoring.bootstrap) if scoring.wants_curve(scores.window) else [],
    }
