"""The files below a folder's ``eval/`` as typed rows: every file may be missing, a damaged one is named."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .files import json_file, unreadable
from .rows import Best, BestRamp, Document, Gain, Line, Passkey, Position, Ramp, Row, Score, Warmth

Made = TypeVar("Made")


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


CONVERT: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "int": int,
    "float": _float,
    "bool": bool,
    "str | None": lambda value: None if value is None else str(value),
    "int | None": lambda value: None if value is None else int(value),
}


@dataclass(frozen=True)
class Evaluations:
    """Everything that was measured of a run's models, or of one model."""

    perplexity: tuple[Row, ...] = ()
    documents: tuple[Document, ...] = ()
    positions: tuple[Position, ...] = ()
    passkey: tuple[Passkey, ...] = ()
    harness: tuple[Score, ...] = ()
    dynamic: tuple[Row, ...] = ()
    temperature: tuple[Warmth, ...] = ()
    gains: tuple[Gain, ...] = ()
    ramp: tuple[Ramp, ...] = ()
    ramp_best: tuple[BestRamp, ...] = ()
    best: tuple[Best, ...] = ()
    line: Line | None = None

    def labels(self) -> list[str]:
        """Models that were measured, in the order of the files; curves of studies are none."""
        kinds = (self.perplexity, self.positions, self.passkey, self.harness)
        return list(dict.fromkeys(row.label for rows in kinds for row in rows))

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in dataclasses.fields(self))


FILES: dict[str, tuple[str, type]] = {
    "perplexity": ("perplexity.json", Row),
    "documents": ("perplexity_documents.json", Document),
    "positions": ("positions.json", Position),
    "passkey": ("passkey.json", Passkey),
    "harness": ("harness.json", Score),
    "dynamic": ("dynamic.json", Row),
    "temperature": ("temperature.json", Warmth),
    "gains": ("temperature_positions.json", Gain),
    "ramp": ("ramp.json", Ramp),
    "ramp_best": ("ramp_best.json", BestRamp),
}
FIT = "temperature_fit.json"
FOLDER = "eval"


def has_evaluations(folder: Path) -> bool:
    """Whether a run or an evaluation has left rows in this folder."""
    return any((folder / FOLDER / name).is_file() for name in [*(name for name, _ in FILES.values()), FIT])


def read_evaluations(folder: Path) -> Evaluations:
    """All files of ``folder/eval``; keys that this version does not know are passed over.

    Raises:
        DataError: a file is not what it should be.
    """
    below = folder / FOLDER
    found = {key: _rows(below / name, kind) for key, (name, kind) in FILES.items()}
    fit = json_file(below / FIT, dict) or {}
    try:
        best = tuple(_made(entry, Best) for entry in fit.get("best") or [])
        line = _made(fit["fit"], Line) if fit.get("fit") else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unreadable(below / FIT, "best and fit", repr(error)) from error
    return Evaluations(**found, best=best, line=line)


def _rows(path: Path, kind: type) -> tuple[Any, ...]:
    found: list[Any] = []
    for entry in json_file(path, list) or []:
        try:
            found.append(_made(entry, kind))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise unreadable(path, f"rows with {_needed(kind)}", f"{entry!r} ({error!r})") from error
    return tuple(found)


def _made(entry: dict[str, Any], kind: type[Made]) -> Made:
    """A row of this kind; null stands for the default where there is one."""
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING
        value = entry[field.name] if required else entry.get(field.name)
        if required or value is not None:
            values[field.name] = CONVERT[str(field.type)](value)
    return kind(**values)


def _needed(kind: type) -> str:
    names = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    return f"{', '.join(names[:-1])} and {names[-1]}"
