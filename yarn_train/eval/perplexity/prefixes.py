"""Scores at many windows from one pass, where windows are beginnings of one another (eval.truncate).

A causal model's answer for a token does not depend on what comes after it, and positions of a truncated document count
from its first token at every window size. So the losses of the largest window's tokens are those of every smaller
one's, and the paper's 64 windows from 2k to 128k cost one pass over 128k, not 32 times as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ... import remote_code
from .scores import Scores

LENGTH_DEPENDENT = ("dynamic", "longrope")  # rope types of transformers whose table depends on how long the input is


def grows(model: Any) -> bool:
    """Whether a token's loss may depend on how many tokens follow it: by the RoPE table, or in code of its own."""
    config = getattr(model.config, "get_text_config", lambda: model.config)()
    named = str(getattr(config, "rope_parameters", None))
    return any(f"'{kind}'" in named for kind in LENGTH_DEPENDENT) or bool(remote_code.flag(model.config))


def prefixes(scores: Scores, windows: Sequence[int], bos: bool) -> Iterator[Scores]:
    """Scores at each of `windows`, none larger than that of `scores`.

    Args:
        scores: one window per document, made with ``curves``.
        bos: one position of each window is BOS.
    """
    for window in windows:
        curves = [curve[: window - 1] for curve in scores.curves]
        nll = [[curve.sum(dtype=np.float64).item()] if len(curve) else [] for curve in curves]
        counts = [[len(curve)] if len(curve) else [] for curve in curves]
        yield Scores(window, window - bos, nll, counts, None, curves)
