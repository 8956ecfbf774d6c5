"""Files of rows, one JSON list per evaluation (``<name>.json``), and the settings that made them beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

Say = Callable[[str], None]
Rows = list[dict[str, Any]]
MODELS = "models"  # entry of the settings: label -> mark of its weights


def write_rows(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as a JSON list; a reader sees the old file or the whole new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(list(rows), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def earlier_rows(out: Path, settings: dict[str, Any], say: Say, models: Mapping[str, str] | None = None) -> Rows:
    """Rows of an interrupted or repeated evaluation; a file made with other settings is kept under another name."""
    return earlier_files([out], settings, say, models)[0]


def earlier_files(
    outs: Sequence[Path], settings: dict[str, Any], say: Say, models: Mapping[str, str] | None = None
) -> list[Rows]:
    """The same of files that one evaluation writes: the settings stand beside the first, and all are kept or none.

    A file that is not there has no rows.

    Args:
        models: a mark of each label's weights. Rows of a label whose mark is another now are left out, those of other
            labels stay. None: rows have no labels, what made them is in the settings.
    """
    settings_file = settings_beside(outs[0])
    found = [_read(out) for out in outs]
    there = _read(settings_file)
    known = there.pop(MODELS, None) if isinstance(there, dict) else None
    whole = all(rows is not None for rows in found)
    if there == settings and whole and models is None and known is None:
        return found
    if there == settings and whole and models is not None and isinstance(known, dict):
        return _of_models(outs, found, settings, known, models, say)
    if names := _put_aside(outs):
        say(f"{names[0][0]} was made with other evaluation options, dtype or weights; kept as {_listed(names)}")
    _write_settings(settings_file, settings, models)
    return [[] for _ in outs]


def settings_beside(out: Path) -> Path:
    """The file with the settings of a file of rows; the marks of models are its entry :data:`MODELS`."""
    return out.with_name(f"{out.stem}_settings.json")


def _of_models(
    outs: Sequence[Path],
    found: list[Rows],
    settings: dict[str, Any],
    known: Mapping[str, str],
    models: Mapping[str, str],
    say: Say,
) -> list[Rows]:
    """Rows of models that are still what they were; the files lose the others', and are kept whole beside that."""
    others = {label for label, mark in models.items() if known.get(label) != mark}
    changed = sorted({row["label"] for rows in found for row in rows} & others)
    kept = [[row for row in rows if row["label"] not in others] for rows in found]
    if changed:
        names = _put_aside(outs)
        for out, rows in zip(outs, kept, strict=True):
            if rows:
                write_rows(out, rows)
        say(f"{', '.join(changed)}: other weights than before, evaluated again; earlier rows kept as {_listed(names)}")
    # after the rows: a mark that is there says that no row of other weights is
    _write_settings(settings_beside(outs[0]), settings, {**known, **models})
    return kept


def _put_aside(outs: Sequence[Path]) -> list[tuple[str, str]]:
    """Give files that are there the next free number; returns (old name, new name) of each."""
    there = [out for out in outs if out.is_file()]
    number = next(n for n in count(1) if not any(_numbered(out, n).exists() for out in outs))
    for out in there:
        out.rename(_numbered(out, number))
    return [(out.name, _numbered(out, number).name) for out in there]


def _listed(names: Sequence[tuple[str, str]]) -> str:
    return ", ".join(new for _, new in names)


def _write_settings(path: Path, settings: dict[str, Any], models: Mapping[str, str] | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = settings if models is None else {**settings, MODELS: dict(models)}
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> Any:
    """What a JSON file holds; [] where there is none, None where it is damaged."""
    if not path.is_file():
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number}.json")
