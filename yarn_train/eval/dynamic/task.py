"""Fixed and dynamic scaling of an untrained base, side by side (YaRN paper, section 3.3 and Figure 5).

A window of l' tokens is read at s = max(1, l'/L) in one pass: what a model answers whose scale follows its input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from transformers import PretrainedConfig

from ...config import Config
from ...console.work import Work
from ...dist.collectives import barrier, from_main
from ...dist.heartbeat import heartbeat
from ...errors import problem
from ...model.tables import set_table
from ...rope import hf as rope_hf
from ...rope.frequencies import RopeTable
from .. import made_by
from ..job import Job
from ..loading import loaded, ranks_of
from ..perplexity.gathered import positions_of, scores
from ..perplexity.plan import Plan, plan
from ..perplexity.scores import rows
from ..rows import Rows, earlier_rows, write_rows
from ..variants import Variant
from .curves import Curve, curves, windows_of

NAMES = ("label", "method", "ramp", "factor", "stage")
Cell = tuple[bytes, float, int]  # table and window, which decide a perplexity


def problems(cfg: Config, base: PretrainedConfig) -> list[str]:
    """What of the base or the options cannot be studied."""
    found = rope_hf.check_base(base, cfg.rope)
    if cfg.rope.temperature != "auto":
        allowed = "auto, because the temperature follows s"
        fix = "leave it out, or study temperatures: eval=temperature"
        found.append(problem("rope.temperature", cfg.rope.temperature, allowed, fix))
    for key, given in (("factors", cfg.study.factors), ("methods", cfg.study.methods)):
        if not given:
            found.append(problem(f"study.{key}", [], "one or more", "leave it out to take the default"))
    return found


def run(job: Job) -> None:
    """Write ``dynamic.json``, after each window; rows that are there with the same settings stay."""
    cfg, study = job.cfg, job.cfg.study
    length = cfg.rope.original_max_position_embeddings or job.length
    windows = windows_of(cfg.eval.windows, length, study.factors)
    listed = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, windows=windows))
    scoring = plan(listed, job.data, job.tokenizer, length, max(study.factors), job.say)
    drawn = curves(cfg.rope, study.methods, study.factors, windows, length)
    out, main = job.folder / "dynamic.json", job.runtime.is_main
    done: Rows = from_main(earlier_rows(out, _settings(job, scoring), job.say) if main else [])
    there = {(row["label"], row["window"]) for row in done}
    missing = [curve for curve in drawn if any((curve.label, window) not in there for window in windows)]
    known = _known(done, drawn, job.base)
    wanted = {cell for curve in missing for cell in _cells(curve, job.base)} - known.keys()
    work = Work("evaluate", sum(positions_of(scoring, cell[2]) for cell in wanted), "tok", shown=main and bool(wanted))
    for found in _found(job, scoring, missing, known, bool(wanted), work):
        new = {(row["label"], row["window"]) for row in found}
        done = _in_order([row for row in done if (row["label"], row["window"]) not in new] + found, drawn)
        if main:
            write_rows(out, done)
    work.close()
    barrier()


def _found(
    job: Job, scoring: Plan, missing: Sequence[Curve], known: dict[Cell, Rows], load: bool, work: Work
) -> Iterator[Rows]:
    """The rows of each missing curve, window by window; a table is scored once, whichever curves share it. Collective.

    Args:
        known: rows by table and window; what is scored is added.
        load: False where all that is needed is known.
    """
    plain = dataclasses.replace(job.cfg.rope, method="none", factor=1.0)
    variant = Variant.of("base", plain, None, job.variants[0].weights)
    ranks = ranks_of(job.base, job.cfg, job.runtime)
    with loaded(variant, job.base, job.cfg, ranks) if load else nullcontext() as model:
        for curve in missing:
            for window, rope in curve.ropes.items():
                table = rope_hf.table_for(job.base, rope)
                cell = _cell(table, window)
                work.at(f"{curve.label} at {window}")
                if model is not None and cell not in known:
                    heartbeat.at(f"evaluate {curve.label} at {window}")
                    set_table(model, table)
                    scored = scores(model, window, scoring, ranks)
                    known[cell] = rows("", "", None, 0.0, None, scored, scoring.modes, scoring.bootstrap)
                    work.add(positions_of(scoring, window))
                yield [{**row, **_names(curve)} for row in known[cell]]


def _known(done: Rows, drawn: Sequence[Curve], base: PretrainedConfig) -> dict[Cell, Rows]:
    """What rows of an earlier start say about tables and windows."""
    known: dict[Cell, Rows] = {}
    for curve in drawn:
        for cell in _cells(curve, base):
            if found := [row for row in done if (row["label"], row["window"]) == (curve.label, cell[2])]:
                known.setdefault(cell, found)
    return known


def _cells(curve: Curve, base: PretrainedConfig) -> list[Cell]:
    return [_cell(rope_hf.table_for(base, rope), window) for window, rope in curve.ropes.items()]


def _cell(table: RopeTable, window: int) -> Cell:
    return table.inv_freq.numpy().tobytes(), table.attention_factor, window


def _names(curve: Curve) -> dict[str, Any]:
    return {**{key: getattr(curve, key) for key in NAMES[:4]}, "stage": None}


def _in_order(found: Rows, drawn: Sequence[Curve]) -> Rows:
    """Curves in the order of the study, then those that this start does not ask for."""
    labels = list(dict.fromkeys([*(curve.label for curve in drawn), *(row["label"] for row in found)]))
    return sorted(found, key=lambda row: (labels.index(row["label"]), row["window"]))


def _settings(job: Job, scoring: Plan) -> dict[str, Any]:
    """Everything that decides the rows of a curve."""
    rope = dataclasses.asdict(job.cfg.rope)
    made = {**made_by.options_of(job.cfg, job.runtime.device, job.base), "base": made_by.mark(job.variants[0])}
    return {**scoring.settings(), **made, "rope": {key: rope[key] for key in ("alpha", "beta", "ramp", "truncate")}}
