"""Layers that see only a window of the tokens before them: which ones, from the config, and another window for them.

transformers keeps the window in ``sliding_window`` and, in models that mix local and global layers, says in
``layer_types`` which layers it is for. The window itself is computed by :mod:`model.windows`.
"""

from __future__ import annotations

import copy
from typing import Any

from ..errors import problem
from ..rope.base import FULL, nested

LOCAL = "sliding_attention"
KEY = "rope.sliding_window"
Asked = int | str | None  # rope.sliding_window


def windows(config: Any) -> tuple[int, ...]:
    """Per layer, the tokens that a query sees, itself and those before; 0 is all."""
    layers, window = getattr(config, "num_hidden_layers", 0), getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None) or [LOCAL] * layers
    return tuple(window if kind == LOCAL else 0 for kind in kinds)


def windowed(config: Any) -> bool:
    """Whether any layer has a window; like the next one without a look at each layer, of which a file may name any."""
    kinds = getattr(config, "layer_types", None)
    return bool(getattr(config, "sliding_window", None)) and (not kinds or LOCAL in kinds)


def windowed_throughout(config: Any) -> bool:
    """Whether every layer has a window."""
    return windowed(config) and all(kind == LOCAL for kind in getattr(config, "layer_types", None) or ())


def with_window(config: Any, asked: Asked) -> Any:
    """A copy of a config whose local layers have the window that was asked for; the config itself to keep its own."""
    if asked in (None, "keep") or not windowed(config):
        return config
    changed = copy.deepcopy(config)
    if asked != "off":
        changed.sliding_window = asked
        return changed
    changed.sliding_window = None
    if hasattr(changed, "use_sliding_window"):
        changed.use_sliding_window = False
    if getattr(changed, "layer_types", None):
        changed.layer_types = [FULL if kind == LOCAL else kind for kind in changed.layer_types]
    return changed


def window_problems(config: Any, asked: Asked, reach: float | None) -> list[str]:
    """What speaks against the window that was asked for, or against asking for none.

    Args:
        reach: tokens that the run extends to, s x L; windows as long as that are none. None where it is not known.
    """
    if not windowed(config):
        if asked in (None, "keep", "off"):
            return []
        return [problem(KEY, asked, "null: this model has no sliding window", "leave it out")]
    window = config.sliding_window
    if asked is None and windowed_throughout(config) and (reach is None or window < reach):
        got = f"a base whose layers all see {window} tokens back, and nothing that says what becomes of it"
        fix = f"{KEY}=off lets them see everything, a number of tokens or keep sets their window"
        return [problem(KEY, got, "off | keep | tokens", f"{fix}; the paper's Mistral runs let it grow to the segment")]
    if asked == "off" and nested(getattr(config, "rope_parameters", None) or {}):
        got = "off, for layers whose RoPE is not extended"
        return [problem(KEY, got, "keep | tokens", "their frequencies are those of a short range: keep their window")]
    return []
