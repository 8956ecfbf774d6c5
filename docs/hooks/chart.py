"""Line charts as small SVG text: no library, so that equal numbers give equal bytes anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

COLOURS = ("#00796b", "#d84315", "#3949ab", "#8e24aa", "#6d4c41", "#546e7a")
WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 60, 128, 38, 50


@dataclass(frozen=True)
class Curve:
    """Points ``(x, y)``, and the name that stands at the right of them."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """Title, ends, marks ``(value, text)``, and whether equal factors are equal distances."""

    title: str
    low: float
    high: float
    marks: Sequence[tuple[float, str]]
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies between the ends, from 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Chart:
    """A picture: `lines` are ``(x, text)``, drawn upright, `levels` are ``(y, text)``, drawn across."""

    title: str
    x: Axis
    y: Axis
    curves: Sequence[Curve]
    lines: Sequence[tuple[float, str]] = field(default_factory=list)
    levels: Sequence[tuple[float, str]] = field(default_factory=list)

    def svg(self) -> str:
        """The whole file."""
        return "\n".join([*self._frame(), *self._rules(), *self._drawn(), *self._names(), "</svg>", ""])

    def _at(self, x: float, y: float) -> tuple[float, float]:
        across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + across * self.x.share(x), TOP + down * (1 - self.y.share(y))

    def _frame(self) -> list[str]:
        style = "text{font:13px sans-serif;fill:#333}.title{font-size:14px;font-weight:bold}.light{fill:#777}"
        begin = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        parts = [begin, f"<title>{escape(self.title)}</title><style>{style}</style>"]
        parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>')
        parts.append(_text(LEFT, 20, self.title, "title"))
        for value, text in self.x.marks:
            x, y = self._at(value, self.y.low)
            parts += [_line(x, TOP, x, y, "#eee"), _text(x, y + 17, text, anchor="middle")]
        for value, text in self.y.marks:
            x, y = self._at(self.x.low, value)
            parts += [_line(x, y, WIDTH - RIGHT, y, "#eee"), _text(x - 7, y + 4, text, anchor="end")]
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(_text(middle, HEIGHT - 10, self.x.title, anchor="middle"))
        spot = (TOP + HEIGHT - BOTTOM) / 2
        turn = f' transform="rotate(-90 14 {spot:.0f})"'
        return [*parts, _text(14, spot, self.y.title, anchor="middle", more=turn)]

    def _rules(self) -> list[str]:
        parts = []
        for value, text in self.lines:
            x, y = self._at(value, self.y.low)
            parts += [_line(x, TOP, x, y, "#999", True), _text(x + 4, TOP + 11, text, "light")]
        for value, text in self.levels:
            x, y = self._at(self.x.low, value)
            parts += [_line(x, y, WIDTH - RIGHT, y, "#999", True), _text(WIDTH - RIGHT + 6, y + 4, text, "light")]
        return parts

    def _drawn(self) -> list[str]:
        parts = []
        for curve, colour in zip(self.curves, COLOURS, strict=False):
            places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self._at(*point) for point in curve.points))
            dash = ' stroke-dasharray="6 4"' if curve.dashed else ""
            parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        return parts

    def _names(self) -> list[str]:
        """Names beside the ends of their curves where there is room, pushed apart where there is not."""
        ends = [self._at(*curve.points[-1])[1] for curve in self.curves]
        order = sorted(range(len(ends)), key=lambda i: ends[i])
        taken = [self._at(self.x.low, value)[1] for value, _ in self.levels]
        heights: dict[int, float] = {}
        for i in order:
            height = max(ends[i], max(heights.values(), default=-math.inf) + 15)
            while any(abs(height - other) < 13 for other in taken):
                height += 1
            heights[i] = height
        lowest = HEIGHT - BOTTOM - 4
        excess = max(0.0, max(heights.values()) - lowest)
        parts = []
        for i in order:
            style = f' style="fill:{COLOURS[i]};font-weight:bold"'
            parts.append(_text(WIDTH - RIGHT + 6, heights[i] - excess + 4, self.curves[i].name, more=style))
        return parts


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start", more: str = "") -> str:
    shown = f' class="{kind}"' if kind else ""
    placed = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{shown}{placed}{more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="3 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dash}/>'
