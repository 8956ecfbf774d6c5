"""eval=temperature: perplexity of the untrained base against the temperature t, for several s (paper, Appendix A.2)."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from ...config import Config
from ...dist.collectives import barrier
from ...errors import problem
from ...intervals import interval
from ...rope import hf as rope_hf
from ...rope.frequencies import attention_factor
from ..job import Job
from ..perplexity.positions import edges
from ..perplexity.scores import finite
from . import fit
from .points import Base, Point, length_of, plan_of, windows_at, write

ROUNDS = 6  # of refining around a minimum, or of going on beyond an edge
FINE = 0.02  # the grid's step in sqrt(1/t) around the minimum, at most; the rule's steps from s to 2s are 0.07


def problems(cfg: Config, base: PretrainedConfig) -> list[str]:
    """What of the base or the options cannot be studied."""
    found = rope_hf.check_base(base, cfg.rope)
    if cfg.rope.temperature != "auto":
        fix = "list them in study.temperatures"
        found.append(problem("rope.temperature", cfg.rope.temperature, "auto, as the study varies it", fix))
    if len(set(cfg.study.temperatures)) < 2:
        allowed = "two or more, beside the paper's rule"
        found.append(problem("study.temperatures", cfg.study.temperatures, allowed, "leave it out for the default"))
    if small := [s for s in cfg.study.factors if s <= 1]:
        found.append(problem("study.factors", small[0], "above 1: the rule is t = 1 at s = 1", "leave it out"))
    return found


def run(job: Job) -> None:
    """Write ``temperature.json``, ``temperature_positions.json`` and ``temperature_fit.json``."""
    scoring = plan_of(job)
    factors = sorted(job.cfg.study.factors)
    with Base(job, scoring, "temperature") as base:
        minima, grids = [], dict[float, list[float]]()
        for factor in factors:
            grids[factor] = grid = _grid(base, factor)
            minima.append(_minimum(base, factor, grid))
            _rows(base, grids)
        pairs = list(zip(factors, minima, strict=True))
        best = [_best(factor, found) for factor, found in pairs if math.isfinite(found.x)]
        left_out = [factor for factor, found in pairs if found.edge]
        line = fit.line([math.log(factor) for factor in factors], minima)
        for row in best:
            job.say(_said(row))
        for factor in sorted(set(factors) - {row["factor"] for row in best}):
            job.say(f"s={factor:g}: no best t; the losses of some document are finite at fewer than three")
        if line is not None:
            job.say(_said_line(line, left_out))
        _write_fit(job, best, line, left_out)
        write(job, "temperature_positions", [row for row in best for row in _gains(base, row)])
    barrier()


def rule(factor: float) -> float:
    """t of the paper's rule, sqrt(1/t) = 0.1 ln s + 1."""
    return attention_factor("yarn", factor) ** -2


def point(job: Job, factor: float, temperature: float, window: int) -> Point:
    """YaRN at s and t."""
    rope = dataclasses.replace(job.cfg.rope, method="yarn", factor=factor, temperature=temperature)
    return Point({"factor": factor, "temperature": temperature}, rope, window)


def _grid(base: Base, factor: float) -> list[float]:
    """x = sqrt(1/t) of all points at s, ascending: the asked ones and the rule, then more around the minimum."""
    job = base.job
    grid = sorted({*(t**-0.5 for t in job.cfg.study.temperatures), rule(factor) ** -0.5})
    for _ in range(ROUNDS):
        base.score([_at(base, factor, x) for x in grid])
        if not (more := _more(grid, _minimum(base, factor, grid))):
            break
        grid = sorted({*grid, *more})
    base.score([_at(base, factor, x) for x in grid])
    for window in windows_at(job, factor):
        base.score([_at(base, factor, x, window) for x in grid])
    return grid


def _more(grid: Sequence[float], found: fit.Minimum) -> list[float]:
    """Points to add: beyond an edge that is the lowest, or halfway to the neighbours while these are far."""
    if not math.isfinite(found.x):
        return []
    if found.edge:
        ends = grid[:2] if found.edge == "low" else grid[:-3:-1]
        beyond = ends[0] + (ends[0] - ends[1])
        return [beyond] if beyond > 0 else []
    near = [(low, high) for low, high in pairwise(grid) if low <= found.x <= high]
    return [(low + high) / 2 for low, high in near if high - low > FINE]


