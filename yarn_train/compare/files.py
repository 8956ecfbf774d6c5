"""Whether the files of a checkpoint are what its COMPLETE says, without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from .tensors import PLAIN


def damages(checkpoint: Path, said: dict[str, Any], quick: bool) -> list[str]:
    """What is wrong with the files that COMPLETE names, one line each.

    Args:
        said: bytes and sha256 of each, as :func:`tensors.hashes` read them.
        quick: look at sizes only, and read no file.
    """
    return [wrong for name, sealed in said.items() if (wrong := _damage(checkpoint / name, name, sealed, quick))]


def _damage(path: Path, name: str, sealed: Any, quick: bool) -> str | None:
    if not PLAIN.fullmatch(name):
        return f"COMPLETE names {name!r}, which is no file of this folder"
    try:
        size = path.stat().st_size
        if size != sealed["bytes"]:
            return f"{name} has {size:,} bytes instead of {sealed['bytes']:,}"
        if quick:
            return None
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    except (KeyError, TypeError, ValueError):
        return f"COMPLETE does not say what {name} was"
    return None if found == sealed.get("sha256") else f"{name}: its sha256 is not what was written"
