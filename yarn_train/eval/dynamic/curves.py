"""The curves of the dynamic study, as rope options by window. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ...config import RopeConfig
from ...rope.frequencies import dynamic_factor
from ..perplexity.windows import default_windows
from ..variants import METHOD_NAMES, RAMP_NAMES


@dataclass(frozen=True)
class Curve:
    """One line of the figure.

    Attributes:
        label: its name.
        method: as in rows; "dynamic yarn" where s follows the window.
        factor: s, of a dynamic curve the largest.
        ropes: what the base is read with, by window in tokens.
    """

    label: str
    method: str
    ramp: str | None
    factor: float
    ropes: dict[int, RopeConfig]


def windows_of(listed: Sequence[int], length: int, factors: Sequence[float]) -> list[int]:
    """``eval.windows``, or L/2, L, 2L, 4L ... up to the largest factor * L: below L a fixed scale has its price."""
    return sorted(set(listed)) or [max(2, length // 2), *default_windows(length, max(factors))]


def curves(
    rope: RopeConfig, methods: Sequence[str], factors: Sequence[float], windows: Sequence[int], length: int
) -> list[Curve]:
    """The base, then of each method every fixed s that these windows need, and s = max(1, window / L).

    Args:
        rope: alpha, beta, ramp and so on.
        windows: in tokens; what the model sees, l'.
        length: L in tokens.
    """
    found = [_fixed(rope, "none", 1.0, windows)]
    for method in methods:
        found += [_fixed(rope, method, s, windows) for s in needed(factors, max(windows), length)]
        found.append(_dynamic(rope, method, windows, length))
    return found


def needed(factors: Sequence[float], largest: int, length: int) -> list[float]:
    """Factors in ascending order, up to the first one that reaches `largest` tokens."""
    ordered = sorted({float(s) for s in factors if s > 1})
    short = [s for s in ordered if s * length < largest]
    return ordered[: len(short) + 1]


def _fixed(rope: RopeConfig, method: str, factor: float, windows: Sequence[int]) -> Curve:
    asked = _with(rope, method, factor)
    ramp = _ramp(asked)
    label = METHOD_NAMES[method] + RAMP_NAMES.get(ramp or "", "") + (f" s={factor:g}" if method != "none" else "")
    return Curve(label, method, ramp, factor, dict.fromkeys(windows, asked))


def _dynamic(rope: RopeConfig, method: str, windows: Sequence[int], length: int) -> Curve:
    ropes = {window: _with(rope, method, dynamic_factor(window, length)) for window in windows}
    largest = max(asked.factor for asked in ropes.values())
    ramp = _ramp(ropes[windows[0]])
    label = f"Dynamic {METHOD_NAMES[method]}{RAMP_NAMES.get(ramp or '', '')}"
    return Curve(label, f"dynamic {method}", ramp, largest, ropes)


def _with(rope: RopeConfig, method: str, factor: float) -> RopeConfig:
    return dataclasses.replace(rope, method=method, factor=factor)


def _ramp(rope: RopeConfig) -> str | None:
    return rope.ramp if rope.method in ("yarn", "ntk_by_parts") else None
