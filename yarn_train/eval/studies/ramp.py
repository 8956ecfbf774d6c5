"""eval=ramp: perplexity of the untrained base over alpha, beta and the two ramps between them, for several s."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from transformers import PretrainedConfig

from ...config import Config
from ...dist.collectives import barrier
from ...errors import problem
from ...intervals import difference
from ...rope import hf as rope_hf
from ...rope.frequencies import RAMPS
from ..job import Job
from .points import Base, Point, perplexity, plan_of, windows_at, write

DEFAULT = (1.0, 32.0, "by_index")


def problems(cfg: Config, base: PretrainedConfig) -> list[str]:
    """What of the base or the options cannot be studied."""
    found = rope_hf.check_base(base, cfg.rope)
    if wrong := [(a, b) for a, b in product(cfg.study.alphas, cfg.study.betas) if a >= b]:
        got = "alpha={:g} with beta={:g}".format(*wrong[0])
        found.append(problem("study.alphas", got, "every alpha below every beta", "leave one of them out"))
    return found


def run(job: Job) -> None:
    """Write ``ramp.json`` (all points) and ``ramp_best.json`` (the best of each s and window, against the default)."""
    with Base(job, plan_of(job), "ramp") as base:
        rows: list[dict[str, Any]] = []
        best: list[dict[str, Any]] = []
        for factor in sorted(job.cfg.study.factors):
            for window in windows_at(job, factor):
                points = [point(job, factor, *cell, window) for cell in cells(job.cfg)]
                base.score(points)
                rows += map(base.row, points)
                best.append(_best(base, points))
                job.say(_said(best[-1]))
                write(job, "ramp", rows)
                write(job, "ramp_best", best)
    barrier()


def cells(cfg: Config) -> list[tuple[float, float, str]]:
    """(alpha, beta, ramp): the asked ones and the default."""
    asked = [(a, b, ramp) for ramp, a, b in product(RAMPS, cfg.study.alphas, cfg.study.betas)]
    return list(dict.fromkeys([*asked, DEFAULT]))


def point(job: Job, factor: float, alpha: float, beta: float, ramp: str, window: int) -> Point:
    """YaRN at s with this ramp."""
    truncate = job.cfg.rope.truncate or ramp == "by_rotations"  # the other ramp has nothing to round
    changed: dict[str, Any] = {
        "method": "yarn",
        "factor": factor,
        "alpha": alpha,
        "beta": beta,
        "ramp": ramp,
        "truncate": truncate,
    }
    rope = dataclasses.replace(job.cfg.rope, **changed)
    return Point({"factor": factor, "alpha": alpha, "beta": beta, "ramp": ramp}, rope, window)


def _best(base: Base, points: Sequence[Point]) -> dict[str, Any]:
    """The lowest perplexity, and how it compares with the default on the same documents.

    The interval is that of this cell against the default. It knows nothing of the cell having been chosen among all
    `cells` on these documents, so it tells nothing about whether the choice would hold on others.
    """
    names = [tuple(p.names[key] for key in ("alpha", "beta", "ramp")) for p in points]
    best = min(points, key=lambda p: _finite_first(perplexity(base.of(p))))
    pairs = [list(zip(s.nll, s.tokens, strict=True)) for s in (base.of(best), base.of(points[names.index(DEFAULT)]))]
    found = difference(pairs[0], pairs[1], base.scoring.bootstrap)
    ratio = found.exp() if found else None
    ends = {"ratio": ratio.value if ratio else None, "low": ratio.low if ratio else None}
    ends["high"] = ratio.high if ratio else None
    measured = {"perplexity": base.row(best)["perplexity"], **ends, "cells": len(points)}
    return {**best.names, "window": best.window, **measured}


def _finite_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _said(row: dict[str, Any]) -> str:
    cell = f"{row['ramp']}, alpha {row['alpha']:g}, beta {row['beta']:g}"
    said = f"s={row['factor']:g} at {row['window']:,}: best {cell}"
    if row["ratio"] is None:
        return said
    if row["ratio"] == 1:
        return f"{said}, which is the default"
    chosen = f"chosen as the best of {row['cells']} on these documents"
    return f"{said}; {row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f}) of the default's perplexity, {chosen}"
