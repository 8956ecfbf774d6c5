"""The page of one run: what was run, perplexity, training, resources, frequencies, and how to get it again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .blocks import Block, Heading, Picture
from .collect import Run, Stage
from .differences import flat
from .eval_figures import scene_of
from .eval_page import after_perplexity, others
from .figures import context, frequencies, training
from .tables import Grid, perplexity_caption, perplexity_grid
from .texts import count, duration, said, size

TOLD = ("rope.method", "rope.factor", "train.steps", "train.global_batch_size", "data.seq_len", "data.source")
HOW_TO_READ = (
    "Perplexity is exp(mean negative log-likelihood per token); lower is better, the lowest of each column is bold. "
    "In brackets and as areas: 95 % intervals over documents."
)
UNTRAINED = "Rows that no stage trained are the base model, read with that scaling."


def blocks(run: Run, pictures: Mapping[str, Path]) -> list[Block]:
    """The page, top to bottom.

    Args:
        pictures: PNG files by their names, those that could be drawn.
    """
    page: list[Block] = [Heading(run.name, 1), _what_was_run(run), *_how_it_ended(run)]
    page += _evaluations(run, pictures)
    if run.trained_here:
        page += [Heading("Training"), *_training(run, pictures)]
    if "frequencies" in pictures:
        page += [Heading("Frequencies"), "Factor by which each pair of head dimensions turns slower than in the base."]
        panels = frequencies.frequencies(run)
        page += [Picture(pictures["frequencies"], "Scaled over original frequency of every pair", panels)]
    return [*page, *_provenance(run)]


def _evaluations(run: Run, pictures: Mapping[str, Path]) -> list[Block]:
    scene = scene_of(run)
    page: list[Block] = []
    if run.perplexity:
        untrained = f" {UNTRAINED}" if run.trained_here else ""
        page += [Heading("Perplexity"), f"{perplexity_caption(run.perplexity)} {HOW_TO_READ}{untrained}"]
        page += _shown(pictures, "perplexity", "Perplexity against context window", context.perplexity(run))
        page += [perplexity_grid(run.perplexity, intervals=True)]
    elif run.trained_here:
        page += [Heading("Perplexity"), "This run has not been evaluated: eval/perplexity.json is missing."]
    page += after_perplexity(scene, pictures)
    return [*page, *others(scene, pictures)]


def _training(run: Run, pictures: Mapping[str, Path]) -> list[Block]:
    stages = [stage for stage in run.stages if stage.metrics]
    if not stages:
        return ["No optimizer step has been recorded."]
    page: list[Block] = [training_grid(stages)]
    page += _shown(pictures, "training", "Training loss", training.loss(run))
    for figure, name in (
        (training.rate_and_norm(run), "Learning rate and gradient norm"),
        (training.resources(run), "Throughput and memory"),
    ):
        page += [Heading(name, 3), Picture(None, name, [("", figure)])] if figure else []
    return page


def _how_it_ended(run: Run) -> list[Block]:
    reason = run.info.get("exit_reason")
    if not run.info or reason == "complete":
        return []
    return [f"How it ended: {reason}." if reason else "run.json names no end: the run goes on, or was killed."]


def training_grid(stages: Sequence[Stage]) -> Grid:
    """One row per stage: what it consumed, how the loss moved, and what it cost."""
    header = ["stage", "s", "steps", "tokens", "first loss", "last loss", "tokens/s", "MFU", "peak memory"]
    header, body = [*header, "training time"], []
    for stage in stages:
        losses = [loss for loss in stage.series("loss") if math.isfinite(loss)] or [math.nan]
        memory = stage.series("peak_memory_bytes")
        skipped = sum(bool(row.get("skipped")) for row in stage.metrics)
        speed, used, seconds = _speed(stage)
        body.append(
            [
                stage.name,
                said(stage.option("rope.factor")),
                f"{len(stage.metrics)}" + (f" ({skipped} skipped)" if skipped else ""),
                count(stage.series("tokens")[-1]),
                f"{losses[0]:.3f}",
                f"{losses[-1]:.3f}",
                count(speed),
                f"{used:.1%}" if math.isfinite(used) else "",
                size(max((m for m in memory if math.isfinite(m)), default=math.nan)),
                duration(seconds),
            ]
        )
    if not any(row[-3] for row in body):  # no device whose peak is known
        header, *body = [[*cells[:-3], *cells[-2:]] for cells in (header, *body)]
    return Grid(header, body)


def _what_was_run(run: Run) -> str:
    """One sentence: model, L, and what every stage did to it."""
    if not run.trained_here:
        labels = run.evaluations.labels()
        return f"An evaluation without training{': ' if labels else ''}{'; '.join(labels[:6])}."
    told = [stage for stage in run.stages if stage.config] or [Stage("", run.folder, run.config)]
    length = run.original_length()
    sentence = f"Model {said(told[0].option('model.path'))}" + (
        f", pretrained at L = {length:,} tokens" if length else ""
    )
    for stage in told:
        method, factor, steps, batch, segment, source = (said(stage.option(key)) for key in TOLD)
        name = stage.name or "the run"
        sentence += f"; {name}: {method} to s = {factor}, {steps} steps of {batch} x {segment} tokens of {source}"
    return sentence + "."


def _shown(pictures: Mapping[str, Path], name: str, text: str, figure: dict[str, Any] | None) -> list[Block]:
    return [Picture(pictures.get(name), text, [("", figure)])] if figure else []


def _provenance(run: Run) -> list[Block]:
    if not run.info:
        return []
    body = [[key, said(value)] for key, value in flat(run.info).items()]
    return [Heading("How to get it again"), Grid(["run.json", "value"], body, numeric=False)]


def _speed(stage: Stage) -> tuple[float, float, float]:
    """Mean tokens/s (tokens over time, not the mean of rates) and mean MFU of the timed steps; seconds of all steps."""
    tokens = seconds = used = everything = before = 0.0
    timed = {id(record) for record in stage.timed()}
    series = (stage.series(key) for key in ("tokens", "tokens_per_second", "seconds", "mfu"))
    for record, total, rate, took, mfu in zip(stage.metrics, *series, strict=True):
        if math.isfinite(total) and rate > 0:
            took = took if math.isfinite(took) else (total - before) / rate
            everything += took
            if id(record) in timed:
                tokens, seconds, used = tokens + total - before, seconds + took, used + took * mfu
        before = total if math.isfinite(total) else before
    return (tokens / seconds, used / seconds, everything) if seconds > 0 else (math.nan, math.nan, math.nan)
