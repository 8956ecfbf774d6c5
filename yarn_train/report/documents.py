"""The histogram of document lengths in prepared data."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from .style import GREY, STYLE, TRAINED

BINS = 40


class _Thousands(LogFormatter):
    """Numbers as people write them, where a logarithmic axis has room for them."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:,.0f}" if super().__call__(x, pos) else ""


def length_histogram(lengths: np.ndarray, seq_len: int, source: str, path: Path) -> Path:
    """Write a PNG of tokens per document, on a logarithmic axis, with the segment length marked.

    Args:
        lengths: tokens per document, int64 [documents].
        seq_len: tokens per segment.
        source: what the documents are, for the title.
    """
    lengths = np.maximum(lengths, 1)
    low, high = np.log10(lengths.min()), np.log10(max(lengths.max(), lengths.min() + 1))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.hist(lengths, bins=np.logspace(low, high, BINS + 1).tolist(), color=TRAINED[0])
        axes.set_xscale("log")
        axes.axvline(seq_len, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(
            f" segment: {seq_len:,}",
            (seq_len, 1),
            xycoords=("data", "axes fraction"),
            va="top",
            color=GREY,
            fontsize=8.5,
        )
        axes.axvline(float(np.median(lengths)), color=TRAINED[1], linewidth=1)
        axes.annotate(
            f" median: {int(np.median(lengths)):,}",
            (float(np.median(lengths)), 0.92),
            xycoords=("data", "axes fraction"),
            va="top",
            color=TRAINED[1],
            fontsize=8.5,
        )
        axes.set_title(f"{source}: {len(lengths):,} documents, {int(lengths.sum()):,} tokens")
        for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            formatted(_Thousands(minor_thresholds=(2, 0.4)))
        axes.set_xlabel("tokens per document")
        axes.set_ylabel("documents")
        figure.savefig(path, format="png", facecolor="white")
    return path
