"""How far two numbers are apart."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gap:
    """The distance of two numbers: absolute, relative to the larger one, and in units in the last place.

    Attributes:
        ulps: of float32 where both are float32 numbers, as losses are, else of float64; None if one is not finite.
    """

    absolute: float
    relative: float
    ulps: int | None


def gap(a: float, b: float) -> Gap:
    """How far apart a and b are; infinitely where one of them is not finite and they are not the same."""
    if not (math.isfinite(a) and math.isfinite(b)):
        far = 0.0 if same(a, b) else math.inf
        return Gap(far, far, None)
    absolute = abs(a - b)
    return Gap(absolute, absolute / max(abs(a), abs(b)) if absolute else 0.0, _ulps(a, b))


def same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Whether two JSON values are equal; floating-point numbers within a relative tolerance, NaN to itself.

    With no tolerance, equal means the same bits: -0.0 is not 0.0. Integers are never approximate.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        if struct.pack("<d", a) == struct.pack("<d", b) or (math.isnan(a) and math.isnan(b)):
            return True
        return tolerance > 0.0 and math.isfinite(a - b) and gap(a, b).relative <= tolerance
    return type(a) is type(b) and bool(a == b)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number (a truth value is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ulps(a: float, b: float) -> int:
    if all(_is_float32(x) for x in (a, b)):
        return abs(_rank(a, "<f", "<i", 31) - _rank(b, "<f", "<i", 31))
    return abs(_rank(a, "<d", "<q", 63) - _rank(b, "<d", "<q", 63))


def _is_float32(x: float) -> bool:
    try:
        return bool(struct.unpack("<f", struct.pack("<f", x))[0] == x)
    except OverflowError:
        return False


def _rank(x: float, number: str, integer: str, sign: int) -> int:
    """The place of a number among all numbers of its type, in order."""
    bits: int = struct.unpack(integer, struct.pack(number, x))[0]
    return bits if bits >= 0 else -(bits + (1 << sign))
