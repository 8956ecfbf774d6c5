"""The whole comparison of two run folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, problem
from ..report.collect import Stage
from . import files, tensors
from .causes import Known, likely, of_weights
from .numbers import same
from .options import NOTHING, Fact, option_facts, roles
from .rows import Steps, compare_rows
from .sides import Side, data_facts, has_model, open_side, place_facts
from .weights import Weights, compare_tensors


@dataclass(frozen=True)
class StageComparison:
    """Two stages that stand at the same place of their runs.

    Attributes:
        checkpoints: by step, those that both have; None for one in an older format, which is not read.
        model: None where not both exported one.
        cause: of the first difference; None where there is none, or an earlier stage differs already.
    """

    names: tuple[str, str]
    options: tuple[Fact, ...]
    data: tuple[Fact, ...]
    steps: Steps
    checkpoints: dict[int, Weights | None]
    model: Weights | None
    cause: str | None

    @property
    def equal(self) -> bool:
        """Whether all that was compared is."""
        weights = [w for w in (*self.checkpoints.values(), self.model) if w is not None]
        return self.steps.first is None and all(w.equal for w in weights)


@dataclass(frozen=True)
class Comparison:
    """Two run folders.

    Attributes:
        others: stages that only one of them has.
        perplexity: evaluations of the same model, window and mode that differ.
    """

    folders: tuple[str, str]
    place: tuple[Fact, ...]
    stages: tuple[StageComparison, ...]
    others: tuple[str, ...]
    perplexity: tuple[Fact, ...]
    perplexities: int

    @property
    def equal(self) -> bool:
        """Whether all results that both have are; options and places may differ all the same."""
        return all(stage.equal for stage in self.stages) and not self.perplexity


def compare(
    a: str | Path, b: str | Path, tolerance: float = 0.0, weights: bool = True, quick: bool = False
) -> Comparison:
    """Compare two run folders, or a stage of each.

    Args:
        tolerance: relative distance of numbers that still counts as equal.
        weights: whether to compare checkpoints and models too.
        quick: believe what a checkpoint's COMPLETE says of files that have the sizes it says.

    Raises:
        DataError: one is no run folder, is damaged, or they have no step in common.
    """
    ours, theirs = open_side(a), open_side(b)
    place = tuple(place_facts(ours, theirs))
    stages: list[StageComparison] = []
    for x, y in zip(ours.stages, theirs.stages, strict=False):
        stages.append(_stage(ours, theirs, x, y, place, stages, tolerance, weights, quick))
    if not any(stage.steps.compared for stage in stages):
        fix = "train both for a step at least, or give stages of the same kind"
        raise DataError(problem(f"{a} and {b}", "no step that both have", "runs to compare", fix))
    longer = max(ours.stages, theirs.stages, key=len)
    rows = _perplexities(ours), _perplexities(theirs)
    scored = [key for key in rows[0] if key in rows[1]]
    different = (Fact(k, rows[0][k], rows[1][k]) for k in scored if not same(rows[0][k], rows[1][k], tolerance))
    others = tuple(stage.name for stage in longer[len(stages) :])
    return Comparison((str(a), str(b)), place, tuple(stages), others, tuple(different), len(scored))


def _stage(
    ours: Side,
    theirs: Side,
    x: Stage,
    y: Stage,
    place: tuple[Fact, ...],
    before: list[StageComparison],
    tolerance: float,
    weights: bool,
    quick: bool,
) -> StageComparison:
    options = tuple(option_facts(x.config or ours.run.config, y.config or theirs.run.config))
    data = data_facts(x, y)
    shown = tuple(data or ())
    steps = compare_rows(x.metrics, y.metrics, tolerance)
    checkpoints = _checkpoints(x, y, tolerance, quick) if weights else {}
    model = None
    if weights and has_model(x) and has_model(y):
        model = compare_tensors(tensors.of_model(x.folder / "model"), tensors.of_model(y.folder / "model"), tolerance)
    found = StageComparison((x.name, y.name), options, shown, steps, checkpoints, model, None)
    if found.equal or not all(stage.equal for stage in before):
        return found
    at = steps.first.step if steps.first else 0
    known = Known(
        options=[fact for fact in options if roles(fact.key) != (NOTHING,)],
        data=data,
        place=place,
        resumed=(ours.resumed(x.name, at), theirs.resumed(y.name, at)),
        inherited=bool(before) and not before[-1].equal,
        dtype=str(x.option("model.dtype") or "float32"),
    )
    damaged = any(w is not None and w.damaged for w in checkpoints.values())
    cause = likely(steps.first, known) if steps.first else of_weights(known, damaged)
    return StageComparison((x.name, y.name), options, shown, steps, checkpoints, model, cause)


def _checkpoints(x: Stage, y: Stage, tolerance: float, quick: bool) -> dict[int, Weights | None]:
    ours, theirs = tensors.complete_steps(x.folder), tensors.complete_steps(y.folder)
    return {step: _checkpoint(ours[step], theirs[step], tolerance, quick) for step in ours if step in theirs}


def _checkpoint(a: Path, b: Path, tolerance: float, quick: bool) -> Weights | None:
    first, second = tensors.hashes(a), tensors.hashes(b)
    sides = (("A", a, first), ("B", b, second))
    damaged = tuple(f"{side} {wrong}" for side, path, said in sides for wrong in files.damages(path, said, quick))
    stored = [name for name in first if name == "index.json" or name.startswith("rank_")]
    if damaged or (stored and all(first[name] == second.get(name) for name in stored)):
        return Weights(0, (), (), damaged, not quick)  # no numbers of broken files; of the same ones nothing to compare
    x, y = tensors.of_checkpoint(a), tensors.of_checkpoint(b)
    return None if x is None or y is None else compare_tensors(x, y, tolerance)


def _perplexities(side: Side) -> dict[str, float]:
    """By what was evaluated, in words."""
    names = ("label", "window", "mode", "stride", "documents", "tokens")
    return {
        " ".join(json.dumps(getattr(row, name)).strip('"') for name in names): row.perplexity
        for row in side.run.perplexity
    }


def as_data(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values."""
    return {
        "folders": comparison.folders,
        "equal": comparison.equal,
        "place": [vars(fact) for fact in comparison.place],
        "stages": [_stage_data(stage) for stage in comparison.stages],
        "only_in_one": comparison.others,
        "perplexities": comparison.perplexities,
        "perplexity": [vars(fact) for fact in comparison.perplexity],
    }


def _stage_data(stage: StageComparison) -> dict[str, Any]:
    first = stage.steps.first
    return {
        "stages": stage.names,
        "equal": stage.equal,
        "options": [{**vars(fact), "can_change": roles(fact.key)} for fact in stage.options],
        "data": [vars(fact) for fact in stage.data],
        "steps": stage.steps.compared,
        "steps_only_in_one": stage.steps.only,
        "first_difference": first and {**vars(first), "gap": first.gap and vars(first.gap)},
        "cause": stage.cause,
        "largest_loss_gap": stage.steps.worst,
        "last_loss_gap": stage.steps.last,
        "checkpoints": {step: _weights_data(w) for step, w in stage.checkpoints.items()},
        "model": _weights_data(stage.model),
    }


def _weights_data(weights: Weights | None) -> dict[str, Any] | None:
    if weights is None:
        return None
    gaps = [vars(gap) for gap in weights.gaps]
    found = {"equal": weights.equal, "compared": weights.compared, "others": weights.others, "differ": gaps}
    return {**found, "damaged": weights.damaged, "read": weights.read}
