"""The folder name of a sweep's job, from what is swept: ``alpha_1__beta_16``. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST = 120  # characters of a name, well below the 255 bytes that file systems allow
UNSAFE = re.compile(r"[^\w.+-]+")  # '=' and ',' too: Hydra would read a path with them as something else


def job_name(swept: Mapping[str, Any]) -> str:
    """One name for each set of values, readable, safe in a path and on a command line.

    Args:
        swept: option -> value, in the order of the sweep; options are named by their last word where that is enough.
    """
    short = _short(list(swept))
    texts = {key: _text(value) for key, value in swept.items()}
    clean = {key: UNSAFE.sub("-", text) or "empty" for key, text in texts.items()}
    name = "__".join(f"{short[key]}_{clean[key]}" for key in swept) or "only"
    if clean == texts and len(name) <= LONGEST and "__" not in "".join(clean.values()):
        return name
    # what was left out may be all that keeps two jobs apart
    digest = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:8]
    return f"{name[: LONGEST - 9]}-{digest}"


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Each option by as few of its last words as tell it from the others."""
    names = {}
    for key in keys:
        words = key.lstrip("+~").replace("/", ".").split(".")
        tails = [".".join(words[-n:]) for n in range(1, len(words) + 1)]
        others = [other.lstrip("+~").replace("/", ".") for other in keys if other != key]
        names[key] = next((t for t in tails if not any(o == t or o.endswith(f".{t}") for o in others)), tails[-1])
    return names


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
