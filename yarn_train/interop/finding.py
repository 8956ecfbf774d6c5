"""One thing that is wrong, or worth knowing, about a config."""

from __future__ import annotations

from dataclasses import dataclass

FAULT, NOTE = "fault", "note"


@dataclass(frozen=True)
class Finding:
    """What, what the file says, what was meant, how to mend it.

    Attributes:
        name: of the kind of finding; stable, for scripts.
        got: what the file says.
        meant: what it would have to say, or what the difference is.
        fix: how to mend it.
        level: "fault", or "note" for what is legal and only read differently.
    """

    name: str
    got: str
    meant: str
    fix: str
    level: str = FAULT
