"""The pictures of evaluations by name: panels for the page, and the same panels as PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from .collect import Run
from .evaluations import Evaluations
from .figures import context, dynamic, harness, passkey, positions, ramp, scored, temperature
from .figures.looks import Panels, is_base
from .regressions import is_cost, regressions
from .stills import still
from .style import picture
from .tables import main_mode

Marks = Sequence[tuple[float, str]]  # positions on axes of lengths, with their names


@dataclass(frozen=True)
class Scene:
    """What was measured, the lengths to mark on axes of tokens (L and every s * L), and L where it is stated."""

    found: Evaluations
    marks: Marks = ()
    original_length: int | None = None

    @property
    def length(self) -> int | None:
        """L; where nothing states it, the window that the base reads best."""
        if self.original_length is not None:
            return self.original_length
        base = [row for row in main_mode(self.found.perplexity) if is_base(row) and math.isfinite(row.perplexity)]
        return min(base, key=lambda row: row.perplexity).window if base else None


def scene_of(run: Run) -> Scene:
    """The evaluations of one run."""
    return Scene(run.evaluations, context.lengths(run), run.original_length())


def _positions(scene: Scene) -> Panels:
    made = positions.positions(scene.found.positions, scene.marks)
    return [("", made)] if made else []


def _documents(scene: Scene) -> Panels:
    made = scored.documents(scene.found.documents)
    return [("", made)] if made else []


def _harness(scene: Scene) -> Panels:
    named = [pair for pair in regressions(scene.found.harness) if pair.score.group is None and not is_cost(pair.score)]
    made = harness.differences(named)
    return [("", made)] if made else []


def _fit(scene: Scene) -> Panels:
    made = temperature.fit(scene.found.best, scene.found.line)
    return [("", made)] if made else []


PANELS: dict[str, Callable[[Scene], Panels]] = {
    "positions": _positions,
    "documents": _documents,
    "passkey": lambda scene: passkey.maps(scene.found.passkey),
    "passkey_lengths": lambda scene: passkey.accuracy(scene.found.passkey, scene.marks),
    "harness": _harness,
    "dynamic": lambda scene: dynamic.dynamic(scene.found.dynamic, scene.marks),
    "temperature": lambda scene: temperature.temperatures(scene.found.temperature, scene.found.best),
    "temperature_fit": _fit,
    "temperature_positions": lambda scene: positions.gains(scene.found.gains, scene.marks),
    "ramp": lambda scene: ramp.ramps(scene.found.ramp),
}


TITLES = {
    "positions": "Loss against position",
    "documents": "Loss of every document",
    "passkey_lengths": "Keys found by length",
    "harness": "Benchmarks, more than the base (2 standard errors)",
    "temperature_fit": "Best temperatures and the rule",
}  # of pictures of one panel, which say what they are in Markdown and alone


def save(name: str, scene: Scene, path: Path) -> Path | None:
    """Write one of the pictures as a PNG; None where there is nothing to draw."""
    panels = [(title or TITLES.get(name, ""), made) for title, made in PANELS[name](scene)]
    # of several kinds of prompts one row per model, of both ramps one row per factor
    columns = {"passkey": len(passkey.variants(scene.found.passkey)), "ramp": len({r.ramp for r in scene.found.ramp})}

    def draw(_: object) -> Figure | None:
        return still(panels, columns[name] if columns.get(name, 1) > 1 else None)

    return picture(draw)(None, path)