def _at(base: Base, factor: float, x: float, window: int | None = None) -> Point:
    """The point with sqrt(1/t) = x, at s L without a window. t has nine digits, so that files name it exactly."""
    window = round(factor * length_of(base.job)) if window is None else window
    return point(base.job, factor, float(f"{x**-2:.9g}"), window)


def _minimum(base: Base, factor: float, grid: Sequence[float]) -> fit.Minimum:
    sums = [base.of(_at(base, factor, x)) for x in grid]
    nll = np.array([one.nll for one in sums])
    nll[~np.isfinite(nll)] = np.inf
    return fit.minimum(grid, nll, sums[0].tokens, base.scoring.bootstrap)


def _rows(base: Base, grids: dict[float, list[float]]) -> None:
    rows = []
    for factor, grid in grids.items():
        for window in windows_at(base.job, factor):
            rows += [base.row(_at(base, factor, x, window)) for x in grid[::-1]]
    write(base.job, "temperature", rows)


def _best(factor: float, found: fit.Minimum) -> dict[str, Any]:
    ends = found.interval()
    low, high = (ends[1] ** -2, ends[0] ** -2) if ends else (None, None)
    value = {"factor": factor, "temperature": found.x**-2, "low": low, "high": high, "rule": rule(factor)}
    return {**value, "at_edge": bool(found.edge)}


def _gains(base: Base, best: dict[str, Any]) -> list[dict[str, Any]]:
    """How many nats per token the best t is better than t = 1, by position in a window of s L."""
    factor, window = best["factor"], round(best["factor"] * length_of(base.job))
    best_point = point(base.job, factor, best["temperature"], window)
    warm, plain = (base.curves(p).curves for p in (best_point, point(base.job, factor, 1.0, window)))
    full = [(a, b) for a, b in zip(plain, warm, strict=True) if len(a) >= window - 1 and len(b) >= window - 1]
    found = []
    for begin, end in pairwise(edges(window)) if full else []:
        sums = [float((a - b)[begin - 1 : end - 1].sum(dtype=np.float64)) for a, b in full]
        weights = [end - begin] * len(full)
        between = interval(sums, weights, base.scoring.bootstrap)
        value = {"factor": factor, "temperature": best["temperature"], "begin": begin, "end": end}
        ends = {"low": between.low if between else None, "high": between.high if between else None}
        gain = finite(float(np.sum(sums)) / sum(weights))
        found.append({**value, "improvement": gain, **ends, "tokens": sum(weights)})
    return found


def _write_fit(job: Job, best: Sequence[dict[str, Any]], line: fit.Line | None, left_out: Sequence[float]) -> None:
    if not job.runtime.is_main:
        return
    value: dict[str, Any] = {"best": list(best), "fit": None}
    if line is not None:
        (a_low, a_high), (b_low, b_high) = line.a_interval or (None, None), line.b_interval or (None, None)
        ends = {"a_low": a_low, "a_high": a_high, "b_low": b_low, "b_high": b_high}
        value["fit"] = {"a": line.a, "b": line.b, **ends, "left_out": list(left_out)}
    path = job.folder / "temperature_fit.json"
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


def _said(row: dict[str, Any]) -> str:
    between = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
    edge = ", at the edge of what was tried" if row["at_edge"] else ""
    return f"s={row['factor']:g}: best t {row['temperature']:.3f}{between}{edge}; the rule gives {row['rule']:.3f}"


def _said_line(line: fit.Line, left_out: Sequence[float]) -> str:
    a = f" ({line.a_interval[0]:.3f} to {line.a_interval[1]:.3f})" if line.a_interval else ""
    b = f" ({line.b_interval[0]:.3f} to {line.b_interval[1]:.3f})" if line.b_interval else ""
    without = f", without s = {', '.join(f'{s:g}' for s in left_out)}, at an edge" if left_out else ""
    return f"sqrt(1/t) = {line.a:.3f}{a} ln s + {line.b:.3f}{b}{without}; the paper: 0.1 ln s + 1"
