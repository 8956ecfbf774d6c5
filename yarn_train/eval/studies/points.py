"""The untrained base under many RoPE tables: the weights are read once, and every table is scored once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from ...config import RopeConfig
from ...console.work import Work
from ...dist.collectives import from_main
from ...dist.heartbeat import heartbeat
from ...intervals import interval
from ...model.tables import set_table
from ...rope import hf as rope_hf
from .. import made_by
from ..job import Job
from ..loading import loaded, ranks_of
from ..perplexity.gathered import positions_of, scores
from ..perplexity.plan import Plan, plan
from ..perplexity.scores import Scores, finite
from ..rows import Rows, earlier_rows, write_rows
from ..variants import Variant


@dataclass(frozen=True)
class Point:
    """One table at one window.

    Attributes:
        names: what tells it from the study's other points: option -> value.
    """

    names: Mapping[str, Any]
    rope: RopeConfig
    window: int

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal points."""
        return (self.window, *sorted(self.names.items()))


@dataclass(frozen=True)
class Sums:
    """Summed loss in nats and tokens of every document, in the plan's order."""

    nll: list[float]
    tokens: list[int]


class Base:
    """The base of a study, loaded when the first table is missing, and what was scored until now.

    Sums per document are kept in ``<study>_documents.json``, from which an interrupted study goes on. Every rank calls
    every method.
    """

    def __init__(self, job: Job, scoring: Plan, study: str):
        self.job, self.scoring = job, scoring
        self._file = job.folder / f"{study}_documents.json"
        self._study = study
        self._stack = ExitStack()
        self._model: PreTrainedModel | None = None
        self._ranks = ranks_of(job.base, job.cfg, job.runtime)
        made = {**made_by.options_of(job.cfg, job.runtime.device, job.base), "base": made_by.mark(job.variants[0])}
        settings = {**scoring.settings(), **made, "rope": _fixed(job.cfg.rope)}
        main = job.runtime.is_main
        self._rows: Rows = from_main(earlier_rows(self._file, settings, job.say) if main else [])
        self._found: dict[tuple[Any, ...], Sums] = {}
        self._restore()

    def __enter__(self) -> Base:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def score(self, points: Sequence[Point]) -> None:
        """Score those points that are not known yet."""
        missing = list({point.key: point for point in points if point.key not in self._found}.values())
        cost = sum(positions_of(self.scoring, point.window) for point in missing)
        work = Work(self._study, cost, "tok", shown=self.job.runtime.is_main and bool(missing))
        for point in missing:
            work.at(f"{_said(point)} at {point.window}")
            self._add(point, self._scores(point, curves=False))
            work.add(positions_of(self.scoring, point.window))
        work.close()

    def of(self, point: Point) -> Sums:
        """What :meth:`score` found."""
        return self._found[point.key]

    def curves(self, point: Point) -> Scores:
        """Scores of a point with the loss at every position of its window; not kept."""
        return self._scores(point, curves=True)

    def row(self, point: Point) -> dict[str, Any]:
        """The point's row: perplexity with its 95 % interval by bootstrap over documents."""
        sums = self.of(point)
        names = {"label": "base", "method": point.rope.method, "ramp": point.rope.ramp, "factor": point.rope.factor}
        found = interval(sums.nll, sums.tokens, self.scoring.bootstrap)
        low, high = found.exp()[1:] if found else (None, None)
        measured = {"perplexity": finite(perplexity(sums)), "low": finite(low), "high": finite(high)}
        counts = {"tokens": sum(sums.tokens), "documents": len(sums.tokens)}
        where = {**point.names, "window": point.window, "mode": "token_mean"}
        return {**names, "stage": None, **where, **measured, **counts}

    def _scores(self, point: Point, curves: bool) -> Scores:
        alive = partial(heartbeat.at, f"{self._study}: {dict(point.names)} at {point.window}")
        alive()
        model = self._loaded()
        set_table(model, rope_hf.table_for(self.job.base, point.rope))
        return scores(model, point.window, self.scoring, self._ranks, curves=curves, on_batch=alive)

    def _loaded(self) -> PreTrainedModel:
        if self._model is None:
            plain = dataclasses.replace(self.job.cfg.rope, method="none", factor=1.0, temperature="auto")
            variant = Variant.of("base", plain, None, self.job.variants[0].weights)
            self._model = self._stack.enter_context(loaded(variant, self.job.base, self.job.cfg, self._ranks))
        return self._model

    def _add(self, point: Point, found: Scores) -> None:
        nll, tokens = found.per_document("token_mean")
        self._found[point.key] = Sums(nll, [int(count) for count in tokens])
        for name, loss, count in zip(self.scoring.names, nll, tokens, strict=True):
            values = {"document": name, "nll": finite(loss), "tokens": int(count)}
            self._rows.append({**point.names, "window": point.window, **values})
        if self.job.runtime.is_main:
            write_rows(self._file, self._rows)

    def _restore(self) -> None:
        """Points whose documents are all there."""
        groups: dict[tuple[Any, ...], Rows] = {}
        for row in self._rows:
            names = {k: v for k, v in row.items() if k not in ("window", "document", "nll", "tokens")}
            groups.setdefault((row["window"], *sorted(names.items())), []).append(row)
        for key, rows in groups.items():
            if [row["document"] for row in rows] == self.scoring.names:
                nll = [float("nan") if row["nll"] is None else row["nll"] for row in rows]
                self._found[key] = Sums(nll, [row["tokens"] for row in rows])
        self._rows = [row for rows in (groups[key] for key in self._found) for row in rows]


def perplexity(sums: Sums) -> float:
    """exp of the mean loss; infinity where that overflows, NaN where the model answered NaN."""
    try:
        return math.exp(math.fsum(sums.nll) / sum(sums.tokens))
    except OverflowError:
        return math.inf


def plan_of(job: Job) -> Plan:
    """What all points of a study are scored on: the tokens are the same at every s and window."""
    cfg, length = job.cfg, length_of(job)
    windows = sorted({round(s * length) for s in cfg.study.factors} | set(cfg.eval.windows))
    listed = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, windows=windows))
    return plan(listed, job.data, job.tokenizer, length, max(cfg.study.factors), job.say)


def windows_at(job: Job, factor: float) -> list[int]:
    """Where a factor is looked at: s L, and eval.windows."""
    return sorted({round(factor * length_of(job)), *job.cfg.eval.windows})


def length_of(job: Job) -> int:
    """L, as stated or as the base's config says."""
    return job.cfg.rope.original_max_position_embeddings or job.length


def write(job: Job, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``<name>.json`` on the main rank."""
    if job.runtime.is_main:
        write_rows(job.folder / f"{name}.json", [dict(row) for row in rows])


def _fixed(rope: RopeConfig) -> dict[str, Any]:
    """Options that no study varies but that count."""
    return {key: getattr(rope, key) for key in ("alpha", "beta", "ramp", "truncate", "temperature")}


def _said(point: Point) -> str:
    values = ((key, f"{value:.4g}" if isinstance(value, float) else value) for key, value in point.names.items())
    return ", ".join(f"{key} {value}" for key, value in values)
