"""What a study may choose from, and the text that a chosen value has on a command line. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from ..config import SECTIONS
from ..errors import ConfigError, problem

DIGITS = 4  # of a number that a study chose, so that folders have readable names


@dataclass(frozen=True)
class Choices:
    """One of some values, each as a command line has it."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Between:
    """A number of an interval, both ends included.

    Attributes:
        log: every order of magnitude is as likely as the others.
        whole: whole numbers only.
        step: only low, low + step, low + 2 step ...
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False
    step: float | None = None


Axis = Choices | Between


def interval(option: str, low: float, high: float, log: bool, whole: bool) -> Between:
    """An interval; of an option that counts, its whole numbers.

    Raises:
        ConfigError: there is nothing in it, or the logarithm has no beginning.
    """
    section, _, name = option.partition(".")
    whole = whole or (section in SECTIONS and get_type_hints(SECTIONS[section]).get(name) is int)
    first, last = (math.ceil(low), math.floor(high)) if whole else (float(low), float(high))
    got = f"interval({low:g},{high:g})"
    if not first <= last:
        raise ConfigError(problem(option, got, "the smaller number first", f"write interval({high:g},{low:g})"))
    if log and first <= 0:
        raise ConfigError(problem(option, f"tag(log,{got})", "numbers above 0", "begin above 0, or leave log out"))
    return Between(first, last, log, whole)


def text(axis: Axis, value: Any) -> str:
    """A value of the axis as a command line has it, a number in readable digits and still inside its interval."""
    if isinstance(axis, Choices):
        return str(value)
    if axis.whole:
        return str(round(value))
    if axis.step is not None:
        return repr(float(f"{axis.low + round((value - axis.low) / axis.step) * axis.step:.10g}"))
    if axis.log:
        near = float(f"{value:.{DIGITS}g}")
    else:
        span = axis.high - axis.low
        near = round(float(value), DIGITS - 1 - math.floor(math.log10(span))) if span else axis.low
    return repr(float(min(max(near, axis.low), axis.high)))


def in_words(axis: Axis) -> str:
    """The axis as one would type it."""
    if isinstance(axis, Choices):
        return ",".join(axis.words)
    ends = f"{axis.low:g},{axis.high:g}"
    if axis.step is not None:
        return f"{axis.low:g} to {axis.high:g} by {axis.step:g}"
    inside = f"int(interval({ends}))" if axis.whole else f"interval({ends})"
    return f"tag(log,{inside})" if axis.log else inside


def grid(axes: Mapping[str, Axis]) -> list[dict[str, Any]] | None:
    """Every combination, the last axis varying fastest; None where an axis is continuous."""
    values: list[list[Any]] = []
    for axis in axes.values():
        if isinstance(axis, Choices):
            values.append(list(axis.words))
        elif axis.whole or axis.step is not None:
            step = axis.step or 1
            numbers = [axis.low + step * n for n in range(round((axis.high - axis.low) / step) + 1)]
            values.append([round(n) if axis.whole else float(f"{n:.10g}") for n in numbers])
        else:
            return None
    return [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*values)]


def count(axes: Mapping[str, Axis]) -> int | None:
    """How many combinations there are; None where an axis is continuous."""
    sizes = []
    for axis in axes.values():
        if isinstance(axis, Choices):
            sizes.append(len(axis.words))
        elif axis.whole or axis.step is not None:
            sizes.append(round((axis.high - axis.low) / (axis.step or 1)) + 1)
        else:
            return None
    return math.prod(sizes)
