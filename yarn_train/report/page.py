"""The report as one page, in Markdown and as a self-contained HTML file, both written from the same blocks."""

from __future__ import annotations

import base64
import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import plots
from .collect import Run, Stage, collect
from .tables import Grid, perplexity_caption, perplexity_grid, to_html, to_markdown

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1060px;margin:2rem auto;padding:0 1rem;color:#222}
h1,h2{line-height:1.2}h2{margin-top:2.2rem}img{max-width:100%}.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #e3e3e3}
th:first-child{text-align:left;font-weight:normal}thead th{border-bottom:2px solid #888;font-weight:600!important}
.texts *{text-align:left}.muted{color:#666}b{color:#0072B2}"""


TOLD = ("rope.method", "rope.factor", "train.steps", "train.global_batch_size", "data.seq_len", "data.source")
HOW_TO_READ = (
    "Perplexity is exp(mean negative log-likelihood per token); lower is better, the lowest of each column is bold. "
    "Rows that no stage trained are the base model, read with that scaling."
)


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Picture:
    path: Path
    text: str


Block = Heading | Picture | Grid | str  # a str is a paragraph of plain text


def write_report(run_folder: str | Path) -> list[Path]:
    """Write ``report/`` of a run folder: report.md, index.html and the pictures the run has something to show on.

    Parts that a run lacks (not evaluated yet, not finished) are left out and said to be; an earlier report is replaced.

    Returns:
        The written files, index.html first.

    Raises:
        DataError: when it is no run folder, or a file in it cannot be read.
    """
    run = collect(run_folder)
    folder = run.folder / "report"
    folder.mkdir(exist_ok=True)
    pictures = {}
    for name, draw in (
        ("perplexity", plots.perplexity),
        ("training", plots.training),
        ("frequencies", plots.frequencies),
    ):
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)  # a picture of an earlier report must not stand for what is missing now
        if draw(run, path):
            pictures[name] = path
    page = blocks(run, pictures)
    written = [folder / "index.html", folder / "report.md"]
    _write(written[0], as_html(page, run.name))
    _write(written[1], as_markdown(page))
    return [*written, *pictures.values()]


def blocks(run: Run, pictures: dict[str, Path]) -> list[Block]:
    """The page, top to bottom: what was run, perplexity, training, frequencies, and how to get it again."""
    page: list[Block] = [Heading(run.name, 1), _what_was_run(run), Heading("Perplexity")]
    if run.perplexity:
        page += [f"{perplexity_caption(run.perplexity)} {HOW_TO_READ}"]
        page += [perplexity_grid(run.perplexity)]
        page += _picture(pictures, "perplexity", "Perplexity against context window")
    else:
        page += ["This run has not been evaluated: eval/perplexity.json is missing."]
    page += [Heading("Training")]
    stages = [stage for stage in run.stages if stage.metrics]
    page += [training_grid(stages), *_picture(pictures, "training", "Loss, learning rate and gradient norm")]
    if not stages:
        page[-1] = "No optimizer step has been recorded."
    if "frequencies" in pictures:
        page += [Heading("Frequencies"), "Factor by which each pair of head dimensions turns slower than in the base."]
        page += _picture(pictures, "frequencies", "Scaled over original frequency of every pair")
    return [*page, *_provenance(run)]


def training_grid(stages: Sequence[Stage]) -> Grid:
    """One row per stage: what it consumed, how the loss moved, and what it cost."""
    header = ["stage", "s", "steps", "tokens", "first loss", "last loss", "tokens/s", "peak memory", "training time"]
    body = []
    for stage in stages:
        losses, memory = stage.series("loss"), stage.series("peak_memory_bytes")
        speed, seconds = _speed(stage)
        body.append(
            [
                stage.name,
                _text(stage.option("rope.factor")),
                f"{len(stage.metrics)}",
                _count(stage.series("tokens")[-1]),
                f"{losses[0]:.3f}",
                f"{losses[-1]:.3f}",
                _count(speed),
                _bytes(max((m for m in memory if math.isfinite(m)), default=math.nan)),
                _duration(seconds),
            ]
        )
    return Grid(header, body)


def as_markdown(page: Sequence[Block]) -> str:
    """The page for a text viewer; pictures are linked by file name, as they lie beside it."""
    parts = []
    for block in page:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {block.text}\n")
        elif isinstance(block, Picture):
            parts.append(f"![{block.text}]({block.path.name})\n")
        else:
            parts.append(to_markdown(block) if isinstance(block, Grid) else f"{block}\n")
    return "\n".join(parts)


def as_html(page: Sequence[Block], title: str) -> str:
    """The page as one file that needs no other: pictures are embedded."""
    parts = []
    for block in page:
        if isinstance(block, Heading):
            parts.append(f"<h{block.level}>{html.escape(block.text)}</h{block.level}>")
        elif isinstance(block, Picture):
            data = base64.b64encode(block.path.read_bytes()).decode()
            parts.append(f'<p><img alt="{html.escape(block.text)}" src="data:image/png;base64,{data}"></p>')
        elif isinstance(block, Grid):
            parts.append(f'<div class="wide">\n{to_html(block)}</div>')
        else:
            parts.append(f"<p>{html.escape(block)}</p>")
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}\n<style>{STYLE}</style></head>\n<body>\n' + "\n".join(
        [*parts, "</body></html>\n"]
    )


def _what_was_run(run: Run) -> str:
    """One sentence: model, L, and what every stage did to it."""
    told = [stage for stage in run.stages if stage.config] or [Stage("", run.folder, run.config)]
    length = run.original_length()
    sentence = f"Model {_text(told[0].option('model.path'))}" + (
        f", pretrained at L = {length:,} tokens" if length else ""
    )
    for stage in told:
        method, factor, steps, batch, segment, source = (_text(stage.option(key)) for key in TOLD)
        name = stage.name or "the run"
        sentence += f"; {name}: {method} to s = {factor}, {steps} steps of {batch} x {segment} tokens of {source}"
    return sentence + "."


def _picture(pictures: dict[str, Path], name: str, text: str) -> list[Block]:
    return [Picture(pictures[name], text)] if name in pictures else []


def _provenance(run: Run) -> list[Block]:
    if not run.info:
        return []
    body = [[key, _text(value)] for key, value in _flat(run.info)]
    return [Heading("How to get it again"), Grid(["run.json", "value"], body, numeric=False)]


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def _speed(stage: Stage) -> tuple[float, float]:
    """Mean tokens/s (all tokens over all time, not the mean of rates) and seconds spent in steps."""
    tokens = seconds = before = 0.0
    series = (stage.series(key) for key in ("tokens", "tokens_per_second", "seconds"))
    for total, rate, took in zip(*series, strict=True):
        if math.isfinite(total) and rate > 0:
            tokens += total - before
            seconds += took if math.isfinite(took) else (total - before) / rate
        before = total if math.isfinite(total) else before
    return (tokens / seconds, seconds) if seconds > 0 else (math.nan, math.nan)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ("; " if any(isinstance(item, dict) for item in value) else " ").join(map(_text, value))
    if isinstance(value, bool) or value is None:
        return "not stated" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "not recorded"


def _bytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if math.isfinite(value) else "not recorded"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "not recorded"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
