"""The parts of ``data.mixture``: which sources, and what share of the segments comes from each."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .errors import ConfigError, problem
from .option_values import build_section
from .options import DataConfig


@dataclass(frozen=True)
class MixturePart:
    """One source of the training data, what share of the segments comes from it, and where it is described."""

    name: str
    weight: Fraction
    data: DataConfig


PART_KEYS = ("source", "path", "revision", "column", "held_out")
MAX_DENOMINATOR = 10_000


def parts_of(data: DataConfig) -> list[MixturePart]:
    """The sources of the training data with weights that add up to 1; a single one unless source=mixture.

    Raises:
        ConfigError: listing all problems of data.mixture.
    """
    if data.source != "mixture":
        return [MixturePart(data.source, Fraction(1), data)]
    problems: list[str] = []
    parts = [part for name, given in data.mixture.items() if (part := _part(data, str(name), given, problems))]
    total = sum(part.weight for part in parts)
    shares = [dataclasses.replace(part, weight=part.weight / total) for part in parts]
    period = math.lcm(*(part.weight.denominator for part in shares))
    if not problems and period > MAX_DENOMINATOR:
        got = ", ".join(f"{part.name}: {part.weight}" for part in shares)
        allowed = f"shares with a common denominator up to {MAX_DENOMINATOR}"
        problems.append(problem("data.mixture", got, allowed, "use rounder weights, such as 0.7 and 0.3"))
    if problems:
        raise ConfigError(problems)
    return shares


def _part(data: DataConfig, name: str, given: Any, problems: list[str]) -> MixturePart | None:
    key = f"data.mixture.{name}"
    if not re.fullmatch(r"[\w.-]+", name):
        fix = "its prepared folder is named after it"
        problems.append(problem("data.mixture", name, "names of letters, digits, '_', '-' and '.'", fix))
        return None
    if not isinstance(given, Mapping) or "weight" not in given or "source" not in given:
        problems.append(problem(key, given, "a section with at least weight and source", "see data/README.md"))
        return None
    weight = given["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        problems.append(problem(f"{key}.weight", weight, "a number > 0", "shares are weights over their sum"))
        return None
    wrong = sorted(set(given) - {"weight", *PART_KEYS})
    if wrong:
        allowed = " | ".join(("weight", *PART_KEYS))
        problems.append(problem(key, ", ".join(wrong), allowed, "all else is the same for every part: set it in data"))
        return None
    if given["source"] == "mixture":
        problems.append(problem(f"{key}.source", "mixture", "a single source", "list its parts here"))
        return None
    options = {k: v for k, v in given.items() if k != "weight"}
    found: list[str] = []
    built = build_section("data", options, found)
    problems += [line.replace("data.", f"{key}.", 1) for line in found]
    if found:
        return None
    shared = {k: getattr(data, k) for k in ("seq_len", "workers", "document_mask", "prefetch")}
    return MixturePart(name, Fraction(str(weight)), dataclasses.replace(built, **shared))
