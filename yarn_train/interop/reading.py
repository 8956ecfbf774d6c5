"""What one program took from a config: the result that all readers share, and how a reader refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .given import Given


class Refused(Exception):
    """This program would stop with an error at this config; the message says why."""


@dataclass(frozen=True, eq=False)
class Layer:
    """The rotation of one kind of layer.

    Attributes:
        kind: the rope type the program takes: default, linear, dynamic, yarn, llama3, longrope.
        theta: the base.
        factor: the scaling factor it takes; 1.0 without scaling.
        original_length: tokens it takes as the original length; None where the type has none.
        attention_factor: what it multiplies cos and sin with.
        inv_freq: [rotated dims / 2] float32, radians per token, at the longest sequence it allows.
        short: the same at sequences not longer than the original length, where those differ; else None.
    """

    kind: str
    theta: float
    factor: float
    original_length: int | None
    attention_factor: float
    inv_freq: Tensor
    short: Tensor | None = None


@dataclass(frozen=True)
class Reading:
    """What one program would compute.

    Attributes:
        reader: its name.
        layers: by kind of layer; one named "all" where every layer is the same. Empty where it refuses.
        max_length: longest sequence in tokens that it derives; None where the config does not say.
        notes: what it leaves out or does in a way of its own.
        refuses: why it would stop; None if it would not.
    """

    reader: str
    layers: dict[str, Layer] = field(default_factory=dict)
    max_length: int | None = None
    notes: tuple[str, ...] = ()
    refuses: str | None = None


Rule = Callable[[Given], tuple[dict[str, Layer], int | None, list[str]]]


def reading(reader: str, given: Given, rule: Rule) -> Reading:
    """Apply one program's rule; anything it could not compute with becomes its refusal."""
    try:
        layers, length, notes = rule(given)
    except Refused as refused:
        return Reading(reader, refuses=str(refused))
    except (ArithmeticError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        return Reading(reader, refuses=f"cannot compute: {error}")
    if any(not len(layer.inv_freq) for layer in layers.values()):
        return Reading(reader, refuses="no dimension is rotated")
    return Reading(reader, layers, length, tuple(notes))


def number(params: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number from a rope dict, `default` where it is absent or null.

    Raises:
        Refused: it is required and missing, or not a number.
    """
    value = params.get(key)
    if value is None:
        if default is None:
            raise Refused(f"{key} is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused(f"{key} is {value!r}, not a number")
    return float(value)


def factors(params: Mapping[str, Any], key: str, pairs: int) -> list[float]:
    """A list of one divisor per pair.

    Raises:
        Refused: it is missing or has another length.
    """
    found = params.get(key)
    if not isinstance(found, list | tuple) or len(found) != pairs:
        got = f"{len(found)} numbers" if isinstance(found, list | tuple) else repr(found)
        raise Refused(f"{key} is {got} where {pairs} pairs are rotated")
    return [float(value) for value in found]
