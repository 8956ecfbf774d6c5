"""The histogram of document lengths in prepared data."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .style import GREY, STYLE, TRAINED

BINS = 40


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
        axes.set_xlabel("tokens per document")
        axes.set_ylabel("documents")
        figure.savefig(path, format="png", facecolor="white")
    return path
