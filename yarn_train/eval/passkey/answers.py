"""Which answers are right, and how many of each cell. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..rows import Rows

NUMBER = re.compile(r"[0-9]+")
SHARED = ("label", "method", "ramp", "factor", "stage", "variant", "length")


def is_right(answer: str, key: str, as_number: bool = False) -> bool:
    """Whether the first number of an answer is the key.

    Args:
        as_number: 00123 is 123, as in the reference implementation.
    """
    found = NUMBER.search(answer)
    if found is None:
        return False
    return int(found[0]) == int(key) if as_number else found[0] == key


def rows_of(answers: Sequence[dict[str, Any]]) -> Rows:
    """Answers as rows of ``passkey.json``, in their order: right ones of each model, variant, length and depth.

    The depth is the one asked for, that of each key is in its answer.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for answer in answers:
        names = {key: answer[key] for key in SHARED}
        new = {**names, "depth": answer["asked_depth"], "correct": 0, "total": 0}
        row = found.setdefault((*names.values(), answer["asked_depth"]), new)
        row["correct"] += answer["right"]
        row["total"] += 1
    return list(found.values())
